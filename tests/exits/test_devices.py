"""Two processes, as Lightning starts them, train the heads of one frozen backbone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import offramp as off

torch.set_num_threads(1)
torch.manual_seed(0)
labels = torch.arange(128) % 4
x = 2 * torch.eye(8)[labels] + torch.randn(128, 8) / 2
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
net = off.MultiExit(model, {"1": off.PooledHead(4)}, example_input=x[:1])
before = {k: v.clone() for k, v in model.state_dict().items()}
loader = DataLoader(TensorDataset(x, labels), 16)
result = off.fit(net, loader, loader, epochs=8, lr=3e-2, frozen=True, accelerator="cpu", devices=2, progress=False)
assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
accuracy = off.evaluate(net, loader).accuracy[0]
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
torch.save((accuracy, net.heads.state_dict()), f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_end_with_the_same_heads(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    environment = {k: v for k, v in environment.items() if k not in ("PYTEST_CURRENT_TEST", "PYTEST_VERSION")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0][0] > 0.7
    for a, b in zip(found[0][1].values(), found[1][1].values(), strict=True):
        torch.testing.assert_close(a, b)
