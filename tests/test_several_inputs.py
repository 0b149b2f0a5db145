"""Networks with several inputs all the way: trained, exported, split over a real server, tuned, traced, run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tritonclient.grpc import InferenceServerClient
from typer.testing import CliRunner

import offramp as off
from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export
from offramp.cli import app
from offramp.connect import Edge
from offramp.datasets.distortion import Distortion
from offramp.errors import BundleShapeError, ConfigError, DatasetError, InputError
from offramp.policy.base import Action, Policy
from offramp.replay.record import record
from offramp.report.inspection import inspection, inspection_text
from offramp.report.profile import measure
from offramp.runtime.evaluation import exit_logits
from offramp.runtime.labelled import held_out_data
from offramp.runtime.sources import Broken, read_inputs
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest
from offramp.runtime.tuning import tune
from offramp.serving.channel import GrpcChannel
from offramp.serving.server import GrpcServer

TOKENS, WORDS, SAMPLES = 6, 12, 200
IDS = torch.randint(WORDS, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(TOKENS) < (torch.arange(SAMPLES) % 4 + 3).unsqueeze(1)).long()
Y = (IDS[:, 0] >= WORDS // 2).long()
X = {"ids": IDS.numpy(), "attention_mask": MASK.numpy()}

Array = NDArray[Any]


class Encoder(nn.Module):
    """Token ids and an attention mask, made ready once for every layer, to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(WORDS, 16), nn.Linear(16, 2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(3)
        )

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(ids)
        bias = torch.zeros(attention_mask.shape).masked_fill(attention_mask == 0, float("-inf"))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=bias)
        logits: Tensor = self.last(x[:, 0])
        return logits


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        return {"ids": IDS[i], "attention_mask": MASK[i]}, Y[i]


@pytest.fixture(scope="module")
def net() -> off.MultiExit:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = {"layers.0": off.TokenHead(2, "first"), "layers.1": off.TokenHead(2, mask="attention_mask")}
        net = off.MultiExit(Encoder(), heads, example_input={"ids": IDS[:1], "attention_mask": MASK[:1]})
        loader = DataLoader(Samples(), batch_size=25)
        off.fit(net, loader, epochs=4, lr=1e-2, progress=False, accelerator="cpu")
        off.calibrate(net, loader, delta=None)
    return net.eval()


@pytest.fixture(scope="module")
def bundle(net: off.MultiExit, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("several") / "words.bundle"
    return export(net, {"ids": IDS[:1], "attention_mask": MASK[:1]}, path, classes=("low", "high"))


@pytest.fixture(scope="module")
def expected(net: off.MultiExit) -> list[Array]:
    with torch.no_grad():
        return [z.numpy() for z in net(IDS, MASK)]


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    with GrpcServer(Tail(Stages(bundle)), port=0) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "words.npz", **X, y=Y.numpy())
    return tmp_path / "words.npz"


class Split(Policy):
    """Sends one cut, whatever is seen."""

    name = "split"

    def __init__(self, split: int, exits: tuple[int, ...] = ()) -> None:
        self.action = Action(split, exits)

    def choose(self, context: object) -> Action:
        return self.action


def test_the_mask_crosses_every_cut_as_it_came(bundle: Bundle) -> None:
    manifest = bundle.manifest
    cuts = [[(t.name, t.dtype, t.shape) for t in manifest.cut(i)] for i in range(-1, 2)]
    mask = "int64", (TOKENS,)
    feature = "float32", (TOKENS, 16)
    assert cuts == [
        [("ids", "int64", (TOKENS,)), ("attention_mask", *mask)],
        [("cut_0_0", *feature), ("cut_0_1", *mask)],
        [("cut_1_0", *feature), ("cut_1_1", *mask)],
    ]
    weights = sum(stage.graph.parameters for stage in manifest.stages)
    assert weights == pytest.approx(sum(p.numel() for p in Encoder().parameters()), rel=0.01)  # each stored once


