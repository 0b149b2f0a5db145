from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from offramp.errors import ConfigError
from offramp.exits.evaluation import evaluate
from offramp.exits.heads import PooledHead
from offramp.exits.network import MultiExit
from offramp.exits.objective import JointLoss
from offramp.exits.training import MultiExitModule, fit

QUIET: dict[str, Any] = {"progress": False, "accelerator": "cpu"}


def blobs(n: int = 256, seed: int = 0) -> TensorDataset:
    """Four classes around four points in eight dimensions."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    centres = 2 * torch.eye(8)[:4]
    return TensorDataset(centres[labels] + 0.5 * torch.randn(n, 8, generator=draw), labels)


def loader(n: int = 256, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(blobs(n, seed), batch_size=32)


def small(lazy: bool = False) -> MultiExit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return MultiExit(model, {"1": PooledHead(4)}, example_input=None if lazy else torch.zeros(1, 8))


def joint_loss(net: MultiExit) -> float:
    x, y = blobs(seed=1).tensors
    with torch.no_grad():
        return JointLoss()(net(x), y).item()


def parameters(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_fit_learns() -> None:
    net = small()
    before = joint_loss(net)
    result = fit(net, loader(), loader(seed=1), epochs=6, lr=3e-2, **QUIET)
    assert joint_loss(net) < before / 2
    assert min(evaluate(net, loader(seed=1)).accuracy) > 0.8
    assert result.epochs == 6
    assert result.train_s > 0
    assert len(result.history) == 6
    assert result.history[-1] == pytest.approx(evaluate(net, loader(seed=1)).accuracy, abs=1e-6)
    assert not net.training


def test_fit_without_validation_has_no_history() -> None:
    assert fit(small(), loader(64), epochs=1, **QUIET).history == ()


def test_lazy_heads_are_sized_before_the_optimiser_is_made() -> None:
    net = small(lazy=True)
    fit(net, loader(), epochs=2, lr=1e-2, **QUIET)
    assert net.heads[0].linear.in_features == 16
    assert evaluate(net, loader(seed=1)).accuracy[0] > 0.5


def test_a_loss_of_ones_own() -> None:
    net = small()
    before = parameters(net.heads)
    fit(net, loader(64), epochs=1, loss=JointLoss([0, 1]), **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net.heads), strict=True))
    with pytest.raises(ConfigError, match="3 exit weights for 2 exits"):
        fit(small(), loader(64), epochs=1, loss=JointLoss([1, 1, 1]), **QUIET)


def normalised() -> MultiExit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4))
    return MultiExit(model, {"2": PooledHead(4)}, example_input=torch.zeros(1, 8))


def statistics(net: MultiExit) -> list[Tensor]:
    return [net.model[i].running_mean.clone() for i in (1, 3)]


def test_a_network_in_evaluation_mode_is_trained_like_any_other() -> None:
    """`fit` leaves networks in it, and published ones come in it."""
    net = normalised()
    net.model.eval()
    for _ in range(2):
        before = statistics(net)
        fit(net, loader(64), loader(64), epochs=2, **QUIET)
        assert not any(torch.equal(a, b) for a, b in zip(before, statistics(net), strict=True))


def test_what_somebody_froze_inside_stays_frozen() -> None:
    net = normalised()
    net.model[1].eval()
    before = statistics(net)
    fit(net, loader(64), loader(64), epochs=2, **QUIET)
    assert [torch.equal(a, b) for a, b in zip(before, statistics(net), strict=True)] == [True, False]


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_that_cannot_be(epochs: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, not {epochs}"):
        fit(small(), loader(), epochs=epochs, **QUIET)


def test_batches_that_can_be_read_only_once_are_refused() -> None:
    """The second epoch would find nothing, and count all the same."""
    batches = list(loader(64))
    for train, val in ((iter(batches), None), (batches, (batch for batch in batches))):
        with pytest.raises(ConfigError, match="can be read only once; give a list of them or a DataLoader"):
            fit(small(), train, val, epochs=2, **QUIET)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(ConfigError, match="no batches"):
        fit(small(), [], epochs=1, **QUIET)


def interrupted(net: MultiExit, folder: Path, *, after: int, epochs: int) -> None:
    """A training on a machine that stops in the middle."""
    batches = 0

    def loss(outputs: Any, target: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        if batches > after * 8:
            raise RuntimeError("power cut")
        return JointLoss()(outputs, target)

    with pytest.raises(RuntimeError, match="power cut"):
        fit(net, loader(), epochs=epochs, loss=loss, checkpoint_dir=folder, **QUIET)


def test_an_interrupted_training_resumes_to_the_same_result(tmp_path: Path) -> None:
    whole = small()
    fit(whole, loader(), epochs=3, **QUIET)
    interrupted(small(), tmp_path, after=2, epochs=3)
    resumed = small()
    result = fit(resumed, loader(), loader(seed=1), epochs=3, checkpoint_dir=tmp_path, **QUIET)
    assert result.epochs == 3
    assert len(result.history) == 1  # one epoch was left
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        torch.testing.assert_close(a, b)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    net = small()
    fit(net, loader(), epochs=1, checkpoint_dir=tmp_path, **QUIET)
    assert (tmp_path / "last.ckpt").is_file()
    again = small()
    result = fit(again, loader(), loader(seed=1), epochs=1, checkpoint_dir=tmp_path, **QUIET)
    assert result.epochs == 1
    assert all(torch.equal(a, b) for a, b in zip(parameters(net), parameters(again), strict=True))


def test_a_finished_training_goes_on_when_more_epochs_are_asked_for(tmp_path: Path) -> None:
    fit(small(), loader(), epochs=1, checkpoint_dir=tmp_path, **QUIET)
    net = small()
    result = fit(net, loader(), epochs=2, checkpoint_dir=tmp_path, **QUIET)
    assert result.epochs == 2


def test_the_progress_bar_shows_loss_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    fit(small(), loader(64), loader(64), epochs=1, progress=True, accelerator="cpu")
    shown = capsys.readouterr().err
    assert "loss" in shown
    assert "exit_0" in shown


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders
def test_the_module_fits_a_trainer_of_ones_own() -> None:
    net = small()
    before = joint_loss(net)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(MultiExitModule(net, lr=1e-2), loader(), loader(seed=1))
    assert joint_loss(net) < before
    assert {"loss", "exit_0", "exit_1"} <= set(trainer.callback_metrics)


def test_the_backbone_may_learn_more_slowly() -> None:
    net, still = small(), small()
    fit(net, loader(), epochs=1, lr=3e-2, backbone_lr=1e-6, **QUIET)
    before, after = (dict(n.model.named_parameters()) for n in (still, net))
    assert all((after[name] - p).abs().max() < 1e-4 for name, p in before.items())
    assert any(
        (a - b).abs().max() > 1e-2 for a, b in zip(net.heads.parameters(), still.heads.parameters(), strict=True)
    )
