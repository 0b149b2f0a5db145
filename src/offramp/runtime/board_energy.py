"""Energy by the board's own counters, where there are any: measured, not modelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

__all__ = ["BoardEnergy", "Counter", "Rail", "find_board_energy"]

#: Seconds between two looks at what is drawn.
_EVERY_S = 0.1


@dataclass(frozen=True)
class Counter:
    """A count of microjoules that begins anew after `most` (Linux's powercap, which shows RAPL).

    Attributes:
        name: What it counts, such as "package-0".
        file: Where the count stands.
        most: The largest count.
    """

    name: str
    file: Path
    most: int

    def read(self) -> float:
        """The count in microjoules."""
        return float(self.file.read_text())


@dataclass(frozen=True)
class Rail:
    """What flows at the moment, by a power monitor such as INA3221 (Linux's hwmon).

    Attributes:
        name: The rail, such as "VDD_IN".
        factors: Files whose product is microwatts: power itself, or millivolts and milliamperes.
    """

    name: str
    factors: tuple[Path, ...]

    def read(self) -> float:
        """Microwatts."""
        product = 1.0
        for file in self.factors:
            product *= float(file.read_text())
        return product


def find_board_energy(
    root: Path = Path("/sys"), *, clock: Callable[[], float] = time.monotonic
) -> BoardEnergy | None:
    """The board's counters; None where there are none that this user may read.

    A power monitor on the board's input goes before all: it sees everything. Then come the processors' packages
    and memory by RAPL, which only root may read on most systems, and then the sum of a monitor's rails.

    Args:
        root: Where the system shows its devices.
        clock: Gives seconds.
    """
    rails, counters = _rails(root / "class/hwmon"), _counters(root / "class/powercap")
    whole = [rail for rail in rails if rail.name.upper().endswith("_IN")]
    for found in (whole, counters, rails):
        if found:
            return BoardEnergy(found, clock=clock)
    return None


class BoardEnergy:
    """Adds up what the counters count, from entering its block on: of the whole board, whoever uses it.

    Args:
        meters: The counters or rails.
        clock: Gives seconds.
    """

    def __init__(self, meters: Sequence[Counter | Rail], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._meters, self._clock = tuple(meters), clock
        self._joules: float | None = 0.0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._last: tuple[float, list[float]] | None = None
        self._thread = threading.Thread(target=self._look, name="offramp-energy", daemon=True)

    @property
    def name(self) -> str:
        """What was measured, by what."""
        by = "RAPL" if isinstance(self._meters[0], Counter) else "the board's power monitor"
        return f"{', '.join(meter.name for meter in self._meters)} by {by}"

    def __enter__(self) -> Self:
        self.joules()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def joules(self) -> float | None:
        """What was used since the block began; None once a counter could not be read."""
        with self._lock:
            try:
                now, values = self._clock(), [meter.read() for meter in self._meters]
            except (OSError, ValueError):
                self._joules = None
            else:
                if self._last is not None and self._joules is not None:
                    self._joules += sum(self._used(now, values)) / 1e6
                self._last = (now, values)
            return self._joules

    def _used(self, now: float, values: list[float]) -> list[float]:
        """Microjoules of each meter since the last look."""
        assert self._last is not None
        then, before = self._last
        return [
            (new - old) % (meter.most + 1) if isinstance(meter, Counter) else (old + new) / 2 * (now - then)
            for meter, old, new in zip(self._meters, before, values, strict=True)
        ]

    def _look(self) -> None:
        while not self._over.wait(_EVERY_S) and self.joules() is not None:
            pass


def _counters(folder: Path) -> list[Counter]:
    """Packages, and memory beside them; cores and graphics are parts of a package."""
    found = []
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's are called so too
        try:
            name = (zone / "name").read_text().strip()
            counter = Counter(name, zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
            counter.read()
        except (OSError, ValueError):
            continue
        if name.startswith("package") or name == "dram":
            found.append(counter)
    return found


def _rails(folder: Path) -> list[Rail]:
    found = []
    for device in sorted(folder.glob("hwmon*")):
        try:
            chip = (device / "name").read_text().strip()
        except OSError:
            continue
        if not chip.startswith(("ina2", "ina3")):
            continue
        for current in sorted(device.glob("curr*_input")):
            n = current.name.removeprefix("curr").removesuffix("_input")
            if chip.startswith("ina3") and n > "3":  # the other three's sum; in4 is a shunt's voltage
                continue
            power, volts, label = (
                device / f"{what}" for what in (f"power{n}_input", f"in{n}_input", f"in{n}_label")
            )
            if chip.startswith("ina2"):  # its bus voltage is in1, in0 is the shunt's
                volts = device / "in1_input"
            try:
                name = label.read_text().strip() if label.exists() else f"{chip}-{n}"
                rail = Rail(name, (power,) if power.exists() else (volts, current))
                rail.read()
            except (OSError, ValueError):
                continue
            found.append(rail)
    return found