def test_stages_equal_torch(bundle: Bundle, expected: list[Array]) -> None:
    stages = Stages(bundle)
    for inputs in (X, tuple(X.values()), dict(reversed(X.items()))):
        told: list[int] = []
        for got, logits in zip(exit_logits(stages, inputs, batch=64, on_batch=told.append), expected, strict=True):
            np.testing.assert_allclose(got, logits, atol=1e-5)
        assert told == [64, 64, 64, 8]


@pytest.mark.parametrize("split", [-1, 0, 1, 2])
def test_an_edge_and_a_server_at_every_split(
    bundle: Bundle, address: str, expected: list[Array], split: int
) -> None:
    with Edge(bundle, server=address, policy=Split(split), deadline_ms=20_000) as edge:
        forms: list[Any] = [
            {"ids": IDS[0].numpy(), "attention_mask": MASK[0].numpy()},
            {"attention_mask": MASK[1:2].numpy(), "ids": IDS[1]},
            (IDS[2].numpy(), MASK[2].numpy()),
            [IDS[3].tolist(), MASK[3].tolist()],
        ]
        for i, result in enumerate(edge.run(forms)):
            assert (result.status, result.exit) == ("ok", 2), result.error
            assert result.where == ("edge" if split == 2 else "server")
            logits = expected[2][i] / (bundle.tuning.temperatures[2] or 1.0)
            chance = np.exp(logits - logits.max())
            np.testing.assert_allclose(result.probabilities, chance / chance.sum(), atol=1e-5)
            assert result.payload_bytes == sum(t.bytes for t in bundle.manifest.cut(split)) * (split < 2)


def test_a_batch_leaves_the_server_sample_by_sample(bundle: Bundle, address: str) -> None:
    """The mask of those that go on goes on with them."""
    confident = tune(Stages(bundle), X, Y.numpy(), max_drop=0.5, delta=None).tuning
    some = confident.model_copy(update={"thresholds": (0.9, 0.9, None)})
    early = Tail(Stages(Bundle(bundle.path, bundle.manifest, some, bundle.held)))
    reply = early.infer(TailRequest(bundle.manifest.name, X))
    logits = exit_logits(Stages(bundle), X)
    assert reply.exits is not None
    for i, leaves in enumerate(reply.exits.tolist()):
        np.testing.assert_allclose(reply.logits[i], logits[leaves][i], atol=1e-5)
    channel = GrpcChannel(address)
    again = channel.infer(TailRequest(bundle.manifest.name, X, final=True))
    np.testing.assert_allclose(again.logits, logits[2], atol=1e-5)
    channel.close()


def test_what_the_server_says_of_its_models(address: str) -> None:
    with InferenceServerClient(address) as client:
        whole, tail = (client.get_model_metadata(name) for name in ("words", "words-tail-0"))
    assert [(t.name, t.datatype, list(t.shape)) for t in whole.inputs] == [
        ("ids", "INT64", [-1, TOKENS]),
        ("attention_mask", "INT64", [-1, TOKENS]),
    ]
    assert [(t.name, t.datatype) for t in tail.inputs] == [("cut_0_0", "FP32"), ("cut_0_1", "INT64")]


def test_profile_inspection_and_slowdown(bundle: Bundle, address: str) -> None:
    channel = GrpcChannel(address)
    facts = measure(Stages(bundle), channel, runs=3)
    channel.close()
    assert [split["split"] for split in facts["splits"]] == [-1, 0, 1, 2]
    found = inspection(bundle)
    assert [t["name"] for t in found["inputs"]] == ["ids", "attention_mask"]
    assert f"ids int64 {TOKENS} + attention_mask int64 {TOKENS}, sent as float" in inspection_text(found)
    Stages(bundle, slowdown=1.5, sleep=lambda seconds: None)


