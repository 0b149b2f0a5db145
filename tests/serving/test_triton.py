"""Triton repositories: read as Triton reads them, and run step by step beside our own chain."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_repository import Repository, triton_server

import offramp as off
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.preprocessing import preprocess
from offramp.errors import BundleError, ConfigError, ExportError
from offramp.policy.base import Action, Policy
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest, tail_models
from offramp.serving.triton import triton_configs, write_triton


@pytest.fixture(scope="module")
def bundle(digits_bundle):
    return off.Bundle.load(digits_bundle)


@pytest.fixture(scope="module")
def skipping(tmp_path_factory):
    """Two inputs, one of which crosses every cut beside the first one's features; every mode at every cut."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(6, 6)).astype(np.float32) for name in ("w0", "w1", "w2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Add", ["c", "y"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Cast", ["ids"], ["g"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["e", "g"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["answer"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 6]) for n in ("x", "y")]
    inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 6]))
    graph = helper.make_graph(
        nodes,
        "skipping",
        inputs,
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    samples = {n: rng.normal(size=(40, 6)).astype(np.float32) for n in ("x", "y")}
    samples["ids"] = rng.integers(0, 5, (40, 6))
    path = tmp_path_factory.mktemp("skipping") / "skipping.bundle"
    return off.bundle_from_onnx(model, ["b+y+ids", "e+ids"], path, samples=samples), samples


@pytest.fixture(scope="module")
def repository(bundle, tmp_path_factory):
    """The digits' repository, as Triton would have loaded it."""
    place = tmp_path_factory.mktemp("triton") / "repository"
    assert write_triton(bundle, place, max_batch=7) == tail_models(bundle.manifest)
    return Repository(place)


def crossing(bundle, inputs):
    """By cut, what crosses for some inputs."""
    stages = Stages(bundle)
    found = {-1: inputs}
    for i in range(bundle.manifest.last):
        found[i], _ = stages.stage(i, found[i - 1])
    return stages, found


def assert_same_answers(bundle, repository, inputs):
    stages, crossed = crossing(bundle, inputs)
    tail = Tail(stages)
    assert set(repository.ensembles()) == set(tail.models)
    for model in tail.models.values():
        sent, _ = stages.encode(model.cut, model.mode, crossed[model.cut])
        for count in (1, 5):
            some = [tensor[:count] for tensor in sent]
            tensors = {spec.name: tensor for spec, tensor in zip(model.inputs, some, strict=True)}
            ours = tail.infer(TailRequest(model.name, tensors, bundle.digest, final=True))
            theirs = repository.infer(model.name, tensors)
            assert set(theirs) == {"logits"}
            np.testing.assert_allclose(theirs["logits"], ours.logits, rtol=1e-6, atol=1e-6)


def test_every_tail_answers_as_ours(bundle, repository, digit_images):
    modes = {model.mode for model in tail_models(bundle.manifest)}
    assert modes == {"float", "uint8", "uint8c", "uint4", "uint2"}
    assert_same_answers(bundle, repository, [preprocess(digit_images[0][:5], bundle.manifest.preprocessing)])


def test_several_tensors_at_a_cut(skipping, tmp_path):
    bundle, samples = skipping
    write_triton(bundle, tmp_path / "repository")
    assert [len(bundle.manifest.cut(i)) for i in (-1, 0, 1)] == [3, 3, 2]
    inputs = [samples[spec.name][:5] for spec in bundle.manifest.inputs]
    assert_same_answers(bundle, Repository(tmp_path / "repository"), inputs)


def test_weights_are_there_once(bundle, repository):
    models = list(repository.path.glob("*/1/model.onnx"))
    stages = [stage.graph.bytes for stage in bundle.manifest.stages]
    decoders = [codec.decoder.bytes for codec in bundle.manifest.codecs]
    assert len(models) == len(stages) + len(decoders)
    assert sum(file.stat().st_size for file in models) == sum(stages) + sum(decoders)


def test_a_repository_says_which_bundle_it_holds(bundle, repository):
    for name, config in repository.configs.items():
        assert config.max_batch_size == 7
        if name in repository.ensembles():
            assert config.parameters["digest"].string_value == bundle.digest
        else:
            assert config.HasField("dynamic_batching")
            assert [sample.batch_size for sample in config.model_warmup] == [1]


class Turns(Policy):
    """Every split in turn, in every mode it has."""

    def __init__(self, manifest):
        self._actions = [
            Action(cut, exits=(), mode=mode) for cut in range(-1, manifest.last) for mode in manifest.modes(cut)
        ]
        self.count = 0

    def choose(self, context):
        self.count += 1
        return self._actions[(self.count - 1) % len(self._actions)]


def test_an_edge_calls_it_without_change(bundle, repository, digit_images):
    """Over gRPC, with an answer of `logits` alone: the last exit's."""
    images = digit_images[0][:20]
    with off.Edge(bundle) as local:
        expected = [result.probabilities for result in local.run(images)]
    with (
        triton_server(repository) as (address, asked),
        off.Edge(bundle, address, Turns(bundle.manifest), deadline_ms=30_000) as edge,
    ):
        results = list(edge.run(images))
    assert set(asked) == {model.name for model in tail_models(bundle.manifest)}
    assert {(r.status, r.where, r.exit) for r in results} == {("ok", "server", bundle.manifest.last)}
    for result, probabilities in zip(results, expected, strict=True):
        if result.action.mode == "float":
            np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-5)


