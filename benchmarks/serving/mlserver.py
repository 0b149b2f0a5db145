"""MLServer, an Open Inference Protocol server that is not ours, with every tail of a bundle.

It lives in an environment of its own, which `make .venv-mlserver/.installed` makes; `OFFRAMP_MLSERVER` names the
Python of another one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from offramp.bundle.bundle import Bundle
from offramp.errors import ServerRefusedError, ServerUnavailableError
from offramp.runtime.tail import tail_models
from offramp.serving.channel import GrpcChannel

__all__ = ["PYTHON", "mlserver"]

_ROOT = Path(__file__).parents[2]
#: The Python that has MLServer.
PYTHON = Path(os.environ.get("OFFRAMP_MLSERVER", _ROOT / ".venv-mlserver/bin/python"))
#: Where the runtime is that holds the tails.
_RUNTIME = _ROOT / "tests/serving/mlserver"
_START_S = 60.0


@contextlib.contextmanager
def mlserver(bundle: Bundle, home: Path) -> Iterator[str]:
    """Starts it in a process of its own; gives its gRPC address.

    Args:
        bundle: What it serves.
        home: An empty folder for its settings and its log.

    Raises:
        RuntimeError: It did not start; the text is its log.
    """
    http, grpc = _free_ports(2)
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "grpc_max_message_length": 64 * 2**20,
    }
    (home / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    models = tail_models(bundle.manifest)
    for model in models:
        (home / model.name).mkdir()
        extra = {"bundle": str(bundle.path), "cut": model.cut, "mode": model.mode}
        described = {"name": model.name, "implementation": "tails.Tail", "parameters": {"extra": extra}}
        (home / model.name / "model-settings.json").write_text(json.dumps(described), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    log = home / "log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [PYTHON.with_name("mlserver"), "start", home],
            cwd=home,
            env={**environment, "PYTHONPATH": str(_RUNTIME)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, f"127.0.0.1:{grpc}", models[-1].name, log)
        yield f"127.0.0.1:{grpc}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, model: str, log: Path) -> None:
    channel, end = GrpcChannel(address), time.monotonic() + _START_S
    with contextlib.closing(channel):
        while True:
            try:
                return channel.check(model, "0" * 64)
            except (ServerUnavailableError, ServerRefusedError):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(log.read_text(encoding="utf-8")) from None
                time.sleep(0.2)
