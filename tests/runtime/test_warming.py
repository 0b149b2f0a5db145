import numpy as np
import pytest

from offramp.errors import ServerRefusedError
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.runtime.warming import measured_sizes, warm_tail


class Timed:
    """Stages that say how long a batch took: ms(stage, samples)."""

    def __init__(self, stages, ms, clock):
        self._stages, self._ms, self._clock, self.runs = stages, ms, clock, []

    def __getattr__(self, name):
        return getattr(self._stages, name)

    def stage(self, index, tensors):
        n = len(tensors[0])
        self.runs.append((index, n))
        self._clock.now += self._ms(index, n) / 1e3
        return self._stages.stage(index, tensors)[0], self._ms(index, n)

    def exit(self, index, tensors):
        self.runs.append(("exit", index))
        return self._stages.exit(index, tensors)

    def decode(self, cut, mode, tensors):
        self.runs.append(("decode", cut))
        return self._stages.decode(cut, mode, tensors)


@pytest.fixture
def timed(tiny, clock):
    return lambda ms: Timed(Stages(tiny), ms, clock)


def test_every_stage_stops_where_larger_batches_cost_more(timed, clock):
    per_sample = [
        {1: 1.0, 2: 0.9, 4: 0.8, 8: 0.8, 16: 0.8},  # gains
        {1: 1.0, 2: 1.04, 4: 1.06, 8: 1.2, 16: 1.5},  # loses, at first little
        {1: 1.0, 2: 1.2, 4: 1.2, 8: 1.2, 16: 1.2},  # loses at once
        {1: 1.0, 2: 0.5, 4: 0.51, 8: 0.53, 16: 0.6},  # an optimum
    ]
    stages = timed(lambda i, n: per_sample[i][n] * n)
    sizes = measured_sizes(stages, 16, budget_s=1e3, clock=clock)
    assert sizes == ((4, 16), (1, 2), (1, 1), (2, 4))
    assert Tail(stages, sizes=sizes).sizes == sizes


def test_every_graph_runs_even_without_time(timed, clock):
    stages = timed(lambda i, n: 1e6)
    assert measured_sizes(stages, 16, clock=clock) == ((1, 1),) * 4
    assert {run for run in stages.runs if run[0] == "exit"} == {("exit", 0), ("exit", 2)}
    assert {run for run in stages.runs if run[0] == "decode"} == {("decode", cut) for cut in range(-1, 3)}
    assert {i for i, n in stages.runs if n == 1} >= {0, 1, 2, 3}


def test_the_largest_batch_bounds_what_is_tried(timed, clock):
    stages = timed(lambda i, n: 1.0)  # the more the cheaper
    assert measured_sizes(stages, 6, budget_s=1e3, clock=clock) == ((4, 4),) * 4
    assert max(n for i, n in stages.runs if isinstance(i, int)) == 4


def test_on_real_stages(digits_bundle):
    from offramp.bundle.bundle import Bundle

    sizes = measured_sizes(Stages(Bundle.load(digits_bundle)), 8, budget_s=0.2)
    assert len(sizes) == 3
    assert np.isin(sizes, (1, 2, 4, 8)).all()
    assert all(eager <= most for eager, most in sizes)


def test_an_edge_copy_is_refused_as_what_it_is(tiny, tmp_path):
    copy = tiny.edge_copy(tmp_path / "edge.bundle", 1)
    with pytest.raises(ServerRefusedError, match="an edge copy with 1 of"):
        warm_tail(copy, threads=1, provider="cpu", max_batch=4)
