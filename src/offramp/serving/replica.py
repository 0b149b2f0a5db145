"""One of several replicas behind a cluster's own gRPC server: a `Service` on an event loop. Needs no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grpc
from tritonclient.grpc import service_pb2 as pb

from offramp.errors import ConfigError, DigestMismatchError
from offramp.runtime.batching import MAX_BATCH, MAX_WAIT_MS, Batcher
from offramp.runtime.repository import BundleFolders, Repository
from offramp.runtime.warming import warm_tail
from offramp.serving.access import Access
from offramp.serving.refusal import Refusal
from offramp.serving.server import Client, answer
from offramp.serving.service import DRAIN_S, MAX_ELEMENTS, SPARE, Service

__all__ = ["APPLICATION", "Context", "Replica", "ReplicaSettings", "deployment_options"]

#: The one application of Ray Serve's: whoever names none is led to it while there is no other.
APPLICATION = "offramp"


@dataclass(frozen=True)
class ReplicaSettings:
    """What every replica is started with; see `offramp serve`.

    Attributes:
        bundles: Bundles, or folders of bundles: absolute paths that every machine has.
        threads: Threads per batch.
        provider: "cpu" or "cuda".
        workers: Batches that compute at the same time.
        queue: Requests under way beyond one per worker; more are refused.
        max_batch: Samples that run together at most.
        max_wait_ms: See `Batcher`.
        max_message_mb: The largest request in MiB.
        max_elements: Tensor elements of a request at most.

    Raises:
        ConfigError: No bundle, or a path that is not absolute.
    """

    bundles: tuple[str, ...]
    threads: int = 1
    provider: str = "cpu"
    workers: int = 1
    queue: int = 64
    max_batch: int = MAX_BATCH
    max_wait_ms: float = MAX_WAIT_MS
    max_message_mb: int = 64
    max_elements: int = MAX_ELEMENTS

    def __post_init__(self) -> None:
        if not self.bundles or not all(Path(path).is_absolute() for path in self.bundles):
            given = ", ".join(self.bundles) or "none"
            raise ConfigError(f"bundles are absolute paths that every machine has, not {given}")

    @property
    def places(self) -> int:
        """Requests that a replica has room for, those included that are refused, or only ask for health."""
        return self.workers + self.queue + SPARE


def deployment_options(settings: ReplicaSettings, fewest: int, most: int) -> dict[str, Any]:
    """What Ray Serve is told of the replicas.

    Args:
        settings: What each of them holds.
        fewest: Replicas at least.
        most: Replicas at most; between both, as many as the load needs.
    """
    scale: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scale = {
            "autoscaling_config": {
                "min_replicas": fewest,
                "max_replicas": most,
                # One that computes and one that waits: beyond that, requests share batches, and wait.
                "target_ongoing_requests": 2 * settings.workers,
                # A replica is there in seconds; edges come back every few.
                "upscale_delay_s": 3.0,
                "downscale_delay_s": 120.0,
                "look_back_period_s": 5.0,
            }
        }
    return {
        "name": APPLICATION,
        "ray_actor_options": {
            "num_cpus": settings.workers * settings.threads,
            "num_gpus": int(settings.provider == "cuda"),
        },
        # The replica's own limit refuses what is too much; there must be room for the refusal.
        "max_ongoing_requests": settings.places,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.2,
        **scale,
    }


class Context(Client, Protocol):
    """What is needed of a cluster's gRPC context, which does not say whether the client is still there."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status that the client gets."""

    def set_details(self, details: str) -> None:
        """Its text."""


class Replica:
    """Answers the Open Inference Protocol's gRPC methods, each as a coroutine that never keeps its loop waiting.

    Args:
        settings: As every other replica has them.
        access: Who may ask; health answers everybody.
        digests: What the bundles here must be; elsewhere they are the same.

    Raises:
        ConfigError: Settings that cannot be.
        OfframpError: A bundle that cannot be read.
        DigestMismatchError: The bundles here are others.
    """

    def __init__(
        self, settings: ReplicaSettings, access: Access | None = None, digests: Iterable[str] = ()
    ) -> None:
        self._settings, self._access = settings, access
        repository = Repository()
        batcher = Batcher(
            workers=settings.workers,
            queue=settings.queue,
            max_batch=max(1, settings.max_batch),
            max_wait_ms=settings.max_wait_ms,
        )
        limit = settings.workers + settings.queue
        self.service = Service(repository, batcher, limit=limit, max_elements=settings.max_elements)
        load = partial(
            warm_tail, threads=settings.threads, provider=settings.provider, max_batch=settings.max_batch
        )
        for error in BundleFolders([Path(path) for path in settings.bundles], repository, load).reread()[1]:
            raise error
        held = {tail.bundle.digest for tail in repository.tails}
        if missing := [digest for digest in digests if digest not in held]:
            raise DigestMismatchError(
                f"{', '.join(settings.bundles)} here hold {', '.join(f'{digest[:12]}…' for digest in held)}, not "
                f"{missing[0][:12]}…; give every machine the same bundles"
            )
        self._pool = ThreadPoolExecutor(settings.places, thread_name_prefix="offramp-replica")

    async def ServerLive(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """Whether anybody is there."""
        return await self._answered("ServerLive", request, grpc_context, pb.ServerLiveResponse)

    async def ServerReady(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """Whether requests are taken."""
        return await self._answered("ServerReady", request, grpc_context, pb.ServerReadyResponse)

    async def ModelReady(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """Whether a model takes requests."""
        return await self._answered("ModelReady", request, grpc_context, pb.ModelReadyResponse)

    async def ServerMetadata(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """The server's name and version."""
        return await self._answered("ServerMetadata", request, grpc_context, pb.ServerMetadataResponse)

    async def ModelMetadata(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """A model's inputs, outputs and versions."""
        return await self._answered("ModelMetadata", request, grpc_context, pb.ModelMetadataResponse)

    async def RepositoryIndex(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """Every model."""
        return await self._answered("RepositoryIndex", request, grpc_context, pb.RepositoryIndexResponse)

    async def ModelInfer(self, request: bytes, grpc_context: Context) -> Any:  # noqa: N802
        """Inference."""
        return await self._answered("ModelInfer", request, grpc_context, pb.ModelInferResponse)

    async def _answered(self, name: str, content: bytes, context: Context, response: Any) -> Any:
        """The response, or an empty one beside the code and text of a refusal."""
        caller = _Caller(context)
        if len(content) > self._settings.max_message_mb * 2**20:
            most = f"a request may hold {self._settings.max_message_mb} MiB, this one has {len(content)} bytes"
            found = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, most)
        else:
            loop = asyncio.get_running_loop()
            try:
                # A batch is computed in its callers' threads, and callers wait in theirs.
                found = await loop.run_in_executor(
                    self._pool, answer, self.service, self._access, name, content, caller
                )
            except asyncio.CancelledError:
                caller.gone = True
                raise
        if isinstance(found, Refusal):
            context.set_code(found.code)
            context.set_details(found.text)
            return response()
        return found


class _Caller:
    """A cluster's context as our own server's methods take it."""

    def __init__(self, context: Context) -> None:
        self.peer, self.invocation_metadata, self.gone = context.peer, context.invocation_metadata, False

    def is_active(self) -> bool:
        return not self.gone
