"""Batching stage by stage against the best server without it: ResNet-56, 64 clients, every split and all mixed.

Every server is a process, and so are the clients, which share the cores with it; what they take is printed, and
answers per processor second of the server beside answers per second. Two limits stand beside the figures: what
the stages alone gain from batches, in one thread without a server, and how many requests a bare gRPC server of the
same stubs answers that computes nothing. Weights are random: the speed is the same.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundle.networks import resnet56
from benchmarks.serving.load import Load, Orders, load
from benchmarks.serving.servers import cpu_s, started
from benchmarks.timing import parser, ratio_text, write_json
from offramp.bundle.bundle import Bundle
from offramp.bundle.export import export
from offramp.exits.confidence import confidence_of, softmax
from offramp.runtime.batching import MAX_BATCH
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest, tail_name
from offramp.tables import table_text

CLIENTS, SAMPLES = 64, 16
#: Batched over best unbatched: at an equal mix of splits, and on any tail.
MIX_BAR, TAIL_BAR = 1.1, 0.95
#: The 99th percentile at the last of these parts of the peak, over the unloaded median.
LOADS, P99_BAR = (0.3, 0.5, 0.7), 4.0
LATENCY_ROUNDS = 5
#: Of those that reach an exit on the server, this part leaves there in the mix with exits.
LEAVING = 0.2


@dataclass(frozen=True)
class Case:
    """What clients ask for: which models, and whether the server's own exits may answer."""

    name: str
    models: tuple[str, ...]
    final: bool


