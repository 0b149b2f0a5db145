"""From other people's ONNX files to bundles that edge and server run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_graphs import Builder, branch, classifier, encoder, inception, scripted, unet, value
from typer.testing import CliRunner

import offramp as off
from offramp.bundle.cuts import find_cuts
from offramp.bundle.foreign import bundle_from_onnx
from offramp.bundle.quantiser import MODES
from offramp.bundle.shapes import session
from offramp.cli import app
from offramp.errors import ConfigError, ExportError, InputError
from offramp.runtime.tail import TailRequest
from offramp.serving.server import GrpcServer

CUTS = ("maxpool_2+relu_4+relu_8", "concat_16", "relu_24+concat_22")
X = np.random.default_rng(5).normal(size=(6, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign") / "inception.onnx"
    onnx.save(inception(), path)
    return path


@pytest.fixture(scope="module")
def bundle(file: Path) -> off.Bundle:
    return bundle_from_onnx(
        file, CUTS, file.with_name("inception.bundle"), exits={1: "aux"}, samples=X, classes="abcde"
    )


def whole(model: ModelProto, x: NDArray[np.float32], output: str = "logits") -> NDArray[np.float32]:
    result: NDArray[np.float32] = session(model).run([output], {model.graph.input[0].name: x})[0]
    return result


def test_the_bundle_s_names_and_shapes(bundle: off.Bundle) -> None:
    manifest = bundle.manifest
    assert [t.name for t in manifest.inputs] == ["input"]
    assert [[t.name for t in manifest.cut(i)] for i in range(3)] == [
        ["cut_0_0", "cut_0_1", "cut_0_2"],
        ["cut_1"],
        ["cut_2_0", "cut_2_1"],
    ]
    assert [e is not None and e.logits.name for e in manifest.exits] == [False, "exit_1", False, "exit_3"]
    assert manifest.provenance.metrics["cut_at"]["cut_1"] == "concat_16"
    assert bundle.tuning.temperatures == (None, 1.0, None, 1.0)
    assert bundle.tuning.thresholds == (None, 2.0, None, None)
    assert {(c.cut, c.mode) for c in manifest.codecs} == {(i, mode) for i in range(-1, 3) for mode in MODES}


def test_opset_and_ir_stay(bundle: off.Bundle) -> None:
    for graph in bundle.manifest.graphs():
        if not graph.file.startswith("codecs"):
            model = onnx.load_model_from_string(bundle.read(graph))
            assert (model.ir_version, [o.version for o in model.opset_import]) == (8, [17])


def test_each_weight_is_stored_once(bundle: off.Bundle) -> None:
    stored = [
        t.name
        for graph in bundle.manifest.graphs()
        for t in onnx.load_model_from_string(bundle.read(graph)).graph.initializer
        if t.name.removeprefix("graph.").startswith("w")
    ]
    assert len(stored) == len(set(stored))


@pytest.mark.parametrize("split", [-1, 0, 1, 2])
@pytest.mark.parametrize(
    ("mode", "tolerance"), [("float", 1e-5), ("uint8", 0.05), ("uint8c", 0.05), ("uint4", 0.2)]
)
def test_edge_and_server_give_the_whole_network_s_answer(
    bundle: off.Bundle, split: int, mode: str, tolerance: float
) -> None:
    class Always(off.FixedSplit):
        def choose(self, context: object) -> off.Action:
            return off.Action(split, (), mode)

    expected = whole(inception(), X)
    with off.Edge(bundle, off.Tail(off.Stages(bundle)), Always(split), deadline_ms=60_000) as edge:
        for result, logits in zip(edge.run(X), expected, strict=True):
            assert (result.status, result.where, result.exit) == ("ok", "server", 3)
            assert result.probabilities is not None
            odds = np.exp(logits - logits.max())
            np.testing.assert_allclose(result.probabilities, odds / odds.sum(), atol=tolerance)


def test_the_exit_gates_and_the_edge_alone_works(bundle: off.Bundle) -> None:
    with off.Edge(bundle, policy=off.EdgeOnly()) as edge:
        labels = [r.label for r in edge.run(X)]
    assert labels == whole(inception(), X).argmax(1).tolist()
    with off.Edge(bundle, off.Tail(off.Stages(bundle)), off.FixedSplit(1, alpha=0.0)) as edge:
        early = list(edge.run(X))
    assert [(r.exit, r.where) for r in early] == [(1, "edge")] * len(X)
    assert [r.label for r in early] == whole(inception(), X, "aux").argmax(1).tolist()


def test_a_skip_that_crosses_every_cut(tmp_path: Path) -> None:
    model = classifier()
    names = [cut.name for cut in find_cuts(model)][1:7]
    made = bundle_from_onnx(model, names, tmp_path / "unet.bundle")
    for split in range(len(names)):
        with off.Edge(made, off.Tail(off.Stages(made)), off.FixedSplit(split), deadline_ms=60_000) as edge:
            found = [r.probabilities for r in edge.run(X)]
        odds = np.exp(whole(model, X))
        np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-5)


def test_an_exit_may_need_only_some_of_what_crosses(tmp_path: Path) -> None:
    model = classifier()
    mean = onnx.helper.make_node("ReduceMean", ["relu_8"], ["early"], axes=[1, 3], keepdims=0)
    model.graph.node.insert(10, mean)
    weight = onnx.numpy_helper.from_array(np.eye(8, 2, dtype=np.float32), "w_early")
    model.graph.initializer.append(weight)
    model.graph.node.insert(11, onnx.helper.make_node("MatMul", ["early", "w_early"], ["early_logits"]))
    made = bundle_from_onnx(model, ["relu_3+relu_8"], tmp_path / "b.bundle", exits={0: "early_logits"})
    head = made.manifest.exits[0]
    assert head is not None
    assert head.graph is not None
    assert [t.name for t in head.graph.inputs] == ["cut_0_0", "cut_0_1"]
    with (
        off.Edge(made, policy=off.FixedSplit(1)) as edge,
        off.Edge(made, off.Tail(off.Stages(made)), off.FixedSplit(0, alpha=0.0)) as early,
    ):
        assert [r.exit for r in edge.run(X)] == [1] * len(X)
        found = list(early.run(X))
    assert [r.exit for r in found] == [0] * len(X)
    model.graph.output.append(value("early_logits", "batch", 2))
    assert [r.label for r in found] == whole(model, X, "early_logits").argmax(1).tolist()


@pytest.mark.parametrize("batch", [1, 5])
def test_the_server_takes_batches(tmp_path: Path, batch: int) -> None:
    """Where the graph reshapes by the sizes of a tensor that did not cross."""
    model = scripted()
    made = bundle_from_onnx(model, ["flat"], tmp_path / "scripted.bundle")
    x = np.random.default_rng(1).normal(size=(batch, 10)).astype(np.float32)
    stages = off.Stages(made)
    tensors, _ = stages.stage(0, [x])
    logits, _ = stages.stage(1, tensors)
    np.testing.assert_allclose(logits[0], session(model).run(None, {"x": x})[0], atol=1e-5)


def test_a_bundle_of_one_stage(tmp_path: Path) -> None:
    made = bundle_from_onnx(inception(), [], tmp_path / "whole.bundle")
    assert made.manifest.last == 0
    with off.Edge(made) as edge:
        assert [r.label for r in edge.run(X)] == whole(inception(), X).argmax(1).tolist()


def test_the_same_model_gives_the_same_digest(bundle: off.Bundle, file: Path, tmp_path: Path) -> None:
    again = bundle_from_onnx(
        file, CUTS, tmp_path / "again.bundle", exits={1: "aux"}, samples=X, name="other", classes="abcde"
    )
    assert again.digest == bundle.digest


def test_offramp_s_own_export_can_be_cut_elsewhere(
    digits_graph: ModelProto, digits_bundle: Path, digit_images: tuple[NDArray[np.uint8], object], tmp_path: Path
) -> None:
    """With its exits, whose tensors have a bundle's names already."""
    made = bundle_from_onnx(
        digits_graph, ["cut_1", "cut_0"], tmp_path / "again.bundle", exits={0: "exit_0", 1: "exit_1"}
    )
    only_second = bundle_from_onnx(digits_graph, ["cut_1"], tmp_path / "one.bundle", exits={0: "exit_1"})
    known = off.Stages(off.Bundle.load(digits_bundle))
    x = digit_images[0][:4, None].astype(np.float32) / np.float32(255)
    cuts, _ = known.stage(0, [x])
    second, _ = known.stage(1, cuts)
    for bundle, end in ((made, 1), (only_second, 0)):
        stages = off.Stages(bundle)
        tensors = [x]
        for i in range(end + 1):
            tensors, _ = stages.stage(i, tensors)
        np.testing.assert_allclose(tensors[0], second[0], atol=1e-5)
        np.testing.assert_allclose(stages.exit(end, tensors)[0], known.exit(1, second)[0], atol=1e-4)
        np.testing.assert_allclose(stages.stage(end + 1, tensors)[0], known.stage(2, second)[0], atol=1e-4)
    assert [s.depth for s in made.manifest.stages] == [s.depth for s in known.bundle.manifest.stages]
    assert [s.graph.macs for s in made.manifest.stages] == [s.graph.macs for s in known.bundle.manifest.stages]


