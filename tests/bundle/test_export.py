from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

import offramp as off
from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export, export_graph
from offramp.bundle.preprocessing import preprocess
from offramp.bundle.quantiser import MODES
from offramp.errors import BundleError, ExportError, OfframpError
from offramp.runtime.stages import Stages
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLinear


def logits_of(net: off.MultiExit, x: Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        return [z.numpy() for z in net.eval()(x)]


def chained(bundle: Bundle, x: np.ndarray) -> list[np.ndarray]:
    """The logits of every exit, stage by stage."""
    stages, tensors, found = Stages(bundle), [x], []
    for i in range(bundle.held):
        tensors, _ = stages.stage(i, tensors)
        if i < bundle.manifest.last and bundle.manifest.exits[i] is not None:
            found.append(stages.exit(i, tensors)[0])
    return [*found, tensors[0]]


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle.load(digits_bundle)


def test_the_whole_graph_equals_torch(
    digits_net: off.MultiExit, digits_graph: ModelProto, digit_inputs: Tensor
) -> None:
    x = digit_inputs[:256]
    session = ort.InferenceSession(digits_graph.SerializeToString())
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert [o.name for o in session.get_outputs()] == ["cut_0", "exit_0", "cut_1", "exit_1", "exit_2"]
    got = session.run(["exit_0", "exit_1", "exit_2"], {"input": x.numpy()})
    for logits, expected in zip(got, logits_of(digits_net, x), strict=True):
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 256])
def test_chained_stages_equal_torch(
    digits_net: off.MultiExit, bundle: Bundle, digit_inputs: Tensor, batch: int
) -> None:
    x = digit_inputs[:256]
    expected = logits_of(digits_net, x)
    parts = [chained(bundle, part.numpy()) for part in x[: 256 if batch == 256 else 6].split(batch)]
    for i, whole in enumerate(expected):
        got = np.concatenate([part[i] for part in parts])
        np.testing.assert_allclose(got, whole[: len(got)], atol=1e-4, rtol=1e-4)


def test_the_manifests_preprocessing_is_trainings(
    bundle: Bundle, digit_images: tuple[np.ndarray, np.ndarray], digit_inputs: Tensor
) -> None:
    assert bundle.manifest.preprocessing is not None
    got = preprocess(digit_images[0][:50], bundle.manifest.preprocessing)
    np.testing.assert_allclose(got, digit_inputs[:50].numpy(), rtol=1e-6)


def test_only_standard_operators(bundle: Bundle) -> None:
    for graph in bundle.manifest.graphs():
        model = onnx.load_from_string(bundle.read(graph))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}, graph.file
        assert not model.functions


def stage_weights(net: off.MultiExit) -> list[int]:
    return [sum(p.numel() for p in stage.parameters()) for stage in net.model]


def test_sizes_follow_the_weights(digits_net: off.MultiExit, bundle: Bundle) -> None:
    """Exactly |W| values lie in the files: no zeros, no masks, no copies."""
    m = bundle.manifest
    assert [s.graph.parameters for s in m.stages] == stage_weights(digits_net)
    heads = [sum(p.numel() for p in head.parameters()) for head in digits_net.heads]
    assert [e.graph.parameters for e in m.exits[:-1] if e is not None and e.graph is not None] == heads
    for graph in m.graphs():
        assert 0 <= graph.bytes - 4 * graph.parameters < 25_000, graph.file
    dense = [2 * 800 + 32 * 32 * 9, 32 * 64 * 9 + 64 * 64 * 9, 1024 * 64 + 640]
    assert m.stages[1].graph.bytes < 4 * dense[1] / 2.5
    assert m.stages[2].graph.bytes < 4 * dense[2] / 2.5


def test_densities_by_hand(bundle: Bundle) -> None:
    first, last = (800, 9216), (65536, 640)
    expected = [
        (first[0] + first[1] / 4) / sum(first),
        0.25,
        (last[0] / 4 + last[1]) / sum(last),
    ]
    assert [s.density for s in bundle.manifest.stages] == pytest.approx(expected)


