"""The way through the stages: a job is one request on it, a batch the jobs that go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.runtime.gate import Gate
from offramp.runtime.stages import Stages

__all__ = ["Batch", "Job"]

Array = NDArray[np.generic]


class Job:
    """One request under way.

    Attributes:
        stage: The stage that it enters at.
        samples: N.
        final: Whether it goes to the last exit.
        largest: The most samples that ran beside each other in a stage of its, its own included.
        error: Why there is no answer; None while there may be one.
        on_done: Called by whoever sees that it is done.
        trace: What a tracer remembers of it.
    """

    def __init__(self, stage: int, tensors: list[Array], final: bool) -> None:
        self.stage, self.samples, self.final = stage, len(tensors[0]), final
        self.largest = self.samples
        self.error: Exception | None = None
        self.on_done: Callable[[], object] = lambda: None
        self.trace: object | None = None
        self.tensors = tensors
        #: Logits (N, classes) and exits (N,); None until the first sample leaves.
        self._answer: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
        self._going: NDArray[np.intp] | None = None
        self.left = self.samples

    @property
    def done(self) -> bool:
        """Whether every sample has left, or none ever will."""
        return self.left == 0 or self.error is not None

    @property
    def answer(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits (N, classes) and which exit answered (N,), once `done`.

        Raises:
            OfframpError: What went wrong on the way.
        """
        if self.error is not None:
            raise self.error
        assert self._answer is not None
        return self._answer

    def leave(self, exit_index: int, logits: Array, sure: NDArray[np.bool_] | None = None) -> None:
        """Takes the logits (left, classes) of an exit for the samples that are sure (left,), or for all."""
        everybody = sure is None or bool(sure.all())
        if everybody and self._answer is None:
            exits = np.empty(self.samples, np.int64)
            exits.fill(exit_index)  # a third of what `np.full` takes
            self._answer = logits.astype(np.float32, copy=False), exits
            self.left = 0
            return
        if self._answer is None:
            self._answer = (
                np.zeros((self.samples, *logits.shape[1:]), np.float32),
                np.zeros(self.samples, np.int64),
            )
            self._going = np.arange(self.samples)
        assert self._going is not None
        leaving = np.ones(self.left, np.bool_) if sure is None else sure
        self._answer[0][self._going[leaving]], self._answer[1][self._going[leaving]] = logits[leaving], exit_index
        self._going = self._going[~leaving]
        self.left = len(self._going)


class Batch:
    """Jobs that go through the stages together; others join where it passes, and each leaves where it may.

    Args:
        stages: The bundle's sessions.
        gate: Who may leave.
        job: The first.
    """

    def __init__(self, stages: Stages, gate: Gate, job: Job) -> None:
        self._stages, self._gate = stages, gate
        self._last = stages.bundle.manifest.last
        self.stage, self.jobs, self._tensors = job.stage, [job], job.tensors

    @property
    def samples(self) -> int:
        """How many go through the next stage."""
        jobs = self.jobs
        return jobs[0].left if len(jobs) == 1 else sum([job.left for job in jobs])

    def join(self, jobs: Sequence[Job]) -> None:
        """Takes in jobs that enter at the stage which is next."""
        parts = [self._tensors, *(job.tensors for job in jobs)]
        self._tensors = [np.concatenate(column) for column in zip(*parts, strict=True)]
        self.jobs += jobs

    def step(self) -> list[Job]:
        """Runs the next stage and its exit; gives the jobs that are done.

        Raises:
            StageError: ONNX Runtime failed; the batch is as before.
        """
        i, together = self.stage, self.samples
        tensors, _ = self._stages.stage(i, self._tensors)
        if i == self._last:
            self._share(i, tensors[0], None)
        elif self._gate.opens(i) and not all(job.final for job in self.jobs):
            logits, _ = self._stages.exit(i, tensors)
            sure = self._gate.sure(i, logits)
            if any(job.final for job in self.jobs):
                sure &= np.repeat([not job.final for job in self.jobs], [job.left for job in self.jobs])
            if sure.any():
                self._share(i, logits, sure)
                tensors = [t[~sure] for t in tensors]
        self._tensors, self.stage = tensors, i + 1
        for job in self.jobs:
            job.largest = max(job.largest, together)
        done = [job for job in self.jobs if job.done]
        if done:
            self.jobs = [job for job in self.jobs if not job.done]
        return done

    def run(self) -> None:
        """Goes on to the end.

        Raises:
            StageError: ONNX Runtime failed.
        """
        while self.jobs:
            self.step()

    def split(self) -> list[Batch]:
        """A batch for each job, at the same stage."""
        parts, start = [], 0
        for job in self.jobs:
            part = Batch(self._stages, self._gate, job)
            part.stage, part._tensors = self.stage, [t[start : start + job.left] for t in self._tensors]
            parts.append(part)
            start += job.left
        return parts

    def _share(self, exit_index: int, logits: Array, sure: NDArray[np.bool_] | None) -> None:
        """Gives each job its rows of an exit's logits."""
        start = 0
        for job in self.jobs:
            rows = slice(start, start + job.left)
            start = rows.stop
            if sure is None:
                job.leave(exit_index, logits[rows])
            elif sure[rows].any():
                job.leave(exit_index, logits[rows], sure[rows])
