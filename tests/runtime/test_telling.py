import logging
import threading

import pytest

from offramp.runtime.telling import Teller


class Watcher:
    """Fails while it is told to."""

    error = None

    def ran(self, what, *, twice=False):
        if self.error is not None:
            raise self.error
        return what * 2 if twice else what

    def waited(self):
        raise KeyError("waited")


@pytest.fixture
def log():
    """The records so far."""
    records, logger = [], logging.getLogger("offramp.observe")
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_what_works_is_passed_on(log):
    tell = Teller()
    assert tell(Watcher().ran, 3, twice=True) == 6
    assert log == []


def test_a_failure_is_logged_with_its_traceback_then_counted_once_a_minute(clock, log):
    tell, watcher = Teller(clock), Watcher()
    watcher.error = ZeroDivisionError("of its own")
    for _ in range(500):
        assert tell(watcher.ran, 1) is None
    (first,) = log
    assert first.exc_info[1] is watcher.error
    assert (first.name, first.levelname, first.watcher, first.unsaid) == (
        "offramp.observe",
        "ERROR",
        "Watcher.ran",
        None,
    )
    clock.sleep(59.9)
    tell(watcher.ran, 1)
    assert len(log) == 1
    clock.sleep(0.2)
    watcher.error = ValueError("another")
    tell(watcher.ran, 1)
    tell(watcher.ran, 1)
    assert len(log) == 2
    assert (log[1].unsaid, log[1].exc_info[1]) == (500, watcher.error)
    clock.sleep(60)
    tell(watcher.ran, 1)
    assert log[2].unsaid == 1


def test_one_that_fails_does_not_hide_another(clock, log):
    tell, watcher = Teller(clock), Watcher()
    watcher.error = ValueError()
    for _ in range(3):
        tell(watcher.ran, 1)
        tell(watcher.waited)
        tell(lambda: 1 // 0)
    assert [record.watcher.rpartition(".")[2] for record in log] == ["ran", "waited", "<lambda>"]


def test_what_ends_the_process_is_no_failure(log):
    watcher = Watcher()
    watcher.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        Teller()(watcher.ran, 1)
    assert log == []


def test_threads_lose_no_count(clock, log):
    tell, watcher = Teller(clock), Watcher()
    watcher.error = ValueError()
    threads = [threading.Thread(target=lambda: [tell(watcher.ran, 1) for _ in range(250)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log) == 1
    clock.sleep(60)
    tell(watcher.ran, 1)
    assert log[1].unsaid == 8 * 250 - 1
