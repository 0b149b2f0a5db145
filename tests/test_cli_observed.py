"""`offramp serve` and `offramp run` as an operator sees them: ports, spans and log lines of two processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from otlp_collector import collecting
from test_cli import assert_clear_error, lines, offramp

from offramp.cli.messages import Voice


@pytest.fixture
def collector(monkeypatch):
    with collecting(monkeypatch) as found:
        yield found


class Process:
    """A command of ours; `errors` are the lines of its error output so far."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "offramp", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
        self.errors = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.errors.append(line)

    def waits_for(self, words):
        """The first line of the output with these words in it."""
        for line in self.process.stdout:
            if words in line:
                return line
        raise AssertionError(f"it ended: {self.errors}")

    def has_logged(self, words):
        """The first such line of the error output, as soon as it is there."""
        end = time.monotonic() + 60
        while not (found := [line for line in self.errors if words in line]):
            assert time.monotonic() < end, self.errors
            time.sleep(0.005)
        return json.loads(found[0])

    def end(self, number=None):
        """Sends a signal, or ends its input, and waits; gives the exit code."""
        if number is None:
            self.process.stdin.close()
        else:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def inputs(tmp_path, says):
    np.save(tmp_path / "inputs.npy", np.stack([says({0: 0.6, 3: 0.9})] * 3))
    return tmp_path / "inputs.npy"


def scrape(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_two_processes_one_trace_two_ports_and_lines_of_json(tiny, inputs, collector):
    watched = ("--traces", "--log-format", "json", "--log-level", "debug")
    with Process("serve", tiny.path, "--grpc-port", 0, "--http-port", 0, *watched) as server:
        http = re.search(r"http://\S+", server.waits_for("/metrics"))[0]
        address = re.search(r"listening on (\S+),", server.waits_for("listening"))[1]
        command = ("run", tiny.path, "-", "--server", address, "--policy", "split-0-all", "--deadline-ms", 60_000)
        with Process(*command, "--metrics-port", 0, *watched) as edge:
            edge.process.stdin.write(f"{inputs}\n")
            edge.process.stdin.flush()
            results = [json.loads(edge.process.stdout.readline()) for _ in range(3)]
            near, far = scrape(edge.has_logged("/metrics")["url"]), scrape(http)  # while both run
            assert edge.end() == 0
        assert server.end(signal.SIGTERM) == 0
    assert [result["where"] for result in results] == ["server"] * 3
    assert re.search(r'^offramp_edge_results_total\{.*where="server".*\} 3\.0$', near, re.MULTILINE)
    assert re.search(r'^offramp_requests_total\{code="OK",model="tiny-tail-0"\} 3\.0$', far, re.MULTILINE)
    for process in (server, edge):
        found = [json.loads(line) for line in process.errors]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in found)
    assert json.loads(edge.errors[-1])["ok"] == 3
    answered = [json.loads(line) for line in server.errors if "answered" in line]
    assert len(answered) == 3
    traces = {}
    for service, span in collector.spans:
        traces.setdefault(span.trace_id.hex(), []).append((service, span.name))
    assert len(traces) == 3
    for spans in traces.values():
        expected = [("offramp-edge", name) for name in ("head", "input", "offload")]
        expected += [("offramp-server", name) for name in ("infer tiny-tail-0", "stage 1", "stage 2", "stage 3")]
        assert sorted(spans) == expected
    assert {line["trace_id"] for line in answered} == set(traces)


def test_as_text_only_trouble_is_said_unless_asked(tiny, inputs):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        command = ("run", tiny.path, inputs, "--server", f"127.0.0.1:{nobody.getsockname()[1]}")
        done = offramp(*command, "--policy", "split-0")
        told = offramp(*command, "--policy", "split-0", "--log-level", "info", "--log-format", "text")
    assert done.returncode == told.returncode == 0
    assert [line["status"] for line in lines(done)] == ["degraded"] * 3
    records = [line for line in done.stderr.splitlines() if re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert [re.sub(r"^\S+ ", "", line) for line in records] == [
        "WARNING offramp.edge the server counts as down failures=3"
    ]
    assert len(re.findall(r"INFO offramp\.edge degraded index=\d reason=", told.stderr)) == 3
    assert "3 inputs, 3 degraded" in told.stderr


def test_a_metrics_port_in_use(tiny, inputs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = offramp("run", tiny.path, inputs, "--metrics-port", port)
        assert_clear_error(done, 1, f"cannot show metrics on 127.0.0.1:{port}", "choose another port")
    assert done.stdout == ""


@pytest.mark.filterwarnings("default:tokens travel readable")
def test_as_json_errors_and_warnings_are_lines_too(tiny, tmp_path, inputs, monkeypatch):
    def told(code, *arguments):
        done = offramp(*arguments, "--log-format", "json")
        assert (done.returncode, done.stdout) == (code, "")
        found = [json.loads(line) for line in done.stderr.splitlines()]
        assert all(line["time"].endswith("Z") for line in found)
        return [(line["level"], line["logger"], line["message"]) for line in found]

    ((level, logger, message),) = told(1, "run", tmp_path / "none", inputs)  # before any log is set up
    assert (level, logger, "none" in message) == ("error", "offramp.cli", True)
    ((level, _, message),) = told(2, "run", tiny.path, inputs, "--policy", "split-9")
    assert (level, "split 9" in message) == ("error", True)
    monkeypatch.setenv("OFFRAMP_TOKEN", "0123456789abcdef")
    warned, failed = told(1, "serve", tiny.path, "--host", "192.0.2.1", "--grpc-port", 0)
    assert warned == (
        "warning",
        "offramp.cli",
        "tokens travel readable to 192.0.2.1: without --tls-cert, something in front must speak TLS",
    )
    assert (failed[0], "cannot listen on 192.0.2.1" in failed[2]) == ("error", True)


def test_a_librarys_warning_as_json_says_where_it_came_from(capsys):
    voice = Voice()
    voice.style = "json"
    voice.warning(DeprecationWarning("old\nand gone"), DeprecationWarning, "/opt/library.py", 7)
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    del found["time"]
    assert found == {
        "level": "warning",
        "logger": "py.warnings",
        "message": "old\nand gone",
        "category": "DeprecationWarning",
        "place": "/opt/library.py:7",
    }


def test_options_that_cannot_be(tiny, inputs, monkeypatch):
    for option, wrong in (("--log-format", "xml"), ("--log-level", "loud"), ("--metrics-port", 70_000)):
        assert_clear_error(offramp("run", tiny.path, inputs, option, wrong), 2, option)
    assert_clear_error(offramp("run", tiny.path, inputs, "--metrics-port", 0, "--metrics-host", "192.0.2.1"), 1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert_clear_error(offramp("run", tiny.path, inputs, "--traces"), 2, "OTEL_EXPORTER_OTLP_PROTOCOL", "4317")
