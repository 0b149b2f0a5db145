"""A clock that tests move, and the tiny bundle; see `tiny_bundle`."""

import pytest
import tiny_bundle


class Clock:
    """Time that moves only when told to."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(scope="session")
def make_bundle():
    """Writes a tiny bundle: make_bundle(path, exits=(0, 2), thresholds=…, temperatures=…, held=…)."""
    return tiny_bundle.tiny_bundle


@pytest.fixture(scope="session")
def tiny(make_bundle, tmp_path_factory):
    """Four stages, exits at cuts 0 and 2, thresholds .75."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture(scope="session")
def says():
    """An input at which exit e has confidence c: says({0: .6, 2: .9, 3: .95}, label=1)."""
    return tiny_bundle.says
