import dataclasses

import numpy as np
import pytest
from worlds import drawn, problem

from offramp.errors import TraceError

GOOD = problem(drawn(0, 10)[0])


def changed(name, change):
    array = getattr(GOOD, name).copy()
    change(array)
    return {name: array}


def test_its_length_is_the_samples():
    assert len(GOOD) == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": ()}, "arms"),
        ({"arms": (0, 2, 1, 3)}, "ascending"),
        ({"arms": (0, 1, 1, 3)}, "ascending"),
        ({"arms": (-2, 0, 1, 2)}, "arms"),
        ({"arms": (0, 1, 2)}, "shape"),
        ({"confidence": GOOD.confidence.astype(np.float32)}, "float32"),
        ({"prediction": GOOD.prediction[:5]}, "prediction"),
        ({"sure": GOOD.sure[:, :2]}, "sure"),
        ({"local_cost": GOOD.local_cost[:2]}, "local_cost"),
        (changed("confidence", lambda a: a.__setitem__((3, 1), np.nan)), r"outside \[0, 1\]"),
        (changed("confidence", lambda a: a.__setitem__((3, 1), 1.01)), r"outside \[0, 1\]"),
        (changed("confidence", lambda a: a.__setitem__((3, 1), -0.01)), r"outside \[0, 1\]"),
        (changed("sure", lambda a: a.__setitem__((3, 3), False)), "last arm"),
        (changed("local_cost", lambda a: a.__setitem__(1, -1)), "local_cost"),
        (changed("offload_cost", lambda a: a.__setitem__(1, np.inf)), "offload_cost"),
    ],
)
def test_what_cannot_be_played_on_is_refused(changes, said):
    with pytest.raises(TraceError, match=said):
        dataclasses.replace(GOOD, **changes)


def test_fewer_samples_than_arms_are_refused():
    with pytest.raises(TraceError, match="3 samples are too few for 4"):
        problem(drawn(0, 3)[0])
    assert len(problem(drawn(0, 4)[0])) == 4