def test_macs_and_depths_by_hand(bundle: Bundle) -> None:
    m = bundle.manifest
    expected = [
        25 * 32 * 14 * 14 + 32 * 32 * 9 * 7 * 7 // 4,
        32 * 64 * 9 * 7 * 7 // 4 + 64 * 64 * 9 * 4 * 4 // 4,
        1024 * 64 // 4 + 640,
    ]
    assert [s.graph.macs for s in m.stages] == expected
    assert [e.graph.macs for e in m.exits[:-1] if e is not None and e.graph is not None] == [5120, 10240]
    assert [stage.depth for stage in m.stages] == [2, 4, 6]


def test_the_manifest_says_where_it_comes_from(digits_net: off.MultiExit, bundle: Bundle) -> None:
    m = bundle.manifest
    assert m.name == "digits"
    assert m.classes == tuple("0123456789")
    assert [(t.name, t.dtype, t.shape) for t in m.inputs] == [("input", "float32", (1, 28, 28))]
    assert {"python", "offramp", "torch", "onnx", "onnxscript"} == set(m.provenance.versions)
    sparse = {
        name: layer.pattern.digest
        for name, layer in digits_net.named_modules()
        if isinstance(layer, (SparseConv2d, SparseLinear))
    }
    assert {name: recipe["digest"] for name, recipe in m.provenance.patterns.items()} == sparse
    assert len(sparse) == 4


def test_calibration_becomes_tuning_and_codecs(digits_net: off.MultiExit, bundle: Bundle) -> None:
    found = digits_net.calibration
    assert found is not None
    assert bundle.tuning.temperatures == found.temperatures
    assert bundle.tuning.thresholds == (*found.thresholds, None)
    assert bundle.tuning.mode == "uint8"
    assert bundle.tuning.confidence == found.confidence == "max_softmax"
    assert [(c.cut, c.mode) for c in bundle.manifest.codecs] == [(i, mode) for i in (-1, 0, 1) for mode in MODES]
    sizes = {
        "uint8": [784, 1568, 1024],
        "uint8c": [784, 1568, 1024],
        "uint4": [392, 784, 512],
        "uint2": [196, 392, 256],
    }
    for mode, expected in sizes.items():
        assert [bundle.manifest.codec(i, mode).encoder.outputs[0].bytes for i in (-1, 0, 1)] == expected


def test_the_confidence_of_calibration_becomes_the_tuning_s(
    digits_net: off.MultiExit, quick_export: None, tmp_path: Path
) -> None:
    net = copy.copy(digits_net)
    assert net.calibration is not None
    net.calibration = dataclasses.replace(net.calibration, confidence="margin")
    assert off.export(net, torch.zeros(1, 1, 28, 28), tmp_path / "margin").tuning.confidence == "margin"


def test_cuts_survive_the_uint8_codec(digits_net: off.MultiExit, bundle: Bundle, digit_inputs: Tensor) -> None:
    x = digit_inputs[:64]
    stages = Stages(bundle)
    with torch.no_grad():
        features, _ = digits_net.eval().forward_features(x)
    for cut, tensor in enumerate((x, *features), start=-1):
        packed, _ = stages.encode(cut, "uint8", [tensor.numpy()])
        back, _ = stages.decode(cut, "uint8", packed)
        low, high = float(tensor.min()), float(tensor.max())
        inside = (tensor.numpy() >= 0.4 * low) & (tensor.numpy() <= 0.4 * high)
        assert inside.any()
        assert np.abs(back[0] - tensor.numpy())[inside].max() <= (high - min(low, 0)) / 255


