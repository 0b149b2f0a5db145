import io
import json
import logging
import re

import numpy as np
import pytest

from offramp.errors import ServerUnavailableError
from offramp.observe.logs import log_to
from offramp.runtime.breaker import CircuitBreaker
from offramp.runtime.edge import Edge
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail
from offramp.serving.refusal import refusal
from offramp.serving.service import Question, Service

LOGGER = logging.getLogger("offramp.test")


def written(style, level="debug", *, trace_id=lambda: None, say):
    stream = io.StringIO()
    with log_to(stream, style, level, trace_id):
        say()
    return stream.getvalue().splitlines()


def test_a_json_line_holds_time_level_logger_message_and_fields():
    (line,) = written(
        "json", say=lambda: LOGGER.info("took %d ms", 7, extra={"model": "digits", "share": np.float32(0.5)})
    )
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "info",
        "logger": "offramp.test",
        "message": "took 7 ms",
        "model": "digits",
        "share": "0.5",
    }


def test_a_text_line_holds_the_same():
    (line,) = written("text", say=lambda: LOGGER.warning("gone", extra={"model": "digits", "why": "no route"}))
    assert re.fullmatch(r'\S+Z WARNING offramp\.test gone model=digits why="no route"', line)


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_clients_invent_begins_no_line(style):
    invented = 'x\n2026-01-01T00:00:00.000Z ERROR offramp.server "stolen"\x1b[31m\u2028'
    (line,) = written(
        style, say=lambda: LOGGER.info(invented.replace("%", ""), extra={"model": invented, "client": invented})
    )
    assert line.isprintable()
    if style == "json":
        assert json.loads(line)["model"] == invented


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_is_kept(style):
    def say():
        try:
            raise ZeroDivisionError("inside")
        except ZeroDivisionError:
            LOGGER.exception("failed")

    lines = written(style, say=say)
    if style == "json":
        assert "ZeroDivisionError: inside" in json.loads(lines[0])["exception"]
        assert len(lines) == 1
    else:
        assert lines[0].endswith("failed")
        assert lines[-1] == "ZeroDivisionError: inside"


def test_levels_are_ours_alone_and_end_with_the_block():
    def say():
        LOGGER.debug("too much")
        LOGGER.info("ours")
        logging.getLogger("another").info("theirs")
        logging.getLogger("another").warning("their trouble")

    lines = written("json", "info", say=say)
    assert [json.loads(line)["message"] for line in lines] == ["ours", "their trouble"]
    assert not logging.getLogger("offramp").isEnabledFor(logging.INFO)
    stream = io.StringIO()
    with log_to(stream, "json", "info"):
        pass
    LOGGER.error("later")
    assert stream.getvalue() == ""


def test_a_trace_id_stands_in_every_line_while_there_is_one():
    def say():
        LOGGER.info("here")
        LOGGER.info("told", extra={"trace_id": "its own"})

    found = [json.loads(line)["trace_id"] for line in written("json", trace_id=lambda: "ab12", say=say)]
    assert found == ["ab12", "its own"]


def test_the_library_sets_nothing_up():
    assert logging.getLogger("offramp").handlers == []
    assert logging.getLogger("offramp").level == logging.NOTSET


# --- what is said ---------------------------------------------------------------------------------------


def test_a_server_says_whom_it_refused_and_answers_only_when_asked(joined, script, says):
    stream = io.StringIO()
    with log_to(stream, "json", "debug"), joined(script((0,))) as (edge, server):
        edge.infer(says({0: 0.6, 3: 0.9}))
        service: Service = server.service
        assert service.logs_answers
        service.failed("tiny", ServerUnavailableError("about to stop"), "10.0.0.7")
        service.failed("made\nup", ServerUnavailableError("about to stop"), "10.0.0.7")
    answered, refused, unknown = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (answered["message"], answered["level"], answered["code"]) == ("request answered", "debug", "OK")
    assert (answered["model"], answered["client"]) == ("tiny-tail-0", "127.0.0.1")
    assert len(answered["digest"]) == 64
    assert answered["server_ms"] > 0
    assert (refused["message"], refused["level"], refused["code"]) == ("request refused", "info", "UNAVAILABLE")
    assert (refused["client"], refused["reason"]) == ("10.0.0.7", "about to stop")
    assert unknown["model"] == "unknown"


def test_no_tensors_and_no_tokens_in_any_line(joined, script, says):
    stream = io.StringIO()
    with log_to(stream, "json", "debug"), joined(script((0,))) as (edge, server):
        x = says({0: 0.6, 3: 0.9})
        edge.infer(x)
        with pytest.raises(Exception, match="takes"):
            server.service.infer(Question("tiny", {"wrong": x[None]}, client="me"))
    for line in stream.getvalue().splitlines():
        for value in json.loads(line).values():
            assert not isinstance(value, (list, dict))


def test_what_breaks_inside_is_an_error_with_its_place():
    (line,) = written("json", say=lambda: refusal(KeyError("inside"), model="digits", client="10.0.0.7"))
    found = json.loads(line)
    assert (found["level"], found["code"], found["model"]) == ("error", "INTERNAL", "digits")
    assert "KeyError" in found["exception"]


def test_an_edge_says_when_the_server_goes_and_comes_back(tiny, script, says, clock):
    tail = Tail(Stages(tiny))

    class Away:
        down = True

        def infer(self, request, timeout_s=None):
            if self.down:
                raise ServerUnavailableError("nobody there")
            return tail.infer(request)

        def close(self):
            pass

    away, stream = Away(), io.StringIO()
    breaker = CircuitBreaker(failures=2, reset_s=5.0, clock=clock)
    edge = Edge(tiny, away, script((0, (), "float", (0,))), breaker=breaker, clock=clock, sleep=clock.sleep)
    with log_to(stream, "json", "info"):
        list(edge.run([says({0: 0.6})] * 3))
        away.down = False
        clock.sleep(6)
        list(edge.run([says({0: 0.6})]))
        list(edge.run([np.zeros(3, np.float32)]))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["level"], line["message"]) for line in found] == [
        ("info", "degraded"),
        ("warning", "the server counts as down"),
        ("info", "degraded"),
        ("info", "degraded"),
        ("info", "the server answers again"),
        ("info", "failed"),
    ]
    assert (found[0]["index"], found[0]["reason"]) == (0, "nobody there")
