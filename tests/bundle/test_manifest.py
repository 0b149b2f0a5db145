from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import (
    Codec,
    Exit,
    Graph,
    Held,
    Manifest,
    Preprocessing,
    Stage,
    TensorSpec,
    Tuning,
    cut_name,
)


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def graph(file: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Graph:
    sha256 = hashlib.sha256(file.encode()).hexdigest()
    return Graph(file=file, sha256=sha256, bytes=1, inputs=inputs, outputs=outputs, parameters=2, macs=3)


def small(**changes: Any) -> Manifest:
    """Two stages, one early exit, one codec."""
    x, cut, early, last = spec("input", 4), spec("cut_0", 3), spec("exit_0", 2), spec("exit_1", 2)
    packed = TensorSpec(name="cut_0_uint8", dtype="uint8", shape=(3,))
    start: dict[str, Any] = {
        "name": "small",
        "inputs": (x,),
        "stages": (
            Stage(graph=graph("stages/0.onnx", (x,), (cut,)), depth=1, density=0.5),
            Stage(graph=graph("stages/1.onnx", (cut,), (last,)), depth=2, density=1),
        ),
        "exits": (
            Exit(logits=early, graph=graph("exits/0.onnx", (cut,), (early,))),
            Exit(logits=last, graph=None),
        ),
        "codecs": (
            Codec(
                cut=0,
                mode="uint8",
                encoder=graph("codecs/e.onnx", (cut,), (packed,)),
                decoder=graph("codecs/d.onnx", (packed,), (cut,)),
            ),
        ),
    }
    return Manifest(**{**start, **changes})


def test_a_manifest_goes_round_as_json() -> None:
    manifest = small(
        classes=("a", "b"),
        preprocessing=Preprocessing(color="rgb", height=8, width=6, mean=(0.1, 0.2, 0.3), std=(1.0,)),
    )
    again = Manifest.model_validate_json(manifest.model_dump_json())
    assert again == manifest
    assert again.digest == manifest.digest
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest


def test_a_real_bundles_manifest_goes_round(digits_bundle: Path) -> None:
    manifest = Bundle.load(digits_bundle).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_tuning_and_held_go_round_as_json() -> None:
    tuning = Tuning(temperatures=(0.5, None, 1.0), thresholds=(0.9, None, None), mode="uint8")
    assert Tuning.model_validate_json(tuning.model_dump_json()) == tuning
    assert tuning.confidence == "max_softmax"  # as in files from before there was a choice
    assert Held.model_validate_json(Held(stages=2).model_dump_json()) == Held(stages=2)


def test_the_json_schema_is_published() -> None:
    schema = Manifest.model_json_schema()
    assert schema["additionalProperties"] is False
    assert {"format", "name", "stages", "exits", "inputs"} <= set(schema["properties"])


def test_what_a_manifest_tells() -> None:
    m = small()
    assert m.last == 1
    assert m.cut(-1) == m.inputs == (spec("input", 4),)
    assert m.cut(0) == m.stages[0].graph.outputs
    assert m.final_exit() is m.exits[1]
    assert m.modes(0) == ("float", "uint8")
    assert m.modes(-1) == ("float",)
    assert m.codec(0, "uint8") is m.codecs[0]
    assert m.codec(0, "float") is None
    assert m.codec(-1, "uint8") is None
    files = [g.file for g in m.graphs()]
    assert files == ["stages/0.onnx", "stages/1.onnx", "exits/0.onnx", "codecs/e.onnx", "codecs/d.onnx"]
    assert [cut_name(i) for i in (-1, 0, 3)] == ["input", "cut_0", "cut_3"]


def test_bytes_of_a_tensor() -> None:
    assert spec("x", 3, 4).bytes == 48
    assert TensorSpec(name="x", dtype="uint8", shape=(3, 4)).bytes == 12
    assert TensorSpec(name="x", dtype="int64", shape=()).bytes == 8


def test_the_digest_is_what_design_says() -> None:
    m = small()
    names = [t.name for g in m.graphs() for t in (*g.inputs, *g.outputs)]
    in_order = "input cut_0, cut_0 exit_1, cut_0 exit_0, cut_0 cut_0_uint8, cut_0_uint8 cut_0"
    assert names == re.split(", | ", in_order)
    lines = [*sorted(g.sha256 for g in m.graphs()), *names]
    assert m.digest == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_any_graph_and_any_tensor_name_changes_the_digest() -> None:
    data = json.loads(small().model_dump_json())
    digests = {small().digest}
    places = [
        ("stages", 0, "graph"), ("stages", 1, "graph"), ("exits", 0, "graph"),
        ("codecs", 0, "encoder"), ("codecs", 0, "decoder"),
    ]  # fmt: skip
    for part, i, which in places:
        changed = json.loads(json.dumps(data))
        changed[part][i][which]["sha256"] = "0" * 64
        digests.add(Manifest.model_validate(changed).digest)
        changed = json.loads(json.dumps(data))
        changed[part][i][which]["outputs"][0]["name"] = "other"
        digests.add(Manifest.model_validate(changed).digest)
    assert len(digests) == 1 + 2 * len(places)


def test_words_do_not_change_the_digest() -> None:
    assert small(classes=("a", "b"), name="other").digest == small().digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 2},
        {"name": ""},
        {"name": "../x"},
        {"name": "a b"},
        {"name": "x" * 65},
        {"stages": ()},
        {"typo": 1},
    ],
    ids=str,
)
def test_manifests_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        small(**wrong)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TensorSpec, {"name": "x", "dtype": "float16", "shape": (1,)}),
        (TensorSpec, {"name": "x", "dtype": "float32", "shape": (0,)}),
        (TensorSpec, {"name": "", "dtype": "float32", "shape": (1,)}),
        (Tuning, {"temperatures": (0.0,), "thresholds": (None,)}),
        (Tuning, {"temperatures": (float("nan"),), "thresholds": (None,)}),
        (Tuning, {"temperatures": (1.0,), "thresholds": (-0.1,)}),
        (Tuning, {"temperatures": (1.0,), "thresholds": (float("inf"),)}),
        (Tuning, {"temperatures": (1.0,), "thresholds": (0.5,), "confidence": "energy"}),
        (Held, {"stages": 0}),
        (Preprocessing, {"color": "cmyk", "height": 1, "width": 1}),
        (Preprocessing, {"color": "grey", "height": 0, "width": 1}),
        (Preprocessing, {"color": "grey", "height": 1, "width": 1, "std": (0.0,)}),
        (Preprocessing, {"color": "grey", "height": 1, "width": 1, "mean": (float("nan"),)}),
        (Preprocessing, {"color": "grey", "height": 1, "width": 1, "mean": (0, 0, 0)}),
        (Preprocessing, {"color": "rgb", "height": 1, "width": 1, "mean": (0, 0)}),
        (Preprocessing, {"color": "rgb", "height": 1, "width": 1, "mean": ()}),
    ],
    ids=str,
)
def test_parts_that_cannot_be(model: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):  # pydantic's own, or a ConfigError where users write settings
        model(**values)
