"""The published networks: counted as their papers do, and equal to what their weights were trained in."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_code import WEIGHTS, original
from torch import Tensor, nn

from offramp.errors import ConfigError, DatasetError
from offramp.evalmode import eval_mode
from offramp.reproduce import mobilenet, resnet
from offramp.reproduce.mobilenet import FEATURES, MobileNetV2, mobilenetv2
from offramp.reproduce.resnet import CifarResNet, resnet56
from offramp.reproduce.subjects import mobilenetv2_subject, resnet56_subject
from offramp.reproduce.weights import MOBILENETV2, RESNET56, PublishedWeights
from offramp.sparse.counting import count


def given(*files: str) -> Any:
    missing = [f for f in files if not (WEIGHTS / f).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} in $OFFRAMP_DATA/weights")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- Counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "weights", "macs"), [(20, 0.27, 40.8), (32, 0.46, 69.1), (56, 0.85, 125.5)])
def test_resnets_are_as_large_as_published(depth: int, weights: float, macs: float) -> None:
    """He et al. 2016, table 6: 0.27M, 0.46M and 0.85M parameters."""
    counts = count(CifarResNet(depth), torch.zeros(1, 3, 32, 32))
    assert counts.weights / 1e6 == pytest.approx(weights, abs=0.01)
    assert counts.macs / 1e6 == pytest.approx(macs, abs=0.3)


@pytest.mark.parametrize("depth", [-4, 2, 18, 51])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=f"6n \\+ 2 layers, such as 20, 32 or 56, not {depth}"):
        CifarResNet(depth)


def test_mobilenet_is_as_large_as_published() -> None:
    """Sandler et al. 2018, table 4: 3.4M parameters and 300M multiply-adds."""
    net = MobileNetV2()
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(3.4, abs=0.1)
    assert count(net, torch.zeros(1, 3, 224, 224)).macs / 1e6 == pytest.approx(300, abs=2)
    assert len(net.features) == 19
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(32, 3, 2), (31, 3, 2), (16, 3, 1), (7, 1, 1), (224, 3, 2)]
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) places come out, and the odd one is added behind."""
    layer = mobilenet._SamePadded(1, 1, kernel, stride)
    assert layer(drawn(1, 1, size, size)).shape[2:] == (-(-size // stride),) * 2
    if (kernel, stride) == (3, 2) and size % 2 == 0:
        with torch.no_grad():
            layer.weight.fill_(1.0)
            assert layer.bias is not None
            layer.bias.zero_()
            x = torch.zeros(1, 1, size, size)
            x[0, 0, 0, 0] = 1  # the first window begins there, so only it sees it
            assert layer(x).sum() == 1


def test_a_mobilenet_without_classes_gives_features_of_enlarged_images() -> None:
    net = MobileNetV2(None, side=64)
    x = drawn(2, 3, 32, 32)
    larger = nn.functional.interpolate(x, (64, 64), mode="bilinear")
    with torch.no_grad(), eval_mode(net):
        found = net(x)
        assert found.shape == (2, FEATURES)
        torch.testing.assert_close(found, net.features(larger).mean(dim=(2, 3)))


# --- With weights -----------------------------------------------------------------------------------------


@given(RESNET56.file, "resnet_cifar_torch.py")
def test_resnet56_is_the_published_one() -> None:
    x = drawn(4, 3, 32, 32)
    with torch.no_grad():
        expected = original("resnet_cifar_torch.py").load(WEIGHTS / RESNET56.file, 56)(x)
        torch.testing.assert_close(resnet56()(x), expected)


@given(MOBILENETV2.file, "mobilenetv2_torch.py")
def test_mobilenetv2_is_the_published_one() -> None:
    x = drawn(1, 3, 96, 96).clamp(-1, 1)
    with torch.no_grad():
        expected = original("mobilenetv2_torch.py").load_int8_npz(WEIGHTS / MOBILENETV2.file)(x)
        torch.testing.assert_close(mobilenetv2()(x), expected, atol=1e-4, rtol=1e-4)
        assert mobilenetv2(7)(x).shape == (1, 7)
        assert mobilenetv2(None, side=64)(x).shape == (1, FEATURES)


# --- Files that are not what they should be -----------------------------------------------------------------


def test_weights_that_are_not_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        monkeypatch.setenv("OFFRAMP_DATA", str(folder))
        with pytest.raises(DatasetError, match=r"resnet56-4bfd9763.th are not at hand.*akamaster.*OFFRAMP_DATA"):
            resnet56()
    monkeypatch.delenv("OFFRAMP_DATA")
    with pytest.raises(DatasetError, match=r"int8.npz are not at hand.*google-coral"):
        mobilenetv2()


def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: PublishedWeights) -> Path:
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("OFFRAMP_DATA", str(tmp_path))
    return tmp_path / "weights" / weights.file


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path, monkeypatch, RESNET56).write_bytes(b"other")
    with pytest.raises(DatasetError, match=r"is not the published file: its sha256 is .*; take it anew"):
        resnet56()


