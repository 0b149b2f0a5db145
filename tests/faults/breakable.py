"""A TCP proxy that breaks: what `offramp link` never does, since a link only delays."""

import asyncio
import contextlib
import socket
import struct
import threading

#: Linger for no time: the peer sees a reset.
RESET = struct.pack("ii", 1, 0)


class Breakable:
    """Passes connections on to a port, until told otherwise; in a thread of its own.

    Everything may be called from any thread. Faults that last are over after `seconds`, or with `mend`.
    """

    def __init__(self, to, host="127.0.0.1"):
        self.to, self._host = to, host
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._writers, self._tasks, self._timers = set(), set(), []
        self._down, self._bps, self._left, self._open, self._changed = False, 0.0, None, None, None
        self.connections = self._lost = 0
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), name="breakable"
        )
        self._thread.start()
        assert self._ready.wait(30)

    @property
    def address(self):
        return f"{self._host}:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._loop.close()

    def later(self, seconds, call, *arguments):
        """Calls something so much later, in the proxy's thread, unless the proxy is closed before."""

        def begin():
            self._timers.append(self._loop.call_later(seconds, call, *arguments))

        self._loop.call_soon_threadsafe(begin)

    # --- faults ------------------------------------------------------------------------------------------

    def cut(self, seconds=0.0):
        """Every connection is reset, and every new one meanwhile."""
        self._do(self._cut, seconds)

    def stall(self, seconds):
        """Connections stay, and nothing passes."""
        self._do(self._stall, seconds)

    def slow(self, bits_per_second, seconds):
        """So many bits a second pass, each way."""
        self._do(self._slow, bits_per_second, seconds)

    def half(self, more):
        """So many more bytes come back, then their connection is reset."""
        self._do(setattr, self, "_left", more)

    def lose(self):
        """The way of every connection is gone: nothing passes on them any more, and nobody is told."""
        self._do(lambda: setattr(self, "_lost", self.connections))

    def mend(self):
        """All is well again, but for connections that are lost."""
        self._do(self._mend)

    def _do(self, call, *arguments):
        self._loop.call_soon_threadsafe(call, *arguments)

    def _cut(self, seconds):
        self._down = seconds > 0
        for writer in list(self._writers):
            reset(writer)
        for task in self._tasks:
            task.cancel()
        if seconds:
            self._timers.append(self._loop.call_later(seconds, setattr, self, "_down", False))

    def _stall(self, seconds):
        self._open.clear()
        self._timers.append(self._loop.call_later(seconds, self._open.set))

    def _slow(self, bits_per_second, seconds):
        self._bps = bits_per_second
        self._timers.append(self._loop.call_later(seconds, self._full_speed))

    def _full_speed(self):
        self._bps = 0.0
        self._changed.set()
        self._changed.clear()

    def _mend(self):
        self._down, self._left = False, None
        self._open.set()
        self._full_speed()

    # --- passing on --------------------------------------------------------------------------------------

    async def _serve(self):
        self._open, self._changed = asyncio.Event(), asyncio.Event()
        self._open.set()
        server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        for timer in self._timers:
            timer.cancel()
        server.close()
        me = asyncio.current_task()
        while others := asyncio.all_tasks() - {me}:  # a connection may just be accepted
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=1.0)
            await asyncio.sleep(0.001)  # transports close in the loop's next round

    async def _accept(self, near_in, near_out):
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(near_out)
        far_out, ways = None, []
        self.connections += 1
        try:
            if self._down:
                return
            far_in, far_out = await asyncio.open_connection(*self.to)
            self._writers.add(far_out)
            ways = [
                asyncio.ensure_future(self._pass_on(near_in, far_out, back=False)),
                asyncio.ensure_future(self._pass_on(far_in, near_out, back=True)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for way in ways:
                way.cancel()
            for writer in (near_out, far_out):
                if writer is not None:
                    reset(writer)
                    self._writers.discard(writer)
            self._tasks.discard(task)

    async def _pass_on(self, source, target, *, back):
        number = self.connections
        with contextlib.suppress(OSError):
            while data := await source.read(64 if self._bps else 65536):
                if number <= self._lost:
                    continue
                await self._open.wait()
                if self._bps:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 8 * len(data) / self._bps)
                    await self._open.wait()
                ends = back and self._left is not None and len(data) >= self._left
                if ends:
                    data, self._left = data[: self._left], None
                elif back and self._left is not None:
                    self._left -= len(data)
                target.write(data)
                await target.drain()
                if ends:
                    await asyncio.sleep(0.001)  # what was written is sent first
                    return


def reset(writer):
    """Closes a connection so that the peer sees a reset."""
    peer = writer.get_extra_info("socket")
    if peer is not None:
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
