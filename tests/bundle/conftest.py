"""Bundles that were tampered with, and ONNX models made by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto

import offramp as off
from offramp.bundle.export import export_graph


@pytest.fixture
def bundle_copy(digits_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the digits' bundle that a test may spoil."""
    return Path(shutil.copytree(digits_bundle, tmp_path / "digits.bundle"))


@pytest.fixture
def edit(bundle_copy: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """Changes the manifest of `bundle_copy` and gives the bundle's path."""

    def change(how: Callable[[dict[str, Any]], Any], file: str = "manifest.json") -> Path:
        content = json.loads((bundle_copy / file).read_text())
        how(content)
        (bundle_copy / file).write_text(json.dumps(content))
        return bundle_copy

    return change


@pytest.fixture
def plant(bundle_copy: Path) -> Callable[[bytes], Path]:
    """Puts other content in place of stage 0, with the right hash in the manifest."""

    def replace(content: bytes) -> Path:
        manifest = json.loads((bundle_copy / "manifest.json").read_text())
        graph = manifest["stages"][0]["graph"]
        (bundle_copy / graph["file"]).write_bytes(content)
        graph["sha256"] = hashlib.sha256(content).hexdigest()
        (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
        return bundle_copy

    return replace


@pytest.fixture(scope="session")
def digits_graph(digits_net: off.MultiExit) -> ModelProto:
    """The whole digits network as one ONNX graph."""
    return export_graph(digits_net, torch.zeros(1, 1, 28, 28))


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch, digits_graph: ModelProto) -> None:
    """`export` of the digits network without the seconds that torch.onnx.export takes."""

    def ready(net: off.MultiExit, example_input: torch.Tensor) -> ModelProto:
        copied = onnx.ModelProto()
        copied.CopyFrom(digits_graph)
        return copied

    monkeypatch.setattr("offramp.bundle.export.export_graph", ready)
