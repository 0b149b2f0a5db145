import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2 as pb

from offramp.errors import InputError, ProtocolError
from offramp.serving.wire import (
    DATATYPES,
    from_outputs,
    from_request,
    grpc_options,
    request_message,
    response_message,
)

TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12),
    st.sampled_from(sorted(DATATYPES)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    ),
    max_size=4,
)


def request_of(tensors):
    message = request_message("m", tensors, None, False)
    return pb.ModelInferRequest.FromString(message.SerializeToString())


def response_of(tensors):
    message = response_message("m", "1", "", tensors, 1.5)
    return pb.ModelInferResponse.FromString(message.SerializeToString())


@settings(derandomize=True, deadline=None, max_examples=60)
@given(tensors=TENSORS)
def test_tensors_come_back_bit_for_bit(tensors):
    for found in (from_request(request_of(tensors)), from_outputs(response_of(tensors))):
        assert list(found) == list(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert found[name].tobytes() == tensor.tobytes()


def test_golden_bytes():
    message = request_of({"x": np.array([[1.0, -2.0]], np.float32)})
    assert (message.inputs[0].name, message.inputs[0].datatype) == ("x", "FP32")
    assert list(message.inputs[0].shape) == [1, 2]
    assert message.raw_input_contents[0] == bytes.fromhex("0000803f000000c0")


@pytest.mark.parametrize(
    "tensor",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int64)[::3],
        np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        np.arange(4, dtype=">f4"),
        np.arange(4, dtype=">i8"),
    ],
    ids=["transposed", "strided", "fortran", "big-endian float", "big-endian integer"],
)
def test_values_travel_whatever_their_order_in_memory(tensor):
    assert np.array_equal(from_request(request_of({"x": tensor}))["x"], tensor)


def broken(*, raw=(b"\0" * 8,), **changes):
    message = pb.ModelInferRequest()
    message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 2], **changes})
    message.raw_input_contents.extend(raw)
    return message


MALFORMED = {
    "too few bytes": (broken(raw=[b"\0" * 7]), "needs 8 bytes, got 7"),
    "too many bytes": (broken(raw=[b"\0" * 12]), "needs 8 bytes, got 12"),
    "no bytes": (broken(raw=[b""]), "needs 8 bytes, got 0"),
    "negative shape": (broken(shape=[-1, 2]), r"\(-1, 2\)"),
    "two negatives": (broken(shape=[-1, -2]), r"\(-1, -2\)"),
    "huge shape": (broken(shape=[2**40, 2**40]), "bytes"),
    "huge and empty": (broken(shape=[2**62, 2**62, 0], raw=[b""]), None),
    "unknown type": (broken(datatype="FP16"), "FP16"),
    "our own name of a type": (broken(datatype="float32"), "float32"),
    "no type": (broken(datatype=""), "of no type"),
    "more raw contents than tensors": (broken(raw=[b"\0" * 8] * 2), "2 raw contents for 1"),
    "neither raw nor typed": (broken(raw=[]), "holds 0 values"),
    "too few typed values": (broken(raw=[], contents=pb.InferTensorContents(fp32_contents=[1.0])), "holds 1"),
    "typed values of another type": (
        broken(raw=[], contents=pb.InferTensorContents(int64_contents=[1, 2])),
        "holds 0 values",
    ),
    "typed values beyond their type": (
        broken(raw=[], datatype="UINT8", contents=pb.InferTensorContents(uint_contents=[1, 300])),
        None,
    ),
    "a bool that is neither": (broken(datatype="BOOL", raw=[b"\1\2"]), "bytes other than 0 and 1"),
    "too many axes": (broken(shape=[1] * 99 + [2]), None),
}


@pytest.mark.parametrize(("message", "why"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests_are_input_errors(message, why):
    with pytest.raises(InputError, match=why):
        from_request(message)


@pytest.mark.parametrize(("message", "why"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_answers_are_protocol_errors(message, why):
    answer = pb.ModelInferResponse(raw_output_contents=list(message.raw_input_contents))
    for entry in message.inputs:
        answer.outputs.add(name=entry.name, datatype=entry.datatype, shape=entry.shape, contents=entry.contents)
    with pytest.raises(ProtocolError, match=why):
        from_outputs(answer)


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("FP32", "fp32_contents", [1.5, -2.0]),
        ("INT64", "int64_contents", [2**60, -1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("BOOL", "bool_contents", [False, True]),
    ],
)
def test_typed_contents_are_accepted(datatype, field, values):
    message = broken(raw=[], datatype=datatype, contents=pb.InferTensorContents(**{field: values}))
    tensor = from_request(message)["x"]
    assert tensor.shape == (1, 2)
    assert DATATYPES[tensor.dtype.name] == datatype
    assert tensor.tolist() == [values]


def test_empty_tensors_are_read():
    assert from_request(broken(shape=[0, 2], raw=[b""]))["x"].shape == (0, 2)


def test_limits_are_in_mebibytes_both_ways():
    assert dict(grpc_options(3)) == {
        "grpc.max_send_message_length": 3 * 1024**2,
        "grpc.max_receive_message_length": 3 * 1024**2,
    }
