from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from offramp.bundle.onnxfile import external_data


def outside() -> TensorProto:
    """A tensor whose values lie in a file of their own."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def inside() -> TensorProto:
    return numpy_helper.from_array(np.ones(2, np.float32), "w")


def graph(tensor: TensorProto | None = None, *, constant: TensorProto | None = None) -> GraphProto:
    """With the tensor as an initialiser, or as a constant node."""
    nodes = [helper.make_node("Constant", [], ["w"], value=constant)] if constant else []
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph(
        [*nodes, helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor] if tensor else []
    )


def nested(inner: GraphProto) -> GraphProto:
    """In both branches of an If."""
    node = helper.make_node("If", ["c"], ["y"], then_branch=graph(inside()), else_branch=inner)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph([node], "outer", [condition], [out])


def model(g: GraphProto) -> ModelProto:
    return helper.make_model(g)


def with_function(tensor: TensorProto) -> ModelProto:
    body = [helper.make_node("Constant", [], ["y"], value=tensor)]
    function = helper.make_function("own", "f", [], ["y"], body, [helper.make_opsetid("", 18)])
    return helper.make_model(graph(inside()), functions=[function])


def with_function_default(tensor: TensorProto) -> ModelProto:
    """The tensor as the default of a function's attribute."""
    node = helper.make_node("Constant", [], ["y"])
    ref = node.attribute.add(name="value", ref_attr_name="w")
    ref.type = 4  # AttributeProto.TENSOR
    function = helper.make_function(
        "own",
        "f",
        [],
        ["y"],
        [node],
        [helper.make_opsetid("", 18)],
        attribute_protos=[helper.make_attribute("w", tensor)],
    )
    return helper.make_model(graph(inside()), functions=[function])


def with_sparse(tensor: TensorProto) -> ModelProto:
    g = graph(inside())
    g.sparse_initializer.add(values=tensor, indices=numpy_helper.from_array(np.zeros(2, np.int64)), dims=[4])
    return model(g)


def with_tensor_list(tensor: TensorProto) -> ModelProto:
    g = graph(inside())
    g.node[0].attribute.append(helper.make_attribute("many", [inside(), tensor]))
    return model(g)


PLACES = {
    "initialiser": lambda t: model(graph(t)),
    "constant": lambda t: model(graph(constant=t)),
    "If branch, initialiser": lambda t: model(nested(graph(t))),
    "If branch, constant": lambda t: model(nested(graph(constant=t))),
    "If in an If": lambda t: model(nested(nested(graph(t)))),
    "function": with_function,
    "function's default": with_function_default,
    "sparse initialiser": with_sparse,
    "list of tensors": with_tensor_list,
}


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_it_is(place: str) -> None:
    assert external_data(PLACES[place](outside()).SerializeToString())
    assert not external_data(PLACES[place](inside()).SerializeToString())


def test_either_sign_of_it_is_enough() -> None:
    only_location, only_entry = outside(), outside()
    del only_location.external_data[:]
    only_entry.data_location = TensorProto.DEFAULT
    for tensor in (only_location, only_entry):
        assert external_data(model(graph(tensor)).SerializeToString())


def test_bytes_that_are_no_onnx() -> None:
    with pytest.raises(ValueError, match="not an ONNX file"):
        external_data(b"\xff\xff\xff no protobuf")


def test_a_real_model_has_none(digits_graph: ModelProto) -> None:
    assert not external_data(digits_graph.SerializeToString())