def test_tuning_and_tracing(bundle: Bundle, npz: Path) -> None:
    data = held_out_data(str(npz), bundle.manifest)
    assert isinstance(data.inputs, dict)
    assert list(data.inputs) == list(X)
    found = tune(Stages(bundle), data.inputs, data.labels, delta=None)
    assert found.calibration.leaves
    trace = record(Stages(bundle), data.first(30))
    assert len(trace) == 30
    assert trace.accuracy[-1] > 0.9
    with pytest.raises(InputError, match=r"a distortion takes pixels.*not 2 inputs"):
        record(Stages(bundle), data, distortion=Distortion.parse("gaussian_noise:0.1", 0))


def test_commands(bundle: Bundle, npz: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "words.bundle"))

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    for command in (["inspect", path], ["profile", path, "--runs", 3], ["tune", path, "--dataset", npz]):
        done = call(*command, *(["--delta", "none"] if command[0] == "tune" else []))
        assert done.exit_code == 0, done.output
    done = call("trace", path, "--dataset", npz, "--out", tmp_path / "t.npz")
    assert done.exit_code == 0, done.output
    done = call("run", path, npz, "--out", tmp_path / "answers.jsonl")
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == SAMPLES
    assert np.mean([a["label"] == y for a, y in zip(answers, Y.tolist(), strict=True)]) > 0.9


# --- wrong things ---------------------------------------------------------------------------------------

ONE = {name: x[0] for name, x in X.items()}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ids": ONE["ids"]}, r"the input attention_mask is missing; .*ids int64 \(N, 6\), attention_mask int64"),
        ({**ONE, "labels": 3}, "there is no input labels; the network takes ids int64"),
        ({**ONE, "ids": ONE["ids"].astype(np.int32)}, "'ids': expected int64 .* got int32"),
        ({**ONE, "attention_mask": np.ones(TOKENS, bool)}, "'attention_mask': expected int64 .* got bool"),
        (
            {**ONE, "attention_mask": X["attention_mask"][:2]},
            r"'attention_mask': .* got int64 of shape \(1, 2, 6\)",
        ),
        (ONE["ids"], "takes 2 inputs, not one ndarray: give a dict by name or a tuple by place"),
        ((ONE["ids"],), "takes 2 inputs, not 1: give a dict"),
        ((*ONE.values(), 1), "takes 2 inputs, not 3"),
        ("hello", "takes 2 inputs, not one str"),
        (None, "takes 2 inputs, not one NoneType"),
        ({**ONE, "ids": [[1, 2], [3]]}, "the input 'ids' is no array"),
        ({**ONE, "ids": torch.zeros(TOKENS, requires_grad=True)}, "the input 'ids' is no array"),
    ],
)
def test_inputs_that_an_edge_refuses(bundle: Bundle, given: Any, words: str) -> None:
    edge = Edge(bundle)
    with pytest.raises(InputError, match=words):
        edge.infer(given)
    bad, good = edge.run([given, ONE])
    assert (bad.status, good.status) == ("failed", "ok")


def test_batches_that_differ(bundle: Bundle) -> None:
    short = {**X, "attention_mask": X["attention_mask"][:7]}
    with pytest.raises(InputError, match="every input needs as many samples; there are 200 of ids, 7 of att"):
        exit_logits(Stages(bundle), short)
    with pytest.raises(InputError, match="200 of ids, 7 of att"):
        tune(Stages(bundle), short, Y.numpy())
    with pytest.raises(ConfigError, match="200 inputs do not go with 3 labels"):
        tune(Stages(bundle), X, Y[:3].numpy())
    with pytest.raises(InputError, match="same batch"):
        Tail(Stages(bundle)).infer(TailRequest(bundle.manifest.name, short))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"ids": X["ids"]}, "words takes ids, attention_mask; got ids"),
        ({**X, "more": X["ids"]}, "got ids, attention_mask, more"),
        ({"x": X["ids"], "attention_mask": X["attention_mask"]}, "words takes ids"),
        ({**X, "ids": X["ids"].astype(np.float32)}, "'ids': expected int64"),
    ],
)
def test_requests_that_a_server_refuses(address: str, tensors: dict[str, Array], words: str) -> None:
    channel = GrpcChannel(address)
    with pytest.raises(off.errors.ServerRefusedError, match=words):
        channel.infer(TailRequest("words", tensors))
    channel.close()


