"""Beside gRPC, over HTTP: the Open Inference Protocol as REST, and metrics in Prometheus's format. Needs `serve`.

Only converts; a `Service` says what is answered. Slow clients cost no thread: bodies are read by an event loop,
and no more of them at once than may be under way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from typing_extensions import Self

from offramp.errors import DeadlineError, InputError, PortError, ServerBusyError
from offramp.serving.access import Access
from offramp.serving.refusal import HTTP_STATUS, Refusal, refusal
from offramp.serving.rest import HEADER_LENGTH, JSON_SHARE, read_request, write_answer
from offramp.serving.service import Service
from offramp.serving.tls import ServerTls
from offramp.serving.wire import DATATYPES, MAX_PORT, endpoint

__all__ = ["HttpServer"]

#: Seconds that a body may take to arrive.
_BODY_S = 30.0
#: Seconds after which a connection without requests is closed.
_IDLE_S = 75.0
#: What answers everybody.
_HEALTH = ("/v2/health/live", "/v2/health/ready")
#: What clients of HTTP look for beside a status.
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
#: What HTTP has a status for and we have none, by what gRPC calls the same.
_ALIKE = {web.HTTPRequestEntityTooLarge: ServerBusyError, web.HTTPRequestTimeout: DeadlineError}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves the Open Inference Protocol and `/metrics` on a port until closed.

    Args:
        service: What it says, such as a `GrpcServer`'s.
        metrics: What `/metrics` shows, such as `ServerMetrics().registry`; without it there is no such path.
        host: The address to listen on.
        port: The port; 0 takes a free one, see `port`.
        max_message_mb: The largest body in MiB.
        tls: Its certificate; without one it speaks in the clear.
        access: Who may ask, and how often; health answers everybody.

    Raises:
        PortError: The port cannot be listened on.
    """

    def __init__(
        self,
        service: Service,
        metrics: CollectorRegistry | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        max_message_mb: int = 64,
        tls: ServerTls | None = None,
        access: Access | None = None,
    ) -> None:
        if not 0 <= port <= MAX_PORT:
            raise PortError(f"a port is 0 to {MAX_PORT}, not {port}")
        self._service, self._metrics, self._max_bytes = service, metrics, max_message_mb * 2**20
        self._access, self._bodies = access, 0
        secured = None if tls is None else tls.context()
        host = host.strip("[]")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except (OSError, ValueError) as error:  # a name that can be no host's is a ValueError
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise PortError(f"cannot listen on {endpoint(host, port)}: {reason}; choose another one") from error
        self.port = int(listener.getsockname()[1])
        self._pool = ThreadPoolExecutor(service.limit, thread_name_prefix="offramp-http")
        self._loop = asyncio.new_event_loop()
        # Whoever sends what is no HTTP would fill the log with it; what breaks in here is logged by `refusal`.
        quiet = logging.Logger("offramp.http", logging.CRITICAL)
        # Requests under way have been answered by the time that a drained server is closed.
        self._runner = web.AppRunner(
            self._app(), access_log=None, logger=quiet, keepalive_timeout=_IDLE_S, shutdown_timeout=1.0
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="offramp-http", daemon=True)
        self._thread.start()
        self._run(self._listen(listener, secured))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._pool.shutdown()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, listener, ssl_context=tls).start()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._answered], client_max_size=self._max_bytes)
        app.on_response_prepare.append(_sign)
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        app.add_routes(
            [web.get(path, answer) for path, answer in zip(_HEALTH, (self._live, self._ready), strict=True)]
        )
        app.add_routes([web.get("/v2", self._server_metadata), web.post("/v2/repository/index", self._index)])
        for stem in (model, version):
            app.add_routes([web.get(stem, self._model_metadata), web.get(f"{stem}/ready", self._model_ready)])
            app.add_routes([web.post(f"{stem}/infer", self._infer)])
        if self._metrics is not None:
            app.add_routes([web.get("/metrics", self._show_metrics)])
        return app

    @web.middleware
    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Asks who may come in; every error as JSON, with nothing of the inside."""
        resource = request.match_info.route.resource
        try:
            if self._access is not None and (resource is None or resource.canonical not in _HEALTH):
                self._access.check(request.remote or "", request.headers.get("Authorization"))
            return await handler(request)
        except web.HTTPException as error:
            if error.status == web.HTTPNotFound.status_code:
                return _error(error.status, "no such path; this server speaks the Open Inference Protocol, /v2")
            return _error(error.status, error.reason, {k: v for k, v in error.headers.items() if k == "Allow"})
        except Exception as error:
            client = request.remote or ""
            asked = resource is not None and resource.canonical.endswith("/infer")
            return _refused(self._service.failed("", error, client) if asked else refusal(error, client=client))

    async def _live(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        return _json({"ready": self._service.ready}, 200 if self._service.ready else 503)

    async def _server_metadata(self, request: web.Request) -> web.Response:
        service = self._service
        return _json({"name": service.name, "version": service.version, "extensions": service.extensions})

    async def _index(self, request: web.Request) -> web.Response:
        with self._slot():
            body = await self._body(request)
        if len(body) > self._max_bytes // JSON_SHARE:
            raise InputError("the body is larger than any request for an index")
        try:
            asked = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise InputError("the body is no JSON") from error
        if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
            raise InputError('the body is an object such as {"ready": true}')
        return _json([entry._asdict() for entry in self._service.index(ready=asked.get("ready", False))])

    async def _model_metadata(self, request: web.Request) -> web.Response:
        found = self._service.model(*_model(request))
        described = found._asdict()
        for end in ("inputs", "outputs"):
            described[end] = [
                {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": [-1, *spec.shape]}
                for spec in described[end]
            ]
        return _json(described)

    async def _model_ready(self, request: web.Request) -> web.Response:
        model, version = _model(request)
        ready = self._service.model_ready(model, version)
        return _json({"name": model, "ready": ready}, 200 if ready else 503 if self._service.draining else 404)

    async def _infer(self, request: web.Request) -> web.Response:
        model, client = _model(request), request.remote or ""
        try:
            with self._slot():
                body = await self._body(request)
                return await self._loop.run_in_executor(self._pool, self._inferred, model, body, request)
        except web.HTTPException as error:
            self._service.failed(model[0], _ALIKE.get(type(error), InputError)(error.text or error.reason), client)
            raise
        except Exception as error:
            return _refused(self._service.failed(model[0], error, client))

    def _inferred(self, model: tuple[str, str], body: bytes, request: web.Request) -> web.Response:
        client = request.remote or ""
        with self._service.traced(model[0], lambda: [(k.lower(), v) for k, v in request.headers.items()]):
            try:
                header_length = request.headers.get(HEADER_LENGTH)
                asked = read_request(*model, body, header_length, self._max_bytes // JSON_SHARE)
                question = asked.question._replace(client=client)
                content, json_length = write_answer(asked, self._service.infer(question, lambda: _waits(request)))
            except Exception as error:
                return _refused(self._service.failed(model[0], error, client))
        if json_length is None:
            return web.Response(body=content, content_type="application/json")
        headers = {HEADER_LENGTH: str(json_length)}
        return web.Response(body=content, content_type="application/octet-stream", headers=headers)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Room for a body in memory."""
        if self._bodies >= self._service.limit:
            raise ServerBusyError("the server's queue is full; try again later")
        self._bodies += 1
        try:
            yield
        finally:
            self._bodies -= 1

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await asyncio.wait_for(request.read(), _BODY_S)
        except asyncio.TimeoutError as error:
            raise web.HTTPRequestTimeout from error
        except web.HTTPException:
            raise
        except Exception as error:  # a connection that broke, or an encoding that is none
            raise InputError("the body cannot be read") from error

    async def _show_metrics(self, request: web.Request) -> web.Response:
        assert self._metrics is not None
        return web.Response(body=generate_latest(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """The library would name itself, Python, and both versions."""
    response.headers["Server"] = "offramp"


def _model(request: web.Request) -> tuple[str, str]:
    return request.match_info["model"], request.match_info.get("version", "")


def _waits(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=headers)


def _refused(found: Refusal) -> web.Response:
    status = HTTP_STATUS[found.code]
    return _error(status, found.text, _HEADERS.get(status))
