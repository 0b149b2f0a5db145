"""Training of exits on a backbone that keeps every byte."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offramp.errors import ConfigError
from offramp.exits.cache import FeatureCache
from offramp.exits.evaluation import evaluate
from offramp.exits.heads import ConvHead, PooledHead
from offramp.exits.network import MultiExit
from offramp.exits.objective import DistilledLoss, JointLoss
from offramp.exits.training import fit

FROZEN: dict[str, Any] = {"progress": False, "accelerator": "cpu", "frozen": True}


def images(n: int = 192, seed: int = 0) -> TensorDataset:
    """Four classes: which quarter of the image is bright."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    x = 0.7 * torch.randn(n, 1, 8, 8, generator=draw)
    for i, label in enumerate(labels.tolist()):
        x[i, :, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1
    return TensorDataset(x, labels)


def loader(n: int = 192, seed: int = 0, size: int = 32) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(images(n, seed), batch_size=size)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def network(lazy: bool = False) -> MultiExit:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        Block(),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 4)),
    )
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 1, 8, 8))  # statistics that are not those of the start
    exits = {"0": PooledHead(4, 2), "1": ConvHead(4, 8, places=4)}
    return MultiExit(model, exits, example_input=None if lazy else torch.zeros(1, 1, 8, 8))


def whole(module: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("cache", [True, False, FeatureCache(memory_bytes=0)], ids=["memory", "none", "files"])
@pytest.mark.parametrize("loss", [JointLoss(), DistilledLoss()], ids=["labels", "distilled"])
@pytest.mark.parametrize("lazy", [True, False])
def test_only_the_heads_learn(cache: FeatureCache | bool, loss: Any, lazy: bool) -> None:
    net = network(lazy)
    net.model[1].norm.weight.requires_grad_(False)
    before = whole(net.model)
    result = fit(net, loader(), loader(seed=1), epochs=8, lr=3e-2, loss=loss, cache=cache, **FROZEN)
    assert whole(net.model) == before
    assert all(p.grad is None for p in net.model.parameters())
    asking = {name for name, p in net.model.named_parameters() if not p.requires_grad}
    assert asking == {"1.norm.weight"}  # as it was
    seen = evaluate(net, loader(seed=1))
    if isinstance(loss, JointLoss):
        assert min(seen.accuracy[:2]) > 0.8
    assert result.history[-1] == pytest.approx(seen.accuracy, abs=1e-6)
    assert not net.training


def test_distilled_exits_come_to_agree_with_the_last_one() -> None:
    net = network()
    fit(net, loader(), epochs=8, lr=3e-2, loss=DistilledLoss(mix=1), **FROZEN)
    seen = evaluate(net, loader(seed=1))
    last = seen.logits[-1].argmax(1)
    labels_alone = network()
    fit(labels_alone, loader(), epochs=8, lr=3e-2, **FROZEN)
    plain = evaluate(labels_alone, loader(seed=1))
    for i in range(2):
        assert (seen.logits[i].argmax(1) == last).mean() > (plain.logits[i].argmax(1) == last).mean()


def test_distillation_while_all_learns() -> None:
    net = network()
    before = whole(net.model)
    fit(net, loader(), epochs=12, lr=1e-2, loss=DistilledLoss(), progress=False, accelerator="cpu")
    assert whole(net.model) != before
    assert min(evaluate(net, loader(seed=1)).accuracy) > 0.8


@pytest.mark.parametrize("cache", [True, FeatureCache(memory_bytes=0), FeatureCache(memory_bytes=100_000)])
def test_cached_features_give_what_the_backbone_gives(cache: FeatureCache | bool) -> None:
    """With one batch per epoch the order of samples does not count."""
    nets = []
    for how in (cache, False):
        nets.append(network())
        result = fit(nets[-1], loader(size=192), loader(seed=1), epochs=5, lr=1e-2, cache=how, **FROZEN)
        assert len(result.history) == 5
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_backbone_runs_once_over_the_data() -> None:
    class Counting(nn.Identity):
        samples = 0

        def forward(self, x: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                self.samples += len(x)
            return x

    counter = Counting()
    net = MultiExit(nn.Sequential(counter, network().model), {"1.0": PooledHead(4)})
    net.materialise(torch.zeros(1, 1, 8, 8))
    counter.samples = 0
    fit(net, loader(192), loader(64, seed=1), epochs=7, **FROZEN)
    assert counter.samples == 192 + 64
    counter.samples = 0
    fit(net, loader(192), epochs=7, cache=False, **FROZEN)
    assert counter.samples == 7 * 192


def test_inputs_of_several_sizes_train_without_a_cache() -> None:
    batches = [(torch.randn(8, 1, s, s), torch.arange(8) % 4) for s in (8, 10)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    net = MultiExit(model, {"1": PooledHead(4, 2, norm=True)}, example_input=batches[0][0])
    with pytest.raises(ConfigError, match=r"exit 0 sees features \(4, 6, 6\) and later \(4, 8, 8\).*cache=False"):
        fit(net, batches, epochs=1, **FROZEN)
    fit(net, batches, epochs=1, cache=False, **FROZEN)
    pooled = MultiExit(model, {"1": PooledHead(4)}, example_input=batches[0][0])
    fit(pooled, batches, epochs=1, **FROZEN)  # what a pooled head sees has one size


def test_a_backbone_without_gradients_of_its_own() -> None:
    net = network()
    net.model.requires_grad_(False)
    fit(net, loader(64), epochs=1, **FROZEN)
    assert not any(p.requires_grad for p in net.model.parameters())


def test_heads_that_cannot_learn_are_refused() -> None:
    net = MultiExit(network().model, {"2": nn.Identity()}, example_input=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ConfigError, match="only the heads learn, and these have no parameters"):
        fit(net, loader(), epochs=1, **FROZEN)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("loss", [JointLoss(), DistilledLoss()], ids=["labels", "distilled"])
def test_a_classifier_learns_on_a_backbone_that_gives_features(cache: bool, loss: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    net = MultiExit(model, {"1": None}, classifier=nn.LazyLinear(4), example_input=torch.zeros(1, 1, 8, 8))
    before = whole(net.model)
    assert evaluate(net, loader(seed=1)).accuracy[-1] < 0.5
    fit(net, loader(), epochs=8, lr=3e-2, loss=loss, cache=cache, **FROZEN)
    assert whole(net.model) == before
    assert min(evaluate(net, loader(seed=1)).accuracy) > 0.9


@pytest.mark.parametrize("cache", [True, False])
def test_loaders_without_batches(cache: bool) -> None:
    with pytest.raises(ConfigError, match="no batches"):
        fit(network(), [], epochs=1, cache=cache, **FROZEN)
    with pytest.raises(ConfigError, match="the validation loader gives no batches"):
        fit(network(), loader(64), [], epochs=1, cache=cache, **FROZEN)


def test_a_last_batch_of_one_sample() -> None:
    """Batch normalisation in a head refuses a single sample; cached training leaves it to the other epochs."""
    net = MultiExit(network().model, {"1": nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.BatchNorm1d(5))})
    fit(net, loader(65, size=32), epochs=2, **FROZEN)


# --- interrupted ------------------------------------------------------------------------------------------


class Interrupted(JointLoss):
    """Ctrl-C in the middle of an epoch, of 6 batches each."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = 6 * after

    def __call__(self, outputs: Any, target: Tensor) -> Tensor:
        self.left -= 1
        if self.left < -2:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(outputs, target)


@pytest.mark.parametrize("cache", [True, False, FeatureCache(memory_bytes=0)], ids=["memory", "none", "files"])
def test_after_ctrl_c_a_training_resumes_to_the_same_result(tmp_path: Path, cache: FeatureCache | bool) -> None:
    uninterrupted = network()
    fit(uninterrupted, loader(), epochs=4, cache=cache, **FROZEN)
    net, handler = network(), signal.getsignal(signal.SIGINT)
    before, start = whole(net.model), whole(net.heads)
    with pytest.raises(KeyboardInterrupt):
        fit(net, loader(), epochs=4, loss=Interrupted(2), cache=cache, checkpoint_dir=tmp_path, **FROZEN)
    assert signal.getsignal(signal.SIGINT) is handler
    assert whole(net.model) == before
    assert whole(net.heads) != start  # what was learned is kept
    assert not net.training
    assert all(p.requires_grad for p in net.model.parameters())
    resumed = network()
    result = fit(resumed, loader(), loader(seed=1), epochs=4, cache=cache, checkpoint_dir=tmp_path, **FROZEN)
    assert len(result.history) == 2  # epochs that were left
    for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_ctrl_c_while_all_learns_keeps_what_was_learned() -> None:
    net = network()
    start = whole(net)
    with pytest.raises(KeyboardInterrupt):
        fit(net, loader(), epochs=3, loss=Interrupted(1), progress=False, accelerator="cpu")
    assert whole(net) != start
    assert not net.training


def test_ctrl_c_while_features_are_computed(tmp_path: Path) -> None:
    def batches() -> Any:
        for i, batch in enumerate(loader()):
            if i == 3:
                signal.raise_signal(signal.SIGINT)
            yield batch

    class Loader:
        def __iter__(self) -> Any:
            return batches()

    net = network()
    with pytest.raises(KeyboardInterrupt):
        fit(net, Loader(), epochs=3, cache=FeatureCache(memory_bytes=0, folder=tmp_path), **FROZEN)
    assert list(tmp_path.iterdir()) == []
    assert all(p.requires_grad for p in net.model.parameters())


# --- checkpoints of something else ------------------------------------------------------------------------


def test_a_checkpoint_of_another_kind_of_training(tmp_path: Path) -> None:
    fit(network(), loader(64), epochs=1, checkpoint_dir=tmp_path, **FROZEN)
    kept = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(ConfigError, match=r"frozen=True; give another checkpoint_dir, or remove it"):
        fit(network(), loader(64), epochs=2, checkpoint_dir=tmp_path, **{**FROZEN, "frozen": False})
    other = network()
    with torch.no_grad():
        other.model[1].conv.weight[0] += 1
    with pytest.raises(ConfigError, match="backbone with other weights"):
        fit(other, loader(64), epochs=2, checkpoint_dir=tmp_path, **FROZEN)
    wider = MultiExit(network().model, {"0": PooledHead(4, 4), "1": ConvHead(4, 8, places=4)})
    with pytest.raises(ConfigError, match=r"another network, which differs in heads\.0\.linear\.weight"):
        fit(wider, loader(64), epochs=2, checkpoint_dir=tmp_path, **FROZEN)
    assert (tmp_path / "last.ckpt").read_bytes() == kept


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt is no checkpoint that can be read"):
        fit(network(), loader(64), epochs=1, checkpoint_dir=tmp_path, **FROZEN)


def test_a_classifier_may_learn_more_slowly_than_the_heads() -> None:
    x, y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    net = MultiExit(model, {"0": PooledHead(3)}, classifier=nn.Linear(8, 3), example_input=x)
    heads, classifier = copy.deepcopy(net.heads), copy.deepcopy(net.classifier)
    fit(net, [(x, y)] * 4, epochs=2, lr=3e-2, backbone_lr=1e-6, frozen=True, progress=False, accelerator="cpu")
    assert net.classifier is not None
    assert classifier is not None
    assert (net.classifier.weight - classifier.weight).abs().max() < 1e-4
    moved = [(a - b).abs().max() for a, b in zip(net.heads.parameters(), heads.parameters(), strict=True)]
    assert max(moved) > 1e-2
