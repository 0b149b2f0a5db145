"""`offramp serve` as a process, and clients that ask a server until told to stop."""

import subprocess
import sys
import threading
import time

import numpy as np

from offramp.serving.channel import GrpcChannel


def until(condition, seconds=60.0):
    """Waits until it holds; gives what it said."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


class ServeProcess:
    """`offramp serve` with lines that can be waited for, killed at the end of a `with` block.

    Args:
        arguments: After `serve`.
        python: Who runs it.
        env: Its environment; ours if None.
    """

    def __init__(self, *arguments, python=sys.executable, env=None):
        self.process = subprocess.Popen(
            [python, "-m", "offramp", "serve", *map(str, arguments)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.strip())

    @property
    def address(self):
        """Where it says that it listens, as soon as it does."""
        return self.said("listening on").partition("listening on ")[2].partition(",")[0]

    def said(self, words, count=1):
        """Waits for the so-manieth line with these words; fails at once if the process ends without it."""

        def found():
            ended = self.process.poll() is not None
            if ended:
                self._reader.join(5)  # its last words; whom it left behind may hold the pipe for ever
            lines = [line for line in self.lines if words in line]
            assert len(lines) >= count or not ended, self.lines
            return lines[count - 1 :]

        return until(found, 120)[0]

    def tell(self, number):
        """Sends a signal."""
        self.process.send_signal(number)

    def end(self, seconds=30):
        """Waits for its end; gives the exit code. Killed if that takes too long."""
        try:
            return self.process.wait(seconds)
        finally:
            self.close()

    def close(self):
        """Kills it if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


class Traffic:
    """Clients that ask until told to stop; what went wrong, and how many answers there were."""

    def __init__(self, address, requests, clients=4, digests=(None,), credentials=None):
        self._address, self._requests, self._digests = address, requests, digests
        self._credentials = credentials
        self.stop, self.answers, self.errors = threading.Event(), 0, []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def more(self, count):
        """Waits for that many more answers."""
        until(lambda target=self.answers + count: self.answers >= target or self.errors)

    def _ask(self, number):
        channel, draw = GrpcChannel(self._address, credentials=self._credentials), np.random.default_rng(number)
        while not self.stop.is_set():
            request, expected = self._requests[draw.integers(len(self._requests))]
            digest = self._digests[number % len(self._digests)]
            try:
                reply = channel.infer(request._replace(digest=digest), 30)
            except Exception as error:
                with self._lock:
                    self.errors.append(error)
                time.sleep(0.01)
                continue
            same = reply.exits.tolist() == expected.exits.tolist()
            with self._lock:
                self.answers += 1
                if not same or not np.allclose(reply.logits, expected.logits, rtol=1e-5, atol=1e-5):
                    self.errors.append(AssertionError(request.model))
        channel.close()
