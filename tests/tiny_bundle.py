"""A bundle whose exits say what the input tells them to, so that every confidence in a test is chosen.

Input: (8,), two logits for each of four exits. The stages pass it on, exit e reads columns 2e and 2e+1. Cut 1
has no exit unless asked for. Depths are 3, 6, 9, 12.
"""

import hashlib
import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.codec import make_codec
from offramp.bundle.manifest import Codec, Exit, Held, Manifest, Stage, TensorSpec, Tuning, cut_name
from offramp.bundle.partition import describe
from offramp.bundle.quantiser import Quantiser

WIDTH = 8


def _graph(nodes, source, target, width, constants=()):
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _pick(source, target, index):
    node = helper.make_node("Gather", [source, "columns"], [target], axis=1)
    return _graph([node], source, target, 2, [("columns", np.array([2 * index, 2 * index + 1], np.int64))])


def _pass_on(source, target):
    return _graph([helper.make_node("Identity", [source], [target])], source, target, WIDTH)


class Clock:
    """Time that moves only when told to."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def make_bundle():
    """Writes a tiny bundle: make_bundle(path, exits=(0, 2), thresholds=…, temperatures=…, held=…)."""

    def make(path, *, exits=(0, 2), thresholds=(0.75, None, 0.75, None), temperatures=(1.0,) * 4, held=None):
        files = {}

        def add(model, file):
            files[file] = content = model.SerializeToString()
            return describe(model, file, content, hashlib.sha256(content).hexdigest())

        stages = [add(_pass_on(cut_name(i - 1), cut_name(i)), f"stages/stage_{i}.onnx") for i in range(3)]
        stages.append(add(_pick("cut_2", "exit_3", 3), "stages/stage_3.onnx"))
        heads = {i: add(_pick(cut_name(i), f"exit_{i}", i), f"exits/exit_{i}.onnx") for i in exits}
        codecs = []
        for cut in range(-1, 3):
            spec = TensorSpec(name=cut_name(cut), dtype="float32", shape=(WIDTH,))
            ends = [
                add(model, f"codecs/{cut}.{end}.onnx")
                for model, end in zip(
                    make_codec([spec], [Quantiser.of_range(-8, 8)], "uint8"), ("enc", "dec"), strict=True
                )
            ]
            codecs.append(Codec(cut=cut, mode="uint8", encoder=ends[0], decoder=ends[1]))
        found = [Exit(logits=heads[i].outputs[0], graph=heads[i]) if i in heads else None for i in range(3)]
        final = Exit(logits=stages[3].outputs[0], graph=None)
        manifest = Manifest(
            name="tiny",
            classes=("no", "yes"),
            inputs=stages[0].inputs,
            stages=tuple(Stage(graph=graph, depth=3 * (i + 1), density=1.0) for i, graph in enumerate(stages)),
            exits=(*found, final),
            codecs=tuple(codecs),
        )
        tuning = Tuning(temperatures=temperatures, thresholds=thresholds)
        write_bundle(path, manifest, tuning, files, held=None if held is None else Held(stages=held))
        return Bundle.load(path)

    return make


@pytest.fixture(scope="session")
def tiny(make_bundle, tmp_path_factory):
    """Four stages, exits at cuts 0 and 2, thresholds .75."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture(scope="session")
def says():
    """An input at which exit e has confidence c: says({0: .6, 2: .9, 3: .95}, label=1)."""

    def build(confidences, label=1):
        x = np.zeros(WIDTH, np.float32)
        for e, confidence in confidences.items():
            x[2 * e + label] = math.log(confidence / (1 - confidence))
        return x

    return build
