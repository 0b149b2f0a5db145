"""Inputs by place and by name, and samples for graphs that are run without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.bundle.feed import by_name, example, signature
from offramp.bundle.manifest import TensorSpec
from offramp.errors import InputError

X = TensorSpec(name="input", dtype="float32", shape=(2, 3))
MASK = TensorSpec(name="mask", dtype="bool", shape=(4,))


@pytest.mark.parametrize("given", [np.ones((2, 3)), np.ones((2, 3)).tolist(), {"pixels": np.ones((2, 3))}])
def test_the_only_input_needs_no_name(given: Any) -> None:
    ((name, x),) = by_name(given, [X]).items()
    assert (name, x.shape) == ("input", (2, 3))


def test_the_only_input_is_one() -> None:
    with pytest.raises(InputError, match=r"there is no input a, b; the network takes input float32 \(N, 2, 3\)"):
        by_name({"a": 1, "b": 2}, [X])
    with pytest.raises(InputError, match="the input input is missing"):
        by_name({}, [X])


def test_several_come_in_the_manifest_s_order() -> None:
    given = {"mask": [True], "input": [1.0]}
    for form in (given, (given["input"], given["mask"]), [given["input"], given["mask"]]):
        found = by_name(form, [X, MASK])
        assert list(found) == ["input", "mask"]
        assert found["mask"].tolist() == [True]
        assert list(by_name(found, [X, MASK])) == list(found)


def test_examples_hold_both_kinds() -> None:
    x, mask = example([X, MASK])
    assert (x.dtype, x.shape, mask.dtype, mask.shape) == (np.float32, (1, 2, 3), bool, (1, 4))
    assert mask.tolist() == [[False, True, False, True]]
    assert example([TensorSpec(name="n", dtype="int64", shape=())])[0].shape == (1,)
    assert signature([X, MASK]) == "input float32 (N, 2, 3), mask bool (N, 4)"