class Server:
    """One of the servers that are compared, and what it has done in the case at hand."""

    def __init__(self, name: str, address: str, pid: int) -> None:
        self.name, self.address, self.pid = name, address, pid
        self.loads: list[Load] = []
        self.server_cpu_s: list[float] = []
        self.seconds = 0.0

    def run(self, orders: Orders) -> None:
        """Lets clients ask it."""
        before = cpu_s(self.pid)
        self.loads.append(load(orders))
        self.server_cpu_s.append(cpu_s(self.pid) - before)
        self.seconds += orders.seconds

    @property
    def rate(self) -> float:
        """Answers a second, the median of the rounds."""
        return float(np.median([one.rate for one in self.loads]))

    def figures(self) -> dict[str, Any]:
        """JSON values."""
        latencies = [ms for one in self.loads for ms in one.latencies_ms]
        failed: dict[str, int] = {}
        for one in self.loads:
            for code, count in one.failed.items():
                failed[code] = failed.get(code, 0) + count
        return {
            "server": self.name,
            "answers_per_s": self.rate,
            "rounds": [one.rate for one in self.loads],
            "answers_per_server_cpu_s": len(latencies) / sum(self.server_cpu_s),
            "server_cores": sum(self.server_cpu_s) / self.seconds,
            "client_cores": sum(one.cpu_s for one in self.loads) / self.seconds,
            "p50_ms": float(np.percentile(latencies, 50)),
            "p99_ms": float(np.percentile(latencies, 99)),
            "answers": len(latencies),
            "wrong": sum(one.wrong for one in self.loads),
            "failed": failed,
            "worst_difference": max(one.worst for one in self.loads),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    made = parser(__doc__, "serving-batching")
    made.add_argument(
        "--seconds", type=float, default=60.0, help="per server and mix; a sixth per tail (default: %(default)s)"
    )
    arguments = made.parse_args(argv)
    seconds, rounds = (1.5, 1) if arguments.quick else (arguments.seconds, 3)
    cores = len(os.sched_getaffinity(0))
    unbatched = {f"workers {n}": {"workers": n, "max_batch": 1} for n in sorted({1, cores, 2 * cores})}
    unbatched |= {f"workers 1, threads {cores}": {"workers": 1, "threads": cores, "max_batch": 1}}
    settings = unbatched | {"batched": {"workers": cores, "max_batch": MAX_BATCH}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bundle, samples = _bundle(Path(folder) / "resnet56.bundle"), Path(folder) / "samples.npz"
        tail = Tail(Stages(bundle))
        last, name = bundle.manifest.last, bundle.manifest.name
        models = tuple(tail_name(name, cut, "float") for cut in range(-1, last))
        _write_samples(tail, models, samples)
        cases = [Case("mix, all to the end", models, True), Case("mix, with exits", models, False)]
        cases += [
            Case(model, (model,), True) for model in (models[:1] + models[-1:] if arguments.quick else models)
        ]
        gains = _compute_gains(tail.stages, 3 if arguments.quick else 15)
        addresses = {
            key: stack.enter_context(started("ours", str(bundle.path), json.dumps(chosen)))
            for key, chosen in settings.items()
        }
        bare = stack.enter_context(started("bare"))
        found = []
        for case in cases:
            share = 1.0 if len(case.models) > 1 else 1 / 6
            servers = [Server(key, *where) for key, where in addresses.items()]
            for turn in range(rounds):
                for server in servers:
                    server.run(_orders(server, samples, case, share * seconds / rounds, seed=turn))
            limit = Server("bare gRPC", *bare)
            limit.run(_orders(limit, samples, case, max(1.0, share * seconds / rounds)))
            found.append(_compared(case, servers, limit, gains, models))
            print(_line(found[-1]), flush=True)
        latency = _latency(addresses, samples, cases[0], found[0]["best_unbatched"], seconds / 15)
    print(_tables(found, latency))
    figures = {
        "bars": {"mix": MIX_BAR, "tail": TAIL_BAR, "p99_over_unloaded_p50": P99_BAR},
        "clients": CLIENTS,
        "settings": settings,
        "cases": found,
        "latency": latency,
    }
    print(f"written: {write_json(arguments, figures)}")


def _orders(server: Server, samples: Path, case: Case, seconds: float, seed: int = 0, **more: Any) -> Orders:
    chosen = {"clients": CLIENTS, **more}
    return Orders(
        server.address, str(samples), case.models, seconds=seconds, final=case.final, seed=seed, **chosen
    )


def _bundle(path: Path) -> Bundle:
    """ResNet-56 with six exits, each of which lets `LEAVING` of noise pass."""
    net, example = resnet56()
    export(net.eval(), example, path)
    bundle, stages = Bundle.load(path), Stages(Bundle.load(path))
    tensors: list[Any] = [_noise(bundle, 64)]
    thresholds: list[float | None] = []
    for i in range(bundle.manifest.last):
        tensors, _ = stages.stage(i, tensors)
        logits = stages.exit(i, tensors)[0].astype(np.float64)
        sure = np.sort(confidence_of(softmax(logits)))
        first = int(len(sure) * (1 - LEAVING))
        # Between two samples: what is added in another order in a batch must not turn a decision.
        thresholds.append(float(sure[first - 1 : first + 1].mean()))
    tuning = bundle.tuning.model_copy(update={"thresholds": (*thresholds, None)})
    (path / "tuning.json").write_text(tuning.model_dump_json(), encoding="utf-8")
    return Bundle.load(path)


def _noise(bundle: Bundle, n: int) -> Any:
    shape = (n, *bundle.manifest.inputs[0].shape)
    return (3 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def _write_samples(tail: Tail, models: Sequence[str], path: Path) -> None:
    """What clients send, and what each alone is answered: to the end, and where it may leave."""
    arrays: dict[str, Any] = {}
    tensors: list[Any] = [_noise(tail.bundle, SAMPLES)]
    for cut, model in enumerate(models, start=-1):
        specs = tail.stages.wire(cut, "float")
        sent = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
        arrays |= {f"{model}/{name}": tensor for name, tensor in sent.items()}
        for key, final in (("logits", True), ("early", False)):
            replies = [
                tail.infer(TailRequest(model, {n: t[k : k + 1] for n, t in sent.items()}, final=final))
                for k in range(SAMPLES)
            ]
            arrays[f"{model}/{key}"] = np.concatenate([reply.logits for reply in replies])
        logits = arrays[f"{model}/logits"]
        apart = min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i])
        assert apart > 1e-3, "answers that are alike cannot show that they were crossed"
        tensors, _ = tail.stages.stage(cut + 1, tensors)
    np.savez(path, **arrays)


def _compute_gains(stages: Stages, rounds: int) -> list[tuple[float, float]]:
    """Per stage the milliseconds of a sample alone and in a batch, in one thread, round by round."""
    tensors: list[Any] = [_noise(stages.bundle, 1)]
    gains = []
    for i in range(stages.bundle.manifest.last + 1):
        many = [np.repeat(t, MAX_BATCH, axis=0) for t in tensors]
        alone, together = [], []
        for _ in range(rounds):
            alone.append(float(np.median([stages.stage(i, tensors)[1] for _ in range(MAX_BATCH)])))
            together.append(stages.stage(i, many)[1] / MAX_BATCH)
        gains.append((float(np.median(alone)), float(np.median(together))))
        tensors, _ = stages.stage(i, tensors)
    return gains


def _compared(
    case: Case,
    servers: Sequence[Server],
    bare: Server,
    gains: Sequence[tuple[float, float]],
    models: Sequence[str],
) -> dict[str, Any]:
    batched, best = servers[-1], max(servers[:-1], key=lambda server: server.rate)
    figures = {server.name: server.figures() for server in servers}
    cuts = [models.index(model) for model in case.models]  # the first stage of each
    alone, together = (sum(sum(gain[side] for gain in gains[cut:]) for cut in cuts) / len(cuts) for side in (0, 1))
    ratios = [a.rate / b.rate for a, b in zip(batched.loads, best.loads, strict=True)]
    return {
        "case": case.name,
        "best_unbatched": best.name,
        "batched_over_unbatched": float(np.median(ratios)),
        "ratios": ratios,
        "per_server_cpu": figures["batched"]["answers_per_server_cpu_s"]
        / figures[best.name]["answers_per_server_cpu_s"],
        "bar": MIX_BAR if len(case.models) > 1 else TAIL_BAR,
        "compute_ms_alone": alone,
        "compute_ms_batched": together,
        "compute_limit": alone / together,
        "bare_answers_per_s": bare.rate,
        "bare_answers_per_server_cpu_s": bare.figures()["answers_per_server_cpu_s"],
        "servers": list(figures.values()),
    }


def _latency(
    addresses: Mapping[str, tuple[str, int]], samples: Path, case: Case, rival: str, seconds: float
) -> list[dict[str, Any]]:
    """The batched server's latency at parts of its peak, the best other one's at the last of them beside it.

    Peak, one client alone and every load are measured anew in each round, seconds after each other, and compared
    within it: what a shared machine gives changes from minute to minute.
    """
    rounds: dict[tuple[str, float], list[tuple[float, ...]]] = {}
    for turn in range(LATENCY_ROUNDS):

        def asked(key: str, turn: int = turn, **more: Any) -> Server:
            server = Server(key, *addresses[key])
            server.run(_orders(server, samples, case, seconds, seed=turn, **more))
            return server

        peak = asked("batched").rate
        alone = asked("batched", clients=1).figures()["p50_ms"]
        for key, load_ in (*(("batched", one) for one in LOADS), (rival, LOADS[-1])):
            found = asked(key, rate=load_ * peak).figures()
            ratio = found["p99_ms"] / alone
            busy = found["server_cores"] + found["client_cores"]
            row = (found["answers_per_s"], busy, alone, found["p50_ms"], found["p99_ms"], ratio)
            rounds.setdefault((key, load_), []).append(row)
    names = ("answers_per_s", "busy_cores", "unloaded_p50_ms", "p50_ms", "p99_ms", "p99_over_unloaded_p50")
    return [
        {
            "server": key,
            "load": load_,
            **dict(zip(names, np.median(rows, axis=0).tolist(), strict=True)),
            "ratios": [row[-1] for row in rows],
        }
        for (key, load_), rows in rounds.items()
    ]


def _line(found: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{entry['server']} {entry['answers_per_s']:.0f}/s" for entry in found["servers"])
    return f"{found['case']}: {rates}"


def _tables(found: Sequence[Mapping[str, Any]], latency: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for case in found:
        by_name = {entry["server"]: entry for entry in case["servers"]}
        best, batched = by_name[case["best_unbatched"]], by_name["batched"]
        rows.append(
            [
                case["case"],
                best["server"],
                f"{best['answers_per_s']:.0f}",
                f"{batched['answers_per_s']:.0f}",
                ratio_text(case["batched_over_unbatched"]),
                f"{min(case['ratios']):.2f}-{max(case['ratios']):.2f}",
                str(case["bar"]),
                ratio_text(case["per_server_cpu"]),
                ratio_text(case["compute_limit"]),
                f"{case['bare_answers_per_s']:.0f}",
                f"{batched['client_cores']:.2f}",
                str(sum(entry["wrong"] + sum(entry["failed"].values()) for entry in case["servers"])),
            ]
        )
    heads = ["asked for", "best unbatched", "its /s", "batched /s", "ratio", "rounds", "bar", "ratio per CPU s"]
    heads += ["stages alone gain", "bare gRPC /s", "clients' cores", "wrong or lost"]
    caption = (
        "Ratio per CPU s: answers per processor second of the server. Limits: what the stages alone gain, and "
        "what a gRPC server that computes nothing answers to the same clients, which share the cores with all."
    )
    first = table_text(f"{CLIENTS} clients, ResNet-56", heads, rows, caption=caption)
    rows = []
    for entry in latency:
        barred = entry["server"] == "batched" and entry["load"] == LOADS[-1]
        low, high = min(entry["ratios"]), max(entry["ratios"])
        rows.append(
            [
                f"{entry['server']}, {entry['load']:.0%} of the peak",
                f"{entry['answers_per_s']:.0f}",
                *(f"{entry[key]:.2f}" for key in ("busy_cores", "unloaded_p50_ms", "p50_ms", "p99_ms")),
                f"{entry['p99_over_unloaded_p50']:.1f} ({low:.1f}-{high:.1f})",
                str(P99_BAR) if barred else "-",
            ]
        )
    heads = ["mix, all to the end, steady", "answers/s", "busy cores", "one client, p50 ms", "p50 ms", "p99 ms"]
    heads += ["p99 over one client's p50 (rounds)", "bar"]
    caption = (
        f"Medians of {LATENCY_ROUNDS} rounds, each compared with its own peak and its own single client. Busy: by "
        "server and clients. What rules of batching allow, by cores: `python -m benchmarks.serving.queueing`."
    )
    return f"{first}\n{table_text('Latency', heads, rows, caption=caption)}"


if __name__ == "__main__":
    main()
