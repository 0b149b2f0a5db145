from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offramp.errors import ConfigError
from offramp.exits.cache import CachedFeatures, FeatureCache
from offramp.exits.heads import ConvHead, PooledHead
from offramp.exits.network import MultiExit

X = torch.randn(50, 3, 12, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(50) % 4


def net(scale: float = 1.0) -> MultiExit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(600, 4))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    own = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    return MultiExit(model, {"0": PooledHead(4), "1": ConvHead(4, places=5), "2": own}, example_input=X[:1])


def batches(size: int = 16) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), batch_size=size)


@pytest.mark.parametrize(
    ("cache", "in_files"),
    [(FeatureCache(), False), (FeatureCache(memory_bytes=0), True), (FeatureCache(memory_bytes=60_000), True)],
    ids=["memory", "files", "files from the second batch"],
)
def test_what_is_kept_is_what_the_backbone_gives(cache: FeatureCache, in_files: bool) -> None:
    one = net().train()
    kept = CachedFeatures(one, batches(), cache)
    try:
        assert len(kept) == 50
        assert kept.in_files == in_files
        indices = [40, 3, 3, 49]
        (features, last), labels = kept.__getitems__(indices)
        with torch.no_grad():
            whole, logits = one.eval().backbone(X[indices])
        assert torch.equal(labels, Y[indices])
        torch.testing.assert_close(last, logits, atol=1e-5, rtol=1e-5)
        expected = [whole[0].mean((2, 3), keepdim=True), one.heads[1].reduce(whole[1]), whole[2]]  # type: ignore[operator]
        for got, feature in zip(features, expected, strict=True):
            torch.testing.assert_close(got, feature, atol=1e-5, rtol=1e-5)
        assert kept.bytes == 50 * 4 * (6 + 6 * 25 + 600 + 4)
    finally:
        kept.close()


def test_half_precision_takes_half_the_room() -> None:
    whole, half = (CachedFeatures(net(), batches(), FeatureCache(dtype=d)) for d in ("float32", "float16"))  # type: ignore[arg-type]
    assert half.bytes == whole.bytes / 2 + 50 * 4 * 2  # logits stay as they are
    for got, expected in zip(half[7][0].features, whole[7][0].features, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=2**-10)


def test_values_beyond_half_precision() -> None:
    with pytest.raises(ConfigError, match="beyond float16's 65504; keep features as float32"):
        CachedFeatures(net(scale=1e6), batches(), FeatureCache(dtype="float16"))


def test_files_go_where_they_are_told_and_go_away(tmp_path: Path) -> None:
    kept = CachedFeatures(net(), batches(), FeatureCache(memory_bytes=0, folder=tmp_path))
    (folder,) = tmp_path.iterdir()
    assert sum(f.stat().st_size for f in folder.iterdir()) == kept.bytes
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_files(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match=r"find no room in .*nowhere: No such file.*name another folder"):
        CachedFeatures(net(), batches(), FeatureCache(memory_bytes=0, folder=nowhere))
    with pytest.raises(ConfigError, match="no batches"):
        CachedFeatures(net(), [], FeatureCache())


def test_every_sample_comes_once_per_epoch_in_a_known_order() -> None:
    kept = CachedFeatures(net(), batches(size=12), FeatureCache())
    loader = kept.batches(shuffled=True)

    def labels(epoch: int) -> list[list[float]]:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [x.last[:, 0].tolist() for x, _ in loader]

    first, again, second = labels(0), labels(0), labels(1)
    assert [len(b) for b in first] == [12, 12, 12, 12, 2]
    assert first == again != second
    assert sorted(chain(*first)) == sorted(chain(*second))
    plain = [x.last[:, 0].tolist() for x, _ in kept.batches(shuffled=False)]
    assert list(chain(*plain)) == kept.__getitems__(range(50))[0].last[:, 0].tolist()
    assert [len(y) for _, y in kept.batches(shuffled=True, size=20)] == [20, 20, 10]
    assert [len(y) for _, y in kept.batches(shuffled=True, size=7)] == [7] * 7  # one alone is left out


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"memory_bytes": -1}, "at least 0, not -1"), ({"dtype": "int8"}, '"float32" or "float16", not \'int8\'')],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureCache(**settings)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    CachedFeatures(net(), batches(), FeatureCache(), "training features")
    said = capsys.readouterr()
    assert "training features" in said.err
    assert said.out == ""