TEXT = {
    "ids": np.random.default_rng(1).integers(0, 20, (5, 6)),
    "mask": (np.arange(6) < np.array([[6], [5], [3], [2], [1]])).astype(np.int64),
}


def test_several_inputs(tmp_path: Path) -> None:
    """Token ids and an attention mask: what the mask was made into crosses, as the places say."""
    model = encoder()
    names = [cut.name for cut in find_cuts(model)][2::4]
    made = bundle_from_onnx(model, names, tmp_path / "text.bundle")
    assert [(t.name, t.dtype, t.shape) for t in made.manifest.inputs] == [
        ("ids", "int64", (6,)),
        ("mask", "int64", (6,)),
    ]
    logits = session(model).run(None, TEXT)[0]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    tail = off.Tail(off.Stages(made))
    np.testing.assert_allclose(tail.infer(TailRequest("text", TEXT)).logits, logits, atol=1e-5)
    for split in range(-1, len(names)):
        with off.Edge(made, tail, off.FixedSplit(split), deadline_ms=60_000) as edge:
            samples = [dict(zip(TEXT, sample, strict=True)) for sample in zip(*TEXT.values(), strict=True)]
            found = [r.probabilities for r in edge.run(samples)]
        np.testing.assert_allclose(found, odds / odds.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ({"ids": TEXT["ids"]}, "the input mask is missing"),
        (TEXT["ids"], "takes 2 inputs, not one ndarray"),
        (
            {**TEXT, "mask": TEXT["mask"][:2]},
            r"expected 5 samples of mask .* of shape \(2, 6\)",
        ),
        ({**TEXT, "mask": TEXT["mask"] > 0}, "mask as int64 .* got bool"),
    ],
)
def test_samples_of_several_inputs_that_do_not_fit(samples: Any, words: str, tmp_path: Path) -> None:
    model = encoder()
    with pytest.raises(InputError, match=words):
        bundle_from_onnx(model, [find_cuts(model)[3].name], tmp_path / "no.bundle", samples=samples)


