"""Single graphs as int8, and bundles from other people's files with int8 stages."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_graphs import Builder, classifier, outputs, value

import offramp as off
from offramp.bundle.bundle import Bundle
from offramp.bundle.cuts import find_cuts
from offramp.bundle.foreign import bundle_from_onnx
from offramp.bundle.int8 import int8_graph, is_int8
from offramp.errors import ExportError
from offramp.runtime.evaluation import exit_logits
from offramp.runtime.stages import Stages

X = np.random.default_rng(0).normal(size=(40, 3, 12, 12)).astype(np.float32)


def feeds(x: NDArray[np.float32] = X, name: str = "x") -> list[dict[str, NDArray[np.float32]]]:
    return [{name: x[:20]}, {name: x[20:]}]


def convolutions(opset: int = 18) -> ModelProto:
    """Convolution, batch normalisation, Relu, a second convolution in two groups, pooling, a linear layer."""
    net = Builder()
    shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    first = net.add("Conv", "x", net.weight(16, 3, 3, 3), **shape)
    ones = [net.weight(16) for _ in range(3)]
    variance = onnx.helper.make_tensor("variance", TensorProto.FLOAT, [16], [2.0] * 16)
    net.weights.append(variance)
    normed = net.add("BatchNormalization", first, *ones, "variance")
    second = net.add("Conv", net.add("Relu", normed), net.weight(16, 8, 3, 3), group=2, **shape)
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", second)))
    net.nodes.append(onnx.helper.make_node("Gemm", [pooled, net.weight(16, 5), net.weight(5)], ["y"], name="last"))
    graph = onnx.helper.make_graph(
        net.nodes, "convolutions", [value("x", "N", 3, 12, 12)], [value("y", "N", 5)], net.weights
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture(scope="module")
def plain() -> ModelProto:
    return convolutions()


@pytest.fixture(scope="module")
def quantised(plain: ModelProto) -> ModelProto:
    found = int8_graph(plain, feeds())
    assert found is not None
    return found


def test_it_takes_and_gives_the_same_and_says_about_the_same(plain: ModelProto, quantised: ModelProto) -> None:
    for part in ("input", "output"):
        assert getattr(quantised.graph, part) == getattr(plain.graph, part)
    (before,), (after,) = outputs(plain, X), outputs(quantised, X)
    assert 0 < np.abs(before - after).max() < 0.03 * np.ptp(before)
    assert len(quantised.SerializeToString()) < len(plain.SerializeToString())


def test_every_runtime_that_takes_the_float_graph_takes_this_one(plain: ModelProto, quantised: ModelProto) -> None:
    assert quantised.ir_version == plain.ir_version
    assert list(quantised.opset_import) == list(plain.opset_import)
    assert {node.domain for node in quantised.graph.node} == {""}
    assert not quantised.metadata_props
    onnx.checker.check_model(quantised, full_check=True)


def test_weights_are_int8_and_no_pair_of_products_overflows_16_bits(quantised: ModelProto) -> None:
    """Two products of uint8 and int8 are added in 16 bits where there is no VNNI: 2·255·64 is less than 2^15."""
    weights = [numpy_helper.to_array(t) for t in quantised.graph.initializer if len(t.dims) > 1]
    assert [(w.dtype, w.ndim) for w in weights] == [(np.int8, 4), (np.int8, 4), (np.int8, 2)]
    assert all(32 < np.abs(w.astype(int)).max() <= 64 for w in weights)


def test_batch_normalisation_goes_into_the_convolution_and_logits_stay_float(quantised: ModelProto) -> None:
    kinds = [node.op_type for node in quantised.graph.node]
    assert "BatchNormalization" not in kinds
    assert quantised.graph.node[-1].op_type == "Gemm"
    assert {t.data_type for t in quantised.graph.initializer if len(t.dims) == 4} == {TensorProto.INT8}


def test_the_same_graph_and_samples_give_the_same_bytes(plain: ModelProto, quantised: ModelProto) -> None:
    again = int8_graph(convolutions(), feeds())
    assert again is not None
    assert again.SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)
    other = int8_graph(plain, feeds(2 * X))
    assert other is not None
    assert other.SerializeToString(deterministic=True) != quantised.SerializeToString(deterministic=True)


def test_the_quantiser_is_not_heard(plain: ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    heard: list[logging.LogRecord] = []
    handler = logging.Handler(0)
    handler.emit = heard.append  # type: ignore[method-assign]
    root.addHandler(handler)
    handlers = list(root.handlers)
    try:
        int8_graph(plain, feeds())
        with pytest.raises(ExportError):
            int8_graph(plain, feeds(X[:, :2]))
        assert root.handlers == handlers
        assert heard == []
        logging.getLogger("offramp.test").error("everybody else is heard again")
        assert len(heard) == 1
    finally:
        root.removeHandler(handler)
    assert capfd.readouterr() == ("", "")


def test_what_is_int8_already_is_seen(plain: ModelProto, quantised: ModelProto) -> None:
    assert not is_int8(plain)
    assert is_int8(quantised)


@pytest.mark.parametrize("kind", ["Identity", "Relu", "GlobalAveragePool"])
def test_without_weights_there_is_nothing_to_quantise(kind: str) -> None:
    net = Builder()
    net.nodes.append(onnx.helper.make_node(kind, ["x"], ["y"]))
    size = 1 if kind == "GlobalAveragePool" else 12
    ends = [value("x", "N", 3, 12, 12)], [value("y", "N", 3, size, size)]
    graph = onnx.helper.make_graph(net.nodes, "none", *ends)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    assert int8_graph(model, feeds()) is None


def test_what_the_quantiser_refuses_is_our_error(plain: ModelProto) -> None:
    with pytest.raises(ExportError, match="opset 13 or newer, not 11"):
        int8_graph(convolutions(opset=11), feeds())
    with pytest.raises(ExportError, match=r"cannot quantise the graph: .*[Dd]imension"):
        int8_graph(plain, feeds(X[:, :2]))
    with pytest.raises(ExportError, match="cannot quantise the graph"):
        int8_graph(plain, [])


# --- masks ----------------------------------------------------------------------------------------------


def attention(masked: float, kind: str) -> ModelProto:
    """One layer of attention over 6 tokens with 8 features, the last two of which are masked, then logits."""
    net = Builder()
    query, key, values = (net.add("MatMul", "x", net.weight(8, 8)) for _ in range(3))
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1]))
    hidden = net.constant(np.arange(6) >= 4)
    if kind == "Add":
        # Made of the input, or it would be a constant when the quantiser comes.
        some = net.add("Where", net.add("Greater", "x", "low"), net.constant(np.float32([0])), "never")
        nothing = net.add("ReduceSum", some, net.ints(2), keepdims=1)
        mask = net.add("Where", hidden, net.constant(np.float32([masked])), nothing)
        scores = net.add("Add", scores, mask)
    else:
        scores = net.add("Where", hidden, net.constant(np.float32([masked])), scores)
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), values)
    flat = net.add("Flatten", net.add("Add", "x", mixed))
    net.nodes.append(onnx.helper.make_node("Gemm", [flat, net.weight(48, 5), net.weight(5)], ["y"]))
    for name in ("low", "never"):
        net.weights.append(numpy_helper.from_array(np.float32([-1e9 if name == "low" else 1]), name))
    graph = onnx.helper.make_graph(
        net.nodes, "attention", [value("x", "N", 6, 8)], [value("y", "N", 5)], net.weights
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


TOKENS = np.random.default_rng(2).normal(size=(40, 6, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["Add", "Where"])
@pytest.mark.parametrize("masked", [-np.inf, float(np.finfo(np.float32).min), -1e4])
def test_a_mask_leaves_attention_its_scores(masked: float, kind: str) -> None:
    """With the mask among the values that 8 bits stand for, all scores would be one."""
    plain = attention(masked, kind)
    found = int8_graph(plain, feeds(TOKENS))
    assert found is not None
    (before,), (after,) = outputs(plain, TOKENS), outputs(found, TOKENS)
    assert 0 < np.abs(before - after).max() < 0.03 * np.ptp(before)
    weights = [t for t in found.graph.initializer if len(t.dims) == 2]
    assert {t.data_type for t in weights if t.dims[0] == 8} == {TensorProto.INT8}


def test_other_activations_without_a_range_are_refused() -> None:
    net = Builder()
    first = net.add("MatMul", "x", net.weight(8, 8))
    endless = net.add("Where", net.constant(np.arange(8) >= 4), net.constant(np.float32([np.inf])), first)
    ones = net.constant(np.ones((8, 5), np.float32))
    net.nodes.append(onnx.helper.make_node("MatMul", [endless, ones], ["y"]))
    ends = [value("x", "N", 6, 8)], [value("y", "N", 6, 5)]
    graph = onnx.helper.make_graph(net.nodes, "endless", *ends, net.weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(ExportError, match="'where_1' reaches infinity on the calibration samples"):
        int8_graph(model, feeds(TOKENS))


# --- bundles from foreign files -------------------------------------------------------------------------


def logits_of(bundle: Bundle, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return exit_logits(Stages(bundle), x)[-1]


def test_skip_connections_cross_int8_stages(tmp_path: Path) -> None:
    """Several tensors per cut, some of which stages only hand on."""
    x = np.random.default_rng(1).normal(size=(24, 3, 16, 16)).astype(np.float32)
    model = classifier()
    places = [cut.name for cut in find_cuts(model, output="logits") if len(cut.tensors) > 1][:2]
    before = bundle_from_onnx(model, places, tmp_path / "float.bundle", output="logits", samples=x)
    labels = logits_of(before, x).argmax(axis=1)
    found = off.quantize_stages(before, tmp_path / "int8.bundle", calibration=x, inputs=x, labels=labels)
    assert max(len(before.manifest.cut(i)) for i in range(2)) > 1
    assert found.stages == (0, 1, 2)
    assert found.comparison.exits[-1].accuracy_after > 0.8
    first, second = (Stages(b).stage(0, [x])[0] for b in (before, found.bundle))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * np.ptp(a))