def test_a_bundle_of_one_stage(skipping, tmp_path):
    manifest = skipping[0].manifest
    last = manifest.stages[-1]
    whole = manifest.model_copy(
        update={"inputs": last.graph.inputs, "stages": (last,), "exits": manifest.exits[-1:], "codecs": ()}
    )
    assert set(triton_configs(whole, 1)) == {"skipping", "skipping-stage-0"}


# --- refusals -------------------------------------------------------------------------------------------


def test_an_edge_copy_is_refused(bundle, tmp_path):
    copy = bundle.edge_copy(tmp_path / "edge.bundle", 1)
    with pytest.raises(ExportError, match="edge copy with 1 of 3 stages; export the whole bundle"):
        write_triton(copy, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("there", ["file", "used", "bundle", "repository"])
def test_what_is_there_is_kept(bundle, digits_bundle, tmp_path, there):
    place = tmp_path / "place"
    if there == "file":
        place.write_text("mine")
    elif there == "used":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif there == "bundle":
        shutil.copytree(digits_bundle, place)
    else:
        write_triton(bundle, place)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="not an empty directory"):
        write_triton(bundle, place)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_filled(bundle, tmp_path):
    (tmp_path / "place").mkdir()
    write_triton(bundle, tmp_path / "place")
    assert Repository(tmp_path / "place").ensembles()


def test_a_place_that_cannot_be_written(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write a model repository"):
        write_triton(bundle, tmp_path / "file" / "repository")


def test_an_altered_bundle_leaves_nothing(digits_bundle, tmp_path):
    bundle = off.Bundle.load(shutil.copytree(digits_bundle, tmp_path / "digits.bundle"))
    (bundle.path / bundle.manifest.stages[1].graph.file).write_bytes(b"spoilt")
    with pytest.raises(BundleError, match="sha256"):
        write_triton(bundle, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["digits.bundle"]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_none_is_refused(bundle, tmp_path, size):
    with pytest.raises(ConfigError, match="--max-batch is at least 1"):
        write_triton(bundle, tmp_path / "repository", max_batch=size)


def test_tensors_that_triton_cannot_take(bundle):
    manifest = bundle.manifest
    bare = manifest.model_copy(update={"stages": (with_input(manifest.stages[0], "x", ()), *manifest.stages[1:])})
    with pytest.raises(ExportError, match=r"'x' holds one value per sample.*shape \(N, 1\)"):
        triton_configs(bare, 1)
    named = TensorSpec(name="logits", dtype="float32", shape=(4,))
    with pytest.raises(ExportError, match="an input of the network is called 'logits'"):
        triton_configs(manifest.model_copy(update={"inputs": (named,)}), 1)


def with_input(stage, name, shape):
    tensor = TensorSpec(name=name, dtype="float32", shape=shape)
    return stage.model_copy(update={"graph": stage.graph.model_copy(update={"inputs": (tensor,)})})
