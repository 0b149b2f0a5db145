"""Log records as lines, for people or as JSON. Nothing is set up unless `log_to` is called."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

__all__ = ["Level", "LineFormatter", "Style", "log_to"]

Style = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

#: What every record has; anything else is a field that the caller gave.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """One line a record: time (UTC, ISO 8601), level, logger, message, and the fields given as `extra`.

    As JSON, an object; as text, `TIME LEVEL LOGGER MESSAGE name=value …`, tracebacks below. What clients invented
    begins no line of its own: control characters are escaped in either.

    Args:
        style: "text" or "json".
        trace_id: Gives the id of the trace under way in this thread, if there is one.
    """

    def __init__(self, style: Style, trace_id: Callable[[], str | None] = lambda: None) -> None:
        super().__init__()
        self._as_json, self._trace_id = style == "json", trace_id

    def format(self, record: logging.LogRecord) -> str:
        """A record as its line."""
        given = vars(record)
        fields = {name: given[name] for name in given if name not in _USUAL}
        fields.setdefault("trace_id", None)
        fields["trace_id"] = fields["trace_id"] or self._trace_id()
        fields = {name: value for name, value in fields.items() if value not in (None, "")}
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        time = time.replace("+00:00", "Z")
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            head = {"time": time, "level": record.levelname.lower(), "logger": record.name}
            line: dict[str, Any] = {**head, "message": record.getMessage(), **fields}
            if trace:
                line["exception"] = trace
            return json.dumps(line, default=str)
        said = [f"{name}={_text(value)}" for name, value in fields.items()]
        text = " ".join([time, record.levelname, record.name, _escaped(record.getMessage()), *said])
        return f"{text}\n{trace}" if trace else text


@contextmanager
def log_to(
    stream: TextIO, style: Style, level: Level, trace_id: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Writes what this process logs to a stream until the block ends: ours from `level` on, others' warnings.

    Args:
        stream: Where to.
        style: "text" or "json".
        level: Of the loggers `offramp.*`.
        trace_id: As `LineFormatter` takes it.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(style, trace_id))
    root, ours = logging.getLogger(), logging.getLogger("offramp")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(level.upper())
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)


def _text(value: object) -> str:
    text = str(value)
    # Quoted where a reader could not tell where it ends.
    return json.dumps(text) if not text.isprintable() or any(c in text for c in ' "=') else text


def _escaped(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)
