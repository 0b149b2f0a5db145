"""Places to cut other people's graphs: each one listed works, and nothing better is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx_graphs import MODELS, Builder, encoder, inception, unet, value

from offramp.bundle.cuts import Cut, best_cuts, cuts_at, find_cuts
from offramp.bundle.dataflow import Dataflow, graph_inputs, needs
from offramp.bundle.onnxload import load_onnx, prepared
from offramp.bundle.partition import graph_cost, partition
from offramp.bundle.shapes import feed_of, session
from offramp.errors import ConfigError, ExportError


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ModelProto:
    return MODELS[request.param]()


def run(
    model: ModelProto, inputs: Sequence[NDArray[Any]], outputs: Sequence[str], optimise: bool = True
) -> list[NDArray[Any]]:
    feed = {v.name: x for v, x in zip(graph_inputs(model), inputs, strict=True)}
    results: list[NDArray[Any]] = session(model, optimise=optimise).run(list(outputs), feed)
    return results


def check_chain(model: ModelProto, cuts: Sequence[Cut], batches: Sequence[int] = (1, 3)) -> None:
    """Stages between these cuts, one after the other, give what the whole graph gives; their MACs add up."""
    whole = prepared(model)
    final = model.graph.output[-1].name
    names = [[t.name for t in cut.tensors] for cut in cuts]
    pieces = partition(whole, names, [None] * len(cuts), final=final)
    macs = [graph_cost(stage).macs for stage in pieces.stages]
    for i, cut in enumerate(cuts):
        assert (cut.macs_before, cut.macs_after) == (sum(macs[: i + 1]), sum(macs[i + 1 :]))
    assert pieces.depths[:-1] == tuple(cut.depth for cut in cuts)
    for batch in batches:
        fed = list(feed_of(whole, batch, seed=batch).values())
        # Where the runtime fuses nothing, cut and whole are the same to the bit.
        tensors = fed
        for stage in pieces.stages:
            tensors = run(stage, tensors, [v.name for v in stage.graph.output], optimise=False)
        np.testing.assert_array_equal(tensors[0], run(model, fed, [final], optimise=False)[0])
        tensors = fed
        for stage, cut in itertools.zip_longest(pieces.stages, cuts):
            tensors = run(stage, tensors, [v.name for v in stage.graph.output])
            if cut is not None:
                assert [t.shape for t in tensors] == [(batch, *t.shape) for t in cut.tensors]
        (expected,) = run(model, fed, [final])
        np.testing.assert_allclose(tensors[0], expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


def test_every_place_listed_works(model: ModelProto) -> None:
    found = find_cuts(model)
    assert found
    for cut in found:
        check_chain(model, [cut])


def test_all_places_at_once(model: ModelProto) -> None:
    """Skip connections and masks are handed on from stage to stage."""
    check_chain(model, find_cuts(model))


def test_places_go_from_input_to_output(model: ModelProto) -> None:
    found = find_cuts(model)
    total = {cut.macs_before + cut.macs_after for cut in found}
    assert len(total) == 1
    work = [cut.macs_before for cut in found]
    assert work == sorted(set(work))
    input_bytes = {round(cut.bytes / cut.compression) for cut in found}
    assert len(input_bytes) == 1
    least = input_bytes.pop()
    for cut in found:
        assert cut.bottleneck == (cut.bytes < least)
        least = min(least, cut.bytes)


def dominators(model: ModelProto) -> set[str]:
    """Every tensor through which all ways from the inputs to the output lead, by networkx."""
    flow = Dataflow(model)
    graph = nx.DiGraph(("start", name) for name in flow.inputs)
    for i, node in enumerate(model.graph.node):
        if flow.live.intersection(node.output):
            graph.add_edges_from((n, i) for n in needs(node) if n in flow.live)
            graph.add_edges_from((i, n) for n in node.output)
    last = model.graph.output[-1].name
    before = nx.immediate_dominators(graph, "start")
    found, at = set(), before[last]
    while at != "start":
        found.add(at)
        at = before[at]
    return {name for name in found if isinstance(name, str)} - set(flow.inputs)


def test_single_tensors_separate_where_they_dominate_the_output(model: ModelProto) -> None:
    whole = prepared(model)
    separating = set()
    for name in Dataflow(whole).live - set(Dataflow(whole).inputs):
        try:
            separating.update(t.name for t in cuts_at(model, [name])[0].tensors)
        except ExportError as error:
            reason = str(error)
            if not any(words in reason for words in ("not separate", "travel", "own output", "not lead")):
                raise
    assert separating
    assert separating == {n for n in dominators(whole) if n in Dataflow(whole).values}
    listed = find_cuts(model)
    for (cut,) in (cuts_at(model, [name]) for name in separating):
        if cut.macs_before and cut.macs_after:
            (here,) = (place for place in listed if place.macs_before == cut.macs_before)
            assert here.bytes <= cut.bytes


def test_the_place_after_a_relu_is_the_one_listed() -> None:
    names = [cut.name for cut in find_cuts(inception())]
    assert "maxpool_2" in names  # after the convolution, its Relu and the pooling that makes it smaller
    assert not [name for name in names if name.startswith("conv_")]
    (before,), (after,) = cuts_at(inception(), ["conv_0"]), cuts_at(inception(), ["relu_1"])
    assert (before.bytes, before.macs_before) == (after.bytes, after.macs_before)


def test_skip_connections_cross() -> None:
    found = find_cuts(unet())
    most = max(len(cut.tensors) for cut in found)
    assert most == 3  # both skips and what goes down
    assert {t.name for t in next(c for c in found if len(c.tensors) == 3).tensors} >= {"relu_3", "relu_8"}


def test_a_mask_that_later_layers_need_crosses() -> None:
    found = find_cuts(encoder())
    inside = [cut for cut in found if cut.depth > 3 and cut.macs_after > cut.macs_before]
    assert inside
    assert all(any(t.shape in ((6,), (1, 1, 6)) for t in cut.tensors) for cut in inside)
    check_chain(encoder(), cuts_at(encoder(), ["add_36+unsqueeze_3"]))


def test_the_sizes_of_an_early_tensor_do_not_cross() -> None:
    assert all(
        t.dtype != "int64" or t.name in ("ids", "mask") for cut in find_cuts(encoder()) for t in cut.tensors
    )


def test_another_output_is_another_network() -> None:
    model = inception()
    aux, whole = find_cuts(model, output="aux"), find_cuts(model)
    assert aux[0].macs_before == whole[0].macs_before
    assert aux[0].macs_after < whole[0].macs_after
    inner = find_cuts(model, output="concat_16")
    assert inner[-1].macs_after > 0


@st.composite
def networks(draw: st.DrawFn) -> ModelProto:
    """Random graphs of products, sums and reshapes to the sizes of any earlier tensor; two inputs at most."""
    b = Builder()
    width = 4
    tensors = ["x", "y"][: draw(st.integers(1, 2))]
    inputs = [value(name, "N", width) for name in tensors]
    for _ in range(draw(st.integers(1, 10))):
        one, two = (draw(st.sampled_from(tensors)) for _ in range(2))
        kind = draw(st.sampled_from(["MatMul", "Add", "Relu", "Concat", "Reshape"]))
        if kind == "MatMul":
            tensors.append(b.add("MatMul", one, b.weight(width, width)))
        elif kind == "Add":
            tensors.append(b.add("Add", one, two))
        elif kind == "Relu":
            tensors.append(b.add("Relu", one))
        elif kind == "Concat":
            tensors.append(b.add("MatMul", b.add("Concat", one, two, axis=1), b.weight(2 * width, width)))
        else:
            n = b.add("Gather", b.add("Shape", two), b.ints(0))
            folded = b.add("Reshape", one, b.add("Concat", n, b.ints(2, 2), axis=0))
            tensors.append(b.add("Reshape", folded, b.add("Shape", two)))
    out = b.add("MatMul", b.add("Concat", *tensors, axis=1), b.weight(width * len(tensors), 2))
    return b.model(inputs, [value(out, "N", 2)])


@settings(max_examples=25, deadline=None)
@given(networks())
def test_random_graphs_can_be_cut_everywhere(model: ModelProto) -> None:
    found = find_cuts(model)
    check_chain(model, found)
    for cut in found[::3]:
        check_chain(model, [cut])
        assert cuts_at(model, [cut.name]) == (cut,)
    if found and found[0].macs_before:
        share = (found[0].macs_before + 1) / (found[0].macs_before + found[0].macs_after)
        if share < 1:
            check_chain(model, best_cuts(model, [share]))


# --- the fewest bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(0.3,), (0.25, 0.5), (0.25, 0.5, 0.9)])
@pytest.mark.parametrize("make", [unet, encoder, inception])
def test_best_cuts_are_no_worse_than_those_listed_and_nested(
    make: Callable[[], ModelProto], limits: tuple[float, ...]
) -> None:
    model = make()
    found = best_cuts(model, limits)
    assert len(found) == len(limits)
    before = 0
    listed = find_cuts(model)
    for cut, limit in zip(found, limits, strict=True):
        assert cut.proven
        total = cut.macs_before + cut.macs_after
        assert before < cut.macs_before <= limit * total
        if before == 0:
            assert cut.bytes <= min(c.bytes for c in listed if 0 < c.macs_before <= limit * total)
        before = cut.macs_before
    check_chain(model, found, batches=(3,))


def test_the_best_cut_may_lie_where_the_files_order_does_not_lead() -> None:
    """Two branches that shrink: the order of the file widens the second before it narrows the first."""
    b = Builder()
    wide = [b.add("MatMul", "x", b.weight(8, 32)) for _ in range(2)]
    narrow = [b.add("MatMul", w, b.weight(32, 2)) for w in wide]
    out = b.add("MatMul", b.add("Concat", *narrow, axis=1), b.weight(4, 16))
    model = b.model([value("x", "N", 8)], [value(out, "N", 16)])
    first, *_ = best_cuts(model, [0.55])
    assert {t.name for t in first.tensors} in ({"x", narrow[0]}, {"x", narrow[1]})
    assert first.bytes == 40
    assert min(cut.bytes for cut in find_cuts(model) if cut.macs_before <= 0.55 * 1088) > 40


@pytest.mark.parametrize("limits", [(), (0.5, 0.2), (0.5, 0.5), (0.0,), (1.0,), (-1.0,), (float("nan"),)])
def test_limits_that_do_not_rise_between_0_and_1(limits: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rise between 0 and 1"):
        best_cuts(inception(), limits)


def test_a_limit_below_the_first_operation_says_so() -> None:
    with pytest.raises(ExportError, match=r"no place has a head of more than 0.00% and at most 0.01%"):
        best_cuts(inception(), [0.0001])


def test_a_graph_that_multiplies_nothing() -> None:
    b = Builder()
    model = b.model([value("x", "N", 4)], [value(b.add("Abs", b.add("Relu", "x")), "N", 4)])
    assert find_cuts(model) == ()
    assert cuts_at(model, ["relu_0"])[0].bytes == 16
    with pytest.raises(ExportError, match="multiplies nothing"):
        best_cuts(model, [0.5])


# --- names that do not work -----------------------------------------------------------------------------


def test_an_unknown_name_says_which_are_near() -> None:
    with pytest.raises(ConfigError, match=r"no tensor 'maxpol_2'; did you mean maxpool_2"):
        cuts_at(inception(), ["maxpol_2"])
    with pytest.raises(ConfigError, match=r"no tensor 'zzz'; `offramp cuts MODEL\.onnx --all`"):
        cuts_at(inception(), ["zzz"])
    with pytest.raises(ConfigError, match="no tensor 'logit'; did you mean logits"):
        find_cuts(inception(), output="logit")


def test_a_cut_that_does_not_separate_names_what_else_must_cross() -> None:
    with pytest.raises(ExportError, match=r"'relu_11' does not separate .* cut at (\S+), or elsewhere") as caught:
        cuts_at(unet(), ["relu_11"])
    proposed = str(caught.value).split("cut at ")[-1].removesuffix(", or elsewhere")
    assert set(proposed.split("+")) == {"relu_3", "relu_8", "relu_11"}
    check_chain(unet(), cuts_at(unet(), [proposed]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w0", "does not depend on the input"),
        ("shape_5", "does not depend on the input"),
        ("ids+mask", "is the input itself"),
        (encoder().graph.output[0].name, "is the network's own output"),
    ],
)
def test_names_that_are_no_cut(name: str, message: str) -> None:
    with pytest.raises((ConfigError, ExportError), match=message):
        cuts_at(encoder(), [name])


def test_what_only_an_exit_needs_is_no_place() -> None:
    with pytest.raises(ExportError, match="'aux' does not lead to the output 'logits'"):
        cuts_at(inception(), ["aux"])


def test_what_nothing_needs_is_left_out() -> None:
    with pytest.raises(ConfigError, match="needs relu_1; cut at maxpool_2"):
        cuts_at(inception(), ["maxpool_2+relu_1"])


def test_cuts_side_by_side_and_twice() -> None:
    model = inception()
    with pytest.raises(ConfigError, match="named twice"):
        cuts_at(model, ["maxpool_2", "maxpool_2"])
    names = ["maxpool_2+relu_4", "maxpool_2+relu_8"]
    with pytest.raises(ConfigError, match="side by side"):
        cuts_at(model, names)


def test_cuts_are_sorted() -> None:
    found = cuts_at(inception(), ["concat_16", "relu_1"])
    assert [cut.name for cut in found] == ["relu_1", "concat_16"]


def test_a_name_with_a_plus_in_it() -> None:
    model = inception()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == "maxpool_2":
                    names[i] = "max+pool"
    assert cuts_at(model, ["max+pool"])[0].tensors[0].shape == (8, 8, 8)


def test_tensors_that_cannot_travel_are_passed_over_and_refused_by_name() -> None:
    """The batch folded into heads, and half floats."""
    b = Builder()
    x = b.add("MatMul", "x", b.weight(8, 8))
    folded = b.add("Reshape", x, b.ints(-1, 4))
    half = b.add("Cast", b.add("MatMul", folded, b.weight(4, 4)), to=TensorProto.FLOAT16)
    back = b.add("Cast", b.add("Reshape", half, b.ints(-1, 8)), to=TensorProto.FLOAT)
    out = b.add("MatMul", back, b.weight(8, 2))
    model = b.model([value("x", "N", 8)], [value(out, "N", 2)])
    assert [cut.name for cut in find_cuts(model)] == [x, back]
    with pytest.raises(ExportError, match=f"{folded!r} cannot travel: it has not the batch first"):
        cuts_at(model, [folded])
    with pytest.raises(ExportError, match="'reshape_4' is FLOAT16; float32, uint8, int64, bool can travel"):
        cuts_at(model, ["reshape_4"])


def test_what_is_multiplied() -> None:
    """By hand: a transposed convolution, an einsum, a recurrent layer."""
    b = Builder()
    up = b.add("ConvTranspose", "x", b.weight(2, 3, 2, 2), strides=[2, 2])  # 2·4·4 values times 3·2·2
    row = b.add("Reshape", up, b.ints(0, 8, 24))
    mixed = b.add("Einsum", row, b.weight(24, 5), equation="...f,fo->...o")  # 8·24·5
    turned = b.add("Transpose", mixed, perm=[1, 0, 2])
    state = b.add("LSTM", turned, b.weight(1, 16, 5), b.weight(1, 16, 4), hidden_size=4)  # 8·(16·5 + 16·4)
    last = b.add("Flatten", b.add("Transpose", b.add("Squeeze", state, b.ints(1)), perm=[1, 0, 2]))
    model = b.model([value("x", "N", 2, 4, 4)], [value(last, "N", 32)])
    assert graph_cost(model).macs == 32 * 12 + 8 * 24 * 5 + 8 * (16 * 5 + 16 * 4)


# --- real networks --------------------------------------------------------------------------------------


def resnet56() -> tuple[Any, int]:
    from offramp.reproduce.resnet import CifarResNet

    return CifarResNet(56), 32


def mobilenet() -> tuple[Any, int]:
    from offramp.reproduce.mobilenet import MobileNetV2

    return MobileNetV2(), 64


@pytest.fixture(scope="module", params=[resnet56, mobilenet])
def well_known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelProto, int]:
    """Exported by torch as its users do, and the multiply-accumulates that torch's layers make."""
    import torch
    from torch import nn

    from offramp.bundle.export import quiet_exporter

    torch.manual_seed(0)
    net, size = request.param()
    net.eval()
    x = torch.zeros(1, 3, size, size)
    file = tmp_path_factory.mktemp("well-known") / "net.onnx"
    axes = {"input": {0: "batch"}}
    with quiet_exporter():
        torch.onnx.export(net, (x,), file, dynamo=False, input_names=["input"], dynamic_axes=axes)
    macs = []
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda m, _, out: macs.append(out.numel() * m.weight[0].numel()))
    net(x)
    return load_onnx(file), sum(macs)


def test_well_known_networks(well_known: tuple[ModelProto, int]) -> None:
    """Cut at all places at once, at a few alone, and where the fewest bytes cross."""
    model, macs = well_known
    found = find_cuts(model)
    assert len(found) > 50
    assert sum(cut.bottleneck for cut in found) >= 1
    assert {cut.macs_before + cut.macs_after for cut in found} == {macs}
    check_chain(model, found)
    for cut in found[::18]:
        check_chain(model, [cut])
    best = best_cuts(model, [0.3, 0.6])
    assert all(cut.proven for cut in best)
    check_chain(model, best)


@pytest.mark.slow
def test_well_known_networks_at_every_place(well_known: tuple[ModelProto, int]) -> None:
    model, _ = well_known
    for cut in find_cuts(model):
        check_chain(model, [cut])