def trusting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, path: Path) -> None:
    """Takes the file as the published one, whatever its sum is."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, name, replace(getattr(module, name), sha256=found))


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = put(tmp_path, monkeypatch, RESNET56)
    torch.save({"state_dict": {f"module.{k}": v for k, v in CifarResNet(8).state_dict().items()}}, path)
    trusting(monkeypatch, resnet, "RESNET56", path)
    with pytest.raises(DatasetError, match="holds the weights of another network"):
        resnet56()
    other = path.with_name(MOBILENETV2.file)
    one = {"00.q": np.zeros((4, 3, 3, 3), np.int8), "00.s": np.ones(4, np.float32), "00.b": np.ones(4, np.float32)}
    np.savez(other, **one)  # type: ignore[arg-type]
    trusting(monkeypatch, mobilenet, "MOBILENETV2", other)
    with pytest.raises(DatasetError, match=r"another network: \(4, 3, 3, 3\) where \(32, 3, 3, 3\) is expected"):
        mobilenetv2()


def test_random_weights_go_round_the_quantised_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = MobileNetV2(1000)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    arrays: dict[str, Any] = {}
    with torch.no_grad():
        for i, layer in enumerate(layers):
            q = torch.randint(-127, 128, layer.weight.shape)
            scale = 0.5 / 127 / layer.weight[0].numel() ** 0.5 * torch.ones(len(q))
            layer.weight.copy_(q * scale.view(-1, *[1] * (q.dim() - 1)))
            if isinstance(layer, nn.Linear):  # with TensorFlow's background class before the others
                q, scale = torch.cat([q[:1], q])[:, :, None, None], torch.cat([scale[:1], scale])
            bias = layer.bias
            assert bias is not None
            kept = torch.cat([bias[:1], bias]) if isinstance(layer, nn.Linear) else bias
            arrays |= {f"{i:02d}.q": q.to(torch.int8).numpy(), f"{i:02d}.s": scale.numpy()}
            arrays[f"{i:02d}.b"] = kept.numpy()
    path = put(tmp_path, monkeypatch, MOBILENETV2)
    np.savez(path, **arrays)
    trusting(monkeypatch, mobilenet, "MOBILENETV2", path)
    x = drawn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(mobilenetv2()(x), net(x))


# --- Subjects ---------------------------------------------------------------------------------------------


def test_exits_hang_where_the_papers_have_them() -> None:
    resnet_exits = resnet56_subject()
    net = resnet_exits.net(CifarResNet(56), 10, seed=0)
    assert len(net.exit_names) == 6
    assert net.classifier is None
    paper = mobilenetv2_subject(32, 64)
    backbone = MobileNetV2(None, side=64)
    moved = paper.net(backbone, 4, seed=0)
    assert moved.exit_names == tuple(f"features.{n - 1}" for n in (3, 6, 9, 12, 15, 18))
    assert [tuple(z.shape) for z in moved(paper.example)] == [(1, 4)] * 7
    assert all(getattr(head, "norm", None) is not None for head in moved.heads)
    again = paper.net(backbone, 4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(moved.exit_parameters(), again.exit_parameters(), strict=True))
    assert paper.preprocessing.mean == paper.preprocessing.std == (0.5,)  # x/127.5 − 1 of pixels up to 255


@pytest.mark.parametrize(("image_side", "side"), [(32, 31), (32, 0), (64, 48), (32, -1)])
def test_a_side_that_is_too_small(image_side: int, side: int) -> None:
    with pytest.raises(ConfigError, match=f"--side must be at least {image_side} pixels, not {side}"):
        mobilenetv2_subject(image_side, side)