class Unusual(nn.Module):
    """Tuples and negative numbers for dimensions, uneven kernels, two tensors that meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.block = nn.Sequential(
            SparseConv2d(8, 16, (2, 4), 0.5, blocks=4, padding="same", layout="strided", groups=2),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
        )
        self.body = nn.Sequential(SparseLinear(16, 32, 0.75, layout="strided"), nn.LayerNorm((32,)), nn.GELU())
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.stem(x)))
        x = torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(-2, -1))), dim=-1).unflatten(1, (2, 16))
        return self.last(self.body(x).sum(dim=1))


@pytest.fixture(scope="module")
def unusual(tmp_path_factory: pytest.TempPathFactory) -> tuple[off.MultiExit, Bundle]:
    """A network that was never calibrated, with tokens (N, T, F) at its second cut."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 9, 7)
    net = off.MultiExit(Unusual(), {"block": off.PooledHead(5, 2), "body": off.PooledHead(5)}, example_input=x)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 9, 7))  # batch norm's statistics
    return net, export(net, x, tmp_path_factory.mktemp("unusual") / "unusual.bundle", seed=7, metrics={"a": [1.5]})


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_unusual_network_equals_torch(unusual: tuple[off.MultiExit, Bundle], batch: int) -> None:
    net, bundle = unusual
    x = torch.randn(batch, 3, 9, 7, generator=torch.Generator().manual_seed(batch))
    for got, expected in zip(chained(bundle, x.numpy()), logits_of(net, x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)


def test_an_uncalibrated_network_lets_nothing_leave_early(unusual: tuple[off.MultiExit, Bundle]) -> None:
    _, bundle = unusual
    assert bundle.manifest.codecs == ()
    assert bundle.tuning.mode == "float"
    assert bundle.tuning.temperatures == (1.0, 1.0, 1.0)
    assert all(t is not None and t > 1 for t in bundle.tuning.thresholds[:-1])
    assert bundle.tuning.thresholds[-1] is None
    assert bundle.manifest.modes(0) == ("float",)


def test_what_is_given_for_the_record_is_kept(unusual: tuple[off.MultiExit, Bundle]) -> None:
    provenance = Bundle.load(unusual[1].path).manifest.provenance
    assert provenance.seed == 7
    assert provenance.metrics == {"a": [1.5]}


def test_a_classifier_of_its_own_is_part_of_the_last_stage(tmp_path: Path) -> None:
    body = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    x = torch.randn(3, 6)
    net = off.MultiExit(body, {"1": None}, classifier=torch.nn.Linear(4, 2), example_input=x)
    made = off.export(net, x, tmp_path / "moved.bundle")
    for got, expected in zip(chained(made, x.numpy()), logits_of(net, x), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert [s.graph.parameters for s in made.manifest.stages] == [35, 24 + 10]
    assert [s.density for s in made.manifest.stages] == [1, 1]
    assert [s.depth for s in made.manifest.stages] == [1, 3]


def test_exporting_leaves_the_network_as_it_was() -> None:
    example = torch.randn(2, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net = off.MultiExit(model, {"0": off.PooledHead(2)}, example_input=example)
    net.train()
    net.model[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    export_graph(net, example)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items() if isinstance(v, Tensor))
    assert (net.training, net.model[0].training, net.model[1].training) == (True, True, False)


def test_a_network_that_cannot_be_exported_is_told_why() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x))
            return out if float(out.sum()) > 0 else -out

    net = off.MultiExit(Branches(), {"a": off.PooledHead(2)}, example_input=torch.zeros(1, 4))
    with pytest.raises(ExportError, match=r"torch\.onnx\.export failed: \S"):
        export_graph(net, torch.zeros(1, 4))


def test_what_skips_a_tap_crosses_with_it(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            return self.b(first.relu()) + first.tanh() + x

    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    net = off.MultiExit(Around(), {"a": off.PooledHead(4), "b": off.PooledHead(4)}, example_input=x)
    bundle = export(net, x, tmp_path / "x.bundle")
    crossing = [bundle.manifest.cut(i) for i in range(2)]
    assert [[t.name for t in cut] for cut in crossing] == [
        ["cut_0_0", "cut_0_1"],
        ["cut_1_0", "cut_1_1", "cut_1_2"],
    ]
    for got, wanted in zip(chained(bundle, x.numpy()), logits_of(net, x), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    off.calibrate(net, [(x.repeat(2, 1), torch.arange(14) % 4)], delta=None)
    stages = Stages(export(net, x, tmp_path / "y.bundle"))
    tensors = [x.numpy()]
    for cut in range(2):
        tensors, _ = stages.stage(cut, tensors)
        packed, _ = stages.encode(cut, "uint8c", tensors)
        assert [p.dtype for p in packed] == [np.uint8] * len(tensors)
        for got, wanted in zip(stages.decode(cut, "uint8c", packed)[0], tensors, strict=True):
            np.testing.assert_allclose(got, wanted, atol=0.25)  # even the largest values are hardly clipped


EXAMPLE = torch.zeros(1, 1, 28, 28)


@pytest.mark.usefixtures("quick_export")
def test_the_same_network_has_the_same_digest(digits_net: off.MultiExit, bundle: Bundle, tmp_path: Path) -> None:
    again = export(digits_net, EXAMPLE, tmp_path / "again.bundle", name="other")
    assert again.manifest.name == "other"
    assert again.digest == bundle.digest


@pytest.mark.usefixtures("quick_export")
def test_an_older_bundle_is_replaced(digits_net: off.MultiExit, bundle_copy: Path) -> None:
    export(digits_net, EXAMPLE, bundle_copy, classes=list("abcdefghij"))
    assert Bundle.load(bundle_copy).manifest.classes == tuple("abcdefghij")


@pytest.mark.usefixtures("quick_export")
def test_a_failed_export_leaves_the_older_bundle(digits_net: off.MultiExit, bundle_copy: Path) -> None:
    before = Bundle.load(bundle_copy).manifest
    with pytest.raises(BundleError, match="2 class names"):
        export(digits_net, EXAMPLE, bundle_copy, classes=["a", "b"])
    assert Bundle.load(bundle_copy).manifest == before


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize(
    "wrong",
    [{"name": "my digits"}, {"name": "a/b"}, {"metrics": {"model": object()}}],
    ids=["name with a blank", "name with a slash", "metrics that are no JSON"],
)
def test_settings_that_cannot_be_written_are_our_errors(
    digits_net: off.MultiExit, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    """pydantic's own exceptions do not cross our seams (DESIGN.md §10)."""
    with pytest.raises(OfframpError):
        export(digits_net, EXAMPLE, tmp_path / "x.bundle", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_export")
def test_a_directory_name_that_is_no_bundle_name(digits_net: off.MultiExit, tmp_path: Path) -> None:
    bundle = export(digits_net, EXAMPLE, tmp_path / "my digits.bundle")
    assert bundle.manifest.name == "my-digits"


def test_a_bundle_tells_nothing_of_the_machine_it_was_made_on(bundle: Bundle) -> None:
    """Source paths give away the machine, take room on the edge, and make the digest depend on the checkout."""
    places = {Path(off.__file__).parent, Path(torch.__file__).parent}
    for graph in bundle.manifest.graphs():
        content = bundle.read(graph)
        assert not [place for place in places if str(place).encode() in content], graph.file


class Branching(nn.Module):
    """Chooses its way by its input's values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = x + 1
        return self.last(x)


def test_a_network_that_cannot_be_exported_says_why(tmp_path):
    net = off.MultiExit(Branching(), {"first": off.PooledHead(2)}, example_input=torch.zeros(1, 4))
    with pytest.raises(ExportError, match=r"torch\.onnx\.export failed: .*data-dependent") as caught:
        off.export(net, torch.zeros(1, 4), tmp_path / "branching.bundle")
    assert "step 1/3" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "branching.bundle").exists()


def test_inputs_of_another_shape_in_calibration_leave_cuts_as_float(
    digits_net: off.MultiExit, tmp_path: Path
) -> None:
    net = copy.copy(digits_net)
    assert net.calibration is not None
    net.calibration = dataclasses.replace(net.calibration, inputs=(np.zeros((4, 1, 30, 30), np.float32),))
    with pytest.warns(UserWarning, match=r"float only.*\(N, 1, 28, 28\), got float32 of shape \(4, 1, 30, 30\)"):
        made = off.export(net, torch.zeros(1, 1, 28, 28), tmp_path / "other.bundle")
    assert made.manifest.codecs == ()
    assert made.tuning.mode == "float"
    assert made.tuning.thresholds == (*net.calibration.thresholds, None)
