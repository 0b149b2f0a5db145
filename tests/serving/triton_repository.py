"""What Triton does with a model repository, step by step in Python: checks it, runs ensembles over ONNX models.

The checks are those of Triton's own loader (triton-inference-server/core, `ensemble_utils.cc`) and of the user
guide's pages on the repository and on a model's configuration.
"""

from __future__ import annotations

from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from offramp.serving.wire import from_request

KINDS = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "tensor(int64)": "TYPE_INT64"}
DTYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_}


class Repository:
    """A repository that Triton would load; an AssertionError says why it would not."""

    def __init__(self, path):
        self.path = Path(path)
        self.configs = {}
        for folder in sorted(self.path.iterdir()):
            config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
            assert config.name == folder.name
            assert [part.name for part in folder.iterdir() if part.is_dir()] == ["1"]
            assert all(tensor.dims for tensor in (*config.input, *config.output)), "dims may not be empty"
            self.configs[config.name] = config
        self.sessions = {}
        for name, config in self.configs.items():
            if config.platform == "ensemble":
                self._check_ensemble(config)
            else:
                self._load(name, config)

    def ensembles(self):
        return [name for name, config in self.configs.items() if config.platform == "ensemble"]

    def infer(self, name, tensors):
        """One request: tensors by name in, tensors by name out."""
        config = self.configs[name]
        assert set(tensors) == {spec.name for spec in config.input}
        for spec in config.input:
            self._check_tensor(config, spec, tensors[spec.name])
        if name in self.sessions:
            outputs = [spec.name for spec in config.output]
            found = dict(zip(outputs, self.sessions[name].run(outputs, tensors), strict=True))
        else:
            found = self._run_ensemble(config, tensors)
        for spec in config.output:
            self._check_tensor(config, spec, found[spec.name])
        return {spec.name: found[spec.name] for spec in config.output}

    def _run_ensemble(self, config, tensors):
        known = dict(tensors)
        for step in config.ensemble_scheduling.step:  # ours are written in order; Triton would find one itself
            made = self.infer(step.model_name, {key: known[value] for key, value in step.input_map.items()})
            known.update({step.output_map[key]: value for key, value in made.items() if key in step.output_map})
        return known

    def _load(self, name, config):
        assert config.backend == "onnxruntime"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        file = self.path / name / "1" / config.default_model_filename
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for said, has in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert {spec.name for spec in said} == {value.name for value in has}
            for spec in said:
                value = next(value for value in has if value.name == spec.name)
                assert KINDS[value.type] == DataType.Name(spec.data_type)
                # The batch's axis is Triton's own where max_batch_size is above 0, and must be free in the model.
                assert isinstance(value.shape[0], str)
                assert list(value.shape[1:]) == list(spec.dims)
        self.sessions[name] = session
        for sample in config.model_warmup:
            assert all(tensor.zero_data for tensor in sample.inputs.values())
            self.infer(
                name,
                {
                    key: np.zeros((sample.batch_size, *tensor.dims), DTYPES[DataType.Name(tensor.data_type)])
                    for key, tensor in sample.inputs.items()
                },
            )

    def _check_ensemble(self, config):
        assert not config.HasField("dynamic_batching"), "an ensemble has a scheduler already"
        known = {spec.name: (spec.data_type, tuple(spec.dims)) for spec in config.input}
        used = set()
        for step in config.ensemble_scheduling.step:
            part = self.configs[step.model_name]
            assert part.max_batch_size >= config.max_batch_size
            assert {spec.name for spec in part.input} == set(step.input_map)
            for spec in part.input:
                assert known[step.input_map[spec.name]] == (spec.data_type, tuple(spec.dims))
                used.add(step.input_map[spec.name])
            outputs = {spec.name: spec for spec in part.output}
            assert set(step.output_map) <= set(outputs)
            for key, tensor in step.output_map.items():
                assert tensor not in known, f"{config.name}: {tensor} is made twice"
                known[tensor] = (outputs[key].data_type, tuple(outputs[key].dims))
        for spec in config.output:
            assert known[spec.name] == (spec.data_type, tuple(spec.dims))
            used.add(spec.name)
        assert set(known) == used, f"{config.name}: nobody takes {set(known) - used}"

    @staticmethod
    def _check_tensor(config, spec, tensor):
        assert tensor.dtype == DTYPES[DataType.Name(spec.data_type)]
        assert tensor.shape[1:] == tuple(spec.dims)
        assert 1 <= len(tensor) <= config.max_batch_size


class _Service(rpc.GRPCInferenceServiceServicer):
    """Answers as Triton does: version 1, `logits` alone, parameters that it does not know are passed over."""

    def __init__(self, repository):
        self.repository, self.asked = repository, []

    def ModelMetadata(self, request, context):  # noqa: N802
        if request.name not in self.repository.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="ensemble")

    def ModelInfer(self, request, context):  # noqa: N802
        self.asked.append(request.model_name)
        assert not any(key.startswith("triton_") for key in request.parameters), "reserved by Triton"
        found = self.repository.infer(request.model_name, from_request(request))
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, value in found.items():
            response.outputs.add(name=name, datatype="FP32", shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response


@contextmanager
def triton_server(repository):
    """A gRPC server over a repository; gives its address, and the names of the models that were asked."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service = _Service(repository)
    rpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service.asked
    finally:
        server.stop(None).wait()
