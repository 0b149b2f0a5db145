"""The world is the session's: its server is a process that takes a second to start."""

import pytest
from schedules import drawn
from trial import trial
from world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("world")) as made:
        trial(made, drawn(-1, kill=0))  # what is made once is there before anything is counted
        yield made