def test_preprocessing_makes_one_input(bundle: Bundle, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "words.bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["preprocessing"] = {"color": "grey", "height": 2, "width": 3}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleShapeError, match=r"makes one input of an image, but the network takes ids .*leave it"
    ):
        Bundle.load(path)


def test_bundles_from_before_there_were_several(bundle: Bundle, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "words.bundle"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["input"] = manifest.pop("inputs")[0]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(off.errors.BundleManifestError, match="inputs: Field required"):
        Bundle.load(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X["ids"], "y": Y.numpy()}, "`ids`, `attention_mask` and labels `y`.* it holds x, y"),
        (X, "y is not a file"),
        ({**X, "y": Y[:4].numpy()}, r"int64 \(200, 6\), int64 \(200, 6\) and int64 \(4,\)"),
    ],
)
def test_labelled_files_that_cannot_be(bundle: Bundle, tmp_path: Path, arrays: Any, words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=words):
        held_out_data(str(tmp_path / "x.npz"), bundle.manifest)


def test_images_are_no_text(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"no preprocessing.*`ids`, `attention_mask`.*ids int64 \(N, 6\)"):
        held_out_data("mnist-subset", bundle.manifest)


def _npz(**arrays: Array) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "x.npz", **arrays)
        return folder / "x.npz"

    return write


def _npy(folder: Path) -> Path:
    np.save(folder / "x.npy", X["ids"])
    return folder / "x.npy"


def _png(folder: Path) -> Path:
    Image.new("L", (3, 2)).save(folder / "x.png")
    return folder / "x.png"


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_npy, "one array; an .npz file with ids int64"),
        (_png, "no preprocessing; give .npz files with the arrays ids int64"),
        (_npz(ids=X["ids"]), "input attention_mask is missing.*it holds ids"),
        (_npz(x=X["ids"], y=Y.numpy()), "input ids, attention_mask is missing.*it holds x, y"),
        (_npz(**{**X, "ids": X["ids"][:3]}), r"as many samples.*ids \(3, 6\)"),
        (_npz(**{**X, "ids": X["ids"][0]}), r"as many samples"),
    ],
)
def test_files_that_cannot_be_run(bundle: Bundle, tmp_path: Path, write: Any, words: str) -> None:
    ((_, found),) = read_inputs([write(tmp_path)], bundle.manifest.inputs, None)
    assert isinstance(found, Broken)
    assert re.search(words, found.reason), found.reason


def test_files_of_one_sample_and_of_many(bundle: Bundle, tmp_path: Path) -> None:
    files = [tmp_path / "one.npz", tmp_path / "many.npz"]
    np.savez(files[0], **ONE)
    np.savez(files[1], **X)
    found = list(read_inputs(files, bundle.manifest.inputs, None))
    assert len(found) == 1 + SAMPLES
    assert found[0][0] == f"{files[0]}[0]"
    results = list(Edge(bundle).run(x for _, x in found[:2]))
    assert [r.status for r in results] == ["ok", "ok"]
    assert results[0].probabilities == results[1].probabilities


def test_an_input_cannot_be_called_as_the_labels_are(bundle: Bundle, npz: Path) -> None:
    spec = bundle.manifest.inputs[0].model_copy(update={"name": "y"})
    manifest = bundle.manifest.model_copy(update={"inputs": (*bundle.manifest.inputs, spec)})
    with pytest.raises(ConfigError, match=r"an input called 'y'.*rename the input"):
        held_out_data(str(npz), manifest)
