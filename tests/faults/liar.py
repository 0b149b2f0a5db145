"""An Open Inference Protocol server that holds the right answer and, when told to, gives another one."""

import time
from concurrent import futures

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from offramp.runtime.tail import TailRequest
from offramp.serving.wire import from_request, grpc_options, response_message


def _output(message, name):
    return next(i for i, output in enumerate(message.outputs) if output.name == name)


def _fill(value):
    def lie(message):
        i = _output(message, "logits")
        shape = [*message.outputs[i].shape]
        message.raw_output_contents[i] = np.full(shape, value, np.float32).tobytes()

    return lie


def _reshaped(*shape):
    def lie(message):
        i = _output(message, "logits")
        message.outputs[i].shape[:] = shape
        message.raw_output_contents[i] = np.zeros(shape, np.float32).tobytes()

    return lie


def _described(shape):
    def lie(message):
        message.outputs[_output(message, "logits")].shape[:] = shape

    return lie


def _typed(datatype, content):
    def lie(message):
        i = _output(message, "logits")
        message.outputs[i].datatype, message.raw_output_contents[i] = datatype, content

    return lie


def _truncated(message):
    i = _output(message, "logits")
    message.raw_output_contents[i] = message.raw_output_contents[i][:-3]


def _lost(message):
    del message.raw_output_contents[-1]


def _renamed(message):
    message.outputs[_output(message, "logits")].name = "logit"


def _twice(message):
    message.outputs[_output(message, "exit")].name = "logits"


def _exit(*values, dtype=np.int64, datatype="INT64"):
    def lie(message):
        i = _output(message, "exit")
        message.outputs[i].datatype = datatype
        message.outputs[i].shape[:] = [len(values)]
        message.raw_output_contents[i] = np.array(values, dtype).tobytes()

    return lie


def _emptied(message):
    message.Clear()


def _more(message):
    message.outputs.add(name="heat", datatype="UINT8", shape=[3])
    message.raw_output_contents.append(b"123")


def _said(value):
    def lie(message):
        message.parameters["server_ms"].double_param = value

    return lie


#: What an edge must take for no answer.
LIES = {
    "nan": _fill(np.nan),
    "infinite": _fill(-np.inf),
    "three classes": _reshaped(1, 3),
    "two samples": _reshaped(2, 2),
    "no sample": _reshaped(0, 2),
    "a scalar": _reshaped(),
    "another shape than its bytes": _described([1, 7]),
    "a shape of a petabyte": _described([2**40, 2]),
    "a negative shape": _described([-1, 2]),
    "64 bits": _typed("FP64", np.zeros(2).tobytes()),
    "whole numbers": _typed("INT64", np.zeros(2, np.int64).tobytes()),
    "no type": _typed("", b""),
    "truncated": _truncated,
    "a tensor lost": _lost,
    "another name": _renamed,
    "a name twice": _twice,
    "an exit that is none": _exit(99),
    "an exit before the cut": _exit(-7),
    "an exit that is no number": _exit(np.nan, dtype=np.float32, datatype="FP32"),
    "an exit between": _exit(2.5, dtype=np.float32, datatype="FP32"),
    "nothing": _emptied,
}
#: What it must take all the same.
ODDITIES = {
    "more outputs": _more,
    "an endless time": _said(1e308),
    "a time that is no number": _said(float("nan")),
    "a time below nothing": _said(-5.0),
}
CODES = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ABORTED,
)


class Liar(rpc.GRPCInferenceServiceServicer):
    """Answers as a tail does, after `wait_s`; `lie` is None, a name of `LIES` or `ODDITIES`, or a status code."""

    def __init__(self, tail):
        self._tail, self.lie, self.wait_s, self.asked = tail, None, 0.0, 0
        self._pool = futures.ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0), *grpc_options(64)])
        rpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()
        self._pool.shutdown()

    def ModelInfer(self, request, context):  # noqa: N802
        self.asked += 1
        time.sleep(self.wait_s)
        lie = self.lie
        if isinstance(lie, grpc.StatusCode):
            context.abort(lie, "because")
        final = "final" in request.parameters and request.parameters["final"].bool_param
        reply = self._tail.infer(TailRequest(request.model_name, from_request(request), None, final))
        tensors = {"logits": reply.logits, "exit": reply.exits}
        message = response_message(request.model_name, "1", request.id, tensors, reply.server_ms)
        if lie is not None:
            {**LIES, **ODDITIES}[lie](message)
        return message

    def ModelMetadata(self, request, context):  # noqa: N802
        return pb.ModelMetadataResponse(name=request.name, versions=["1"])
