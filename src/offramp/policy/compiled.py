"""Replays of learners at machine speed: the only place that imports Numba, and only when it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import MissingExtraError
from offramp.policy.plays import plays
from offramp.policy.problem import Problem

__all__ = ["need_compiler", "played"]


def played(
    problem: Problem,
    orders: NDArray[np.int64],
    *,
    audited: NDArray[np.bool_],
    mu: float,
    **settings: Any,
) -> NDArray[np.int64]:
    """`plays`, compiled, on a problem.

    The first call of a process takes a second or two longer: it compiles.

    Args:
        problem: What there is to see, and what it costs.
        orders: (runs, plays) indices of samples, as `Problem.checked` gives them.
        audited: (runs, plays).
        mu: μ, the weight of cost.
        settings: As `plays` takes them.

    Raises:
        MissingExtraError: Numba is not installed.
    """
    chosen: NDArray[np.int64] = _compiled()(
        np.ascontiguousarray(problem.confidence),
        np.ascontiguousarray(problem.sure),
        mu * problem.local_cost,
        mu * problem.offload_cost,
        orders,
        audited,
        **settings,
    )
    return chosen


def need_compiler() -> None:
    """For work that would take days without.

    Raises:
        MissingExtraError: Numba is not installed.
    """
    _compiled()


@functools.cache
def _compiled() -> Callable[..., NDArray[np.int64]]:
    try:
        import numba
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"a compiled replay needs {error.name}, which is not installed: pip install 'offramp[replay]'"
        ) from error
    # No fast arithmetic: the scalar form has to come to the same sums.
    return numba.njit(plays, error_model="numpy")  # type: ignore[return-value]
