"""Energy counters, as Linux shows them, in a folder made up."""

import threading

import pytest

from offramp.runtime.board_energy import find_board_energy


@pytest.fixture
def show(tmp_path):
    """Writes files below the made-up /sys: show("class/hwmon/hwmon0", name="ina3221", …)."""

    def write(device, **files):
        folder = tmp_path / device
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")

    return write


def rapl(show, zone, name, energy_uj, most=1_000_000_000):
    show(f"class/powercap/intel-rapl:{zone}", name=name, energy_uj=energy_uj, max_energy_range_uj=most)


def found(tmp_path, clock):
    return find_board_energy(tmp_path, clock=clock)


def test_a_board_without_counters(tmp_path, show, clock):
    assert found(tmp_path, clock) is None
    show("class/hwmon/hwmon0", name="coretemp", temp1_input=40_000, curr1_input=5, in1_input=5)
    show("class/powercap/intel-rapl:0", name="package-0")  # which nobody may read
    rapl(show, "1", "package-1", "none")
    rapl(show, "2", "psys", 7)
    assert found(tmp_path, clock) is None


def test_packages_and_memory_are_added_up(tmp_path, show, clock):
    for zone, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")):
        rapl(show, zone, name, 5_000_000)
    energy = found(tmp_path, clock)
    assert energy.name == "package-0, dram, package-1 by RAPL"
    assert energy.joules() == 0
    rapl(show, "0", "package-0", 7_500_000)
    rapl(show, "0:0", "core", 9_000_000)  # a part of the package
    rapl(show, "0:1", "dram", 5_250_000)
    assert energy.joules() == pytest.approx(2.75)
    assert energy.joules() == pytest.approx(2.75)


def test_a_counter_may_begin_anew(tmp_path, show, clock):
    rapl(show, "0", "package-0", 9_000_000, most=9_999_999)
    energy = found(tmp_path, clock)
    energy.joules()
    rapl(show, "0", "package-0", 500_000, most=9_999_999)
    assert energy.joules() == pytest.approx(1.5)


def test_the_boards_input_goes_before_its_parts_and_rapl(tmp_path, show, clock):
    rapl(show, "0", "package-0", 1)
    rails = {"in1_label": "VDD_IN", "in2_label": "VDD_CPU_GPU_CV", "in1_input": 5000, "in2_input": 5000}
    show("class/hwmon/hwmon3", name="ina3221", curr1_input=2000, curr2_input=900, **rails)
    energy = found(tmp_path, clock)
    assert energy.name == "VDD_IN by the board's power monitor"
    energy.joules()
    clock.now += 2.0
    show("class/hwmon/hwmon3", curr1_input=4000)
    assert energy.joules() == pytest.approx(2 * (10 + 20) / 2)  # 10 W, then 20 W
    clock.now += 1.0
    assert energy.joules() == pytest.approx(30 + 20)


def test_the_sum_of_a_monitors_channels_is_no_rail(tmp_path, show, clock):
    """Linux's ina3221 shows it as a fourth current, beside which stand the shunts' voltages."""
    channels = {f"{what}{n}_input": value for n in (1, 2, 3) for what, value in (("in", 5000), ("curr", 1000))}
    show("class/hwmon/hwmon0", name="ina3221", curr4_input=3000, in4_input=5, in7_input=15, **channels)
    energy = found(tmp_path, clock)
    assert energy.name == "ina3221-1, ina3221-2, ina3221-3 by the board's power monitor"
    energy.joules()
    clock.now += 1.0
    assert energy.joules() == pytest.approx(15)


def test_a_monitor_may_say_power_itself(tmp_path, show, clock):
    show("class/hwmon/hwmon0", name="ina226", curr1_input=9, in0_input=9, in1_input=9, power1_input=3_000_000)
    show("class/hwmon/hwmon1", name="ina219", curr1_input=400, in0_input=7, in1_input=5000)
    energy = found(tmp_path, clock)
    assert energy.name == "ina226-1, ina219-1 by the board's power monitor"
    energy.joules()
    clock.now += 1.0
    assert energy.joules() == pytest.approx(3 + 2)


@pytest.mark.parametrize("content", ["", "none"])
def test_a_counter_that_goes_away_is_not_guessed(tmp_path, show, clock, content):
    rapl(show, "0", "package-0", 1)
    energy = found(tmp_path, clock)
    energy.joules()
    show("class/powercap/intel-rapl:0", energy_uj=content)
    assert energy.joules() is None
    show("class/powercap/intel-rapl:0", energy_uj=9_000_000)
    assert energy.joules() is None


def test_it_looks_by_itself_and_leaves_no_thread(tmp_path, show):
    rapl(show, "0", "package-0", 1_000_000)
    before = threading.active_count()
    with find_board_energy(tmp_path) as energy:
        assert threading.active_count() == before + 1
        rapl(show, "0", "package-0", 3_000_000)
    assert threading.active_count() == before
    assert energy.joules() == pytest.approx(2.0)
