import math
import os
from pathlib import Path

import numpy as np
import pytest
from worlds import context, drawn, play, problem

from offramp.policy.base import Action
from offramp.policy.cost import CostModel
from offramp.policy.uee import UEEUCB

TRACE = Path(os.environ.get("OFFRAMP_DATA", "")) / "traces" / "imdb_elasticbert_4exits.csv"


def oracle(predictions, costs, c=1.0):
    """PAPERS.md §5 in its plainest form: p̂_1j + C_1 − C_j + sqrt(ln(t + 1)/N_j)."""
    arms = range(len(costs))
    shown = [[] for _ in arms]
    chosen = []
    for t, row in enumerate(predictions):
        if t == 0:
            j = len(costs) - 1
        else:
            index = [
                sum(s) / len(s) + costs[0] - costs[j] + c * math.sqrt(math.log(t + 1) / len(s))
                for j, s in zip(arms, shown, strict=True)
            ]
            j = index.index(max(index))
        chosen.append(j)
        for i in range(j + 1):
            shown[i].append(float(row[0] != row[i]))
    return chosen


def test_it_plays_as_the_oracle():
    cost = CostModel.in_layers((1, 3, 7, 12), gamma=1 / 12, offload=9.0)
    confidence, prediction = drawn(1, 500)
    actions = play(UEEUCB(), context(cost=cost), confidence, prediction)
    assert [a.split for a in actions] == oracle(prediction, [d / 12 for d in (1, 3, 7, 12)])


def test_its_arm_answers_on_the_edge_however_unsure():
    confidence, prediction = np.zeros((3, 4)), np.zeros((3, 4), np.int32)
    policy = UEEUCB()
    actions = play(policy, context(), confidence, prediction)
    assert actions[0] == Action(3, (), watch=(0, 1, 2))
    assert actions[1] == Action(0, (0,))
    assert policy.threshold(context(), 0) == 0.0


@pytest.mark.skipif(not TRACE.is_file(), reason="needs $OFFRAMP_DATA/traces")
def test_the_papers_accuracy_and_cost_on_its_own_predictions():
    """Accuracy .807 at mean cost .2508, random .774 at .479 (PAPERS.md §5)."""
    rows = np.loadtxt(TRACE, dtype=np.int32, skiprows=1)
    prediction, label = rows[:, :4], rows[:, 4]
    cost = CostModel.in_layers((1, 3, 7, 12), gamma=1 / 12, offload=0.0)
    world = problem(np.full(prediction.shape, 0.5), cost=cost, prediction=np.ascontiguousarray(prediction))
    orders = np.stack([np.random.default_rng(run).permutation(len(label)) for run in range(5)])
    arms = UEEUCB().replay(world, orders)
    right = (prediction == label[:, None])[orders, arms]
    assert (1 - (prediction == label[:, None]).mean(axis=0)).round(4).tolist() == [0.3877, 0.193, 0.1709, 0.1539]
    assert right.mean() == pytest.approx(0.807, abs=0.001)
    assert world.local_cost[arms].mean() == pytest.approx(0.2508, abs=0.002)