def test_the_command_takes_samples_by_name(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "text.onnx")
    np.savez(tmp_path / "text.npz", **TEXT)
    np.save(tmp_path / "ids.npy", TEXT["ids"])
    out = str(tmp_path / "text.bundle")
    call = ["cuts", str(tmp_path / "text.onnx"), "--best", "0.6", "--out", out, "--samples"]
    done = CliRunner().invoke(app, [*call, str(tmp_path / "text.npz")])
    assert done.exit_code == 0, done.output
    made = off.Bundle.load(out)
    assert [t.name for t in made.manifest.inputs] == ["ids", "mask"]
    assert made.manifest.modes(-1) == ("float",)
    assert made.manifest.modes(0) == ("float", *MODES)
    wrong = CliRunner().invoke(app, [*call, str(tmp_path / "ids.npy")])
    assert isinstance(wrong.exception, InputError)
    assert "give a dict by name" in str(wrong.exception)


def switched(kind: int, called: str = "on") -> ModelProto:
    """An image and a vector that says which channels count, before and after the cut."""
    b = Builder()
    weights = b.add("Cast", called, to=onnx.TensorProto.FLOAT)
    x = b.conv("image", 3, 4)
    first = b.add("Mul", b.add("GlobalAveragePool", x), b.add("Unsqueeze", weights, b.ints(2, 3)))
    second = b.add("Mul", b.linear(b.add("Flatten", first), 4, 4), weights)
    b.nodes.append(onnx.helper.make_node("Gemm", [second, b.weight(4, 3)], ["logits"]))
    inputs = [value("image", "N", 3, 8, 8), value(called, "N", 4, kind=kind)]
    return b.model(inputs, [value("logits", "N", 3)])


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_an_image_and_a_second_tensor(dtype: str, tmp_path: Path) -> None:
    model = switched(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    feed = {"image": X[:, :, :8, :8].copy(), "on": (np.arange(24).reshape(6, 4) % 3 > 0).astype(dtype)}
    names = [cut.name for cut in find_cuts(model)]
    made = bundle_from_onnx(model, names, tmp_path / "image.bundle")
    assert [t.dtype for t in made.manifest.inputs] == ["float32", dtype]
    expected = session(model).run(None, feed)[0]
    with GrpcServer(off.Tail(off.Stages(made)), port=0) as server:
        for split in range(-1, len(names)):
            policy = off.FixedSplit(split)
            with off.Edge(made, f"127.0.0.1:{server.port}", policy, deadline_ms=60_000) as edge:
                result = edge.infer({name: x[2] for name, x in feed.items()})
            odds = np.exp(expected[2])
            np.testing.assert_allclose(result.probabilities, odds / odds.sum(), atol=1e-5)
            assert result.where == "server"


@pytest.mark.parametrize("called", ["cut_0", "exit_1", "cut_0_1"])
def test_an_input_cannot_be_called_as_a_cut(called: str, tmp_path: Path) -> None:
    model = switched(onnx.TensorProto.BOOL, called)
    with pytest.raises(ExportError, match=f"the input '{called}' is called as bundles call .* rename it"):
        bundle_from_onnx(model, [find_cuts(model)[0].name], tmp_path / "no.bundle")


def test_a_type_that_cannot_travel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'on' is INT32; float32, uint8, int64, bool can travel"):
        bundle_from_onnx(switched(onnx.TensorProto.INT32), ["relu_2"], tmp_path / "no.bundle")


# --- refusals -------------------------------------------------------------------------------------------


def test_outputs_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"shape \['N', 2, 16, 16\]; a bundle answers with logits"):
        bundle_from_onnx(unet(), [], tmp_path / "no.bundle")
    b = Builder()
    logits = b.add("MatMul", "x", b.weight(4, 3))
    model = b.model([value("x", "N", 4)], [value(b.add("Softmax", logits), "N", 3)])
    with pytest.raises(ExportError, match=f"before the Softmax; name them: --output {logits}"):
        bundle_from_onnx(model, [], tmp_path / "no.bundle")
    assert bundle_from_onnx(model, [], tmp_path / "yes.bundle", output=logits).manifest.last == 0


@pytest.mark.parametrize(
    ("exits", "error", "message"),
    [
        ({3: "aux"}, ConfigError, "there is no cut 3 for an exit; cuts are numbered 0 to 2"),
        ({1: "auxx"}, ConfigError, "computes no tensor 'auxx' for an exit"),
        ({2: "aux"}, ExportError, "exit 2 needs the tensor 'concat_16' besides"),
    ],
)
def test_exits_that_cannot_be(tmp_path: Path, exits: dict[int, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bundle_from_onnx(inception(), CUTS, tmp_path / "no.bundle", exits=exits)
    assert not (tmp_path / "no.bundle").exists()


@pytest.mark.parametrize("samples", [X[:0], X.astype(np.float64), X[:, :2], X * np.inf])
def test_samples_that_do_not_fit(tmp_path: Path, samples: NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="samples"):
        bundle_from_onnx(inception(), CUTS, tmp_path / "no.bundle", samples=samples)


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(off.OfframpError, match="is no bundle"):
        bundle_from_onnx(branch(), ["if_3"], tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_no_torch_is_loaded(file: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from offramp.bundle.foreign import bundle_from_onnx\n"
        f"bundle_from_onnx({str(file)!r}, ['concat_16'], {str(tmp_path / 'b.bundle')!r})\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_cuts_through_which_only_indices_cross_have_no_usual_mode_but_float(tmp_path: Path) -> None:
    net = Builder()
    kept = net.add("Add", "ids", net.ints(1))
    mean = net.add("ReduceMean", net.add("Gather", net.weight(12, 8), kept), axes=[1], keepdims=0)
    net.nodes.append(onnx.helper.make_node("Gemm", [mean, net.weight(8, 3), net.weight(3)], ["y"]))
    model = net.model([value("ids", "N", 6, kind=onnx.TensorProto.INT64)], [value("y", "N", 3)])
    ids = np.random.default_rng(0).integers(0, 10, (20, 6))
    bundle = bundle_from_onnx(model, [kept], tmp_path / "ids.bundle", samples=ids)
    assert bundle.manifest.modes(0) == ("float",)
    assert bundle.tuning.mode == "float"
