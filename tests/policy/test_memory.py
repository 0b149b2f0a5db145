import json
import os

import pytest
from worlds import ALPHA, context, drawn, play

from offramp.errors import PolicyStateError
from offramp.policy.memory import load_state, save_state
from offramp.policy.registry import make_policy

DIGEST = "ab" * 32


def learned(**options):
    policy = make_policy("i-splitee", alpha=ALPHA, **options)
    play(policy, context(), *drawn(1, 60))
    return policy


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.json"
    save_state(learned(), path, DIGEST)
    return path


def test_a_file_brings_back_what_was_learned(saved):
    policy = make_policy("i-splitee", alpha=ALPHA)
    load_state(policy, saved, DIGEST)
    assert policy.state() == learned().state()
    assert policy.counts == learned().counts


def test_another_bundle_s_state_is_refused(saved):
    with pytest.raises(PolicyStateError, match=r"another bundle.*ababab.*cdcdcd.*start anew"):
        load_state(make_policy("i-splitee", alpha=ALPHA), saved, "cd" * 32)


def test_another_policy_s_state_is_refused(saved):
    with pytest.raises(PolicyStateError, match=r"state\.json: expected a state of splitee, got i-splitee's"):
        load_state(make_policy("splitee"), saved, DIGEST)


@pytest.mark.parametrize(
    "options",
    [
        {"mu": 0.5},
        {"c": 0.1},
        {"alpha": 0.6},
        {"discount": 0.9},
        {"window": 9},
        {"audit": 0.1},
        {"published": True},
    ],
    ids=str,
)
def test_other_settings_are_named(saved, options):
    name, value = next(iter(options.items()))
    with pytest.raises(PolicyStateError, match=rf"{name}=.*\(here {value}\)"):
        load_state(make_policy("i-splitee", **{"alpha": ALPHA, **options}), saved, DIGEST)


def test_a_state_of_other_arms_is_refused_by_the_edge_s_context(saved):
    from offramp.errors import ActionError

    policy = make_policy("i-splitee", alpha=ALPHA)
    load_state(policy, saved, DIGEST)
    with pytest.raises(ActionError, match="arms"):
        policy.choose(context(3))


def test_a_file_is_replaced_whole_and_a_path_that_cannot_be_written_is_an_error_of_ours(saved, tmp_path):
    save_state(make_policy("random", seed=3), saved, DIGEST)
    assert json.loads(saved.read_text())["state"]["seed"] == 3
    assert list(tmp_path.iterdir()) == [saved]
    with pytest.raises(PolicyStateError, match="cannot write"):
        save_state(learned(), tmp_path / "nowhere" / "state.json", DIGEST)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b"{}",
        b'{"format": 1, "digest": "x"}',
        b'{"format": 2, "digest": "x", "state": {}}',
        b'{"format": 1, "digest": null, "state": {}}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:20].decode(errors="replace"),
)
def test_torn_and_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "torn.json"
    path.write_bytes(content)
    with pytest.raises(PolicyStateError, match="torn"):
        load_state(make_policy("i-splitee", alpha=ALPHA), path, DIGEST)


def test_every_torn_file_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        saved.write_bytes(whole[:length])
        with pytest.raises(PolicyStateError):
            load_state(make_policy("i-splitee", alpha=ALPHA), saved, DIGEST)


def test_a_linked_file_stays_a_link_and_a_device_a_device(saved, tmp_path):
    """`/dev/null` and the like would be files from then on, for whoever may write there."""
    (link := tmp_path / "link.json").symlink_to(saved)
    save_state(learned(), link, DIGEST)
    assert link.is_symlink()
    os.mkfifo(tmp_path / "pipe")
    for attempt in (save_state, load_state):
        with pytest.raises(PolicyStateError, match="it is no file"):
            attempt(learned(), tmp_path / "pipe", DIGEST)
    assert (tmp_path / "pipe").is_fifo()


def test_a_missing_file_is_an_error_of_ours(tmp_path):
    with pytest.raises(PolicyStateError, match="cannot read"):
        load_state(make_policy("random"), tmp_path / "none.json", DIGEST)
    with pytest.raises(PolicyStateError, match="cannot read"):
        load_state(make_policy("random"), tmp_path, DIGEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": [1, 2]},
        {"counts": [-1, 1, 1, 1]},
        {"counts": [float("inf"), 1, 1, 1]},
        {"sums": [float("nan"), 1, 1, 1]},
        {"sums": [1, 1, 1, 1, 1]},
        {"sums": "many"},
        {"arms": [0, 1, 1, 3]},
        {"arms": [3, 2, 1, 0]},
        {"arms": [-2, 0, 1, 2]},
        {"plays": -1},
        {"plays": None},
        {"weight": 0},
        {"weight": float("inf")},
        {"step": -1},
        {"recent": [[0.5]]},
        {"settings": {}},
        {"settings": None},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(changes):
    policy = make_policy("i-splitee", alpha=ALPHA)
    before = policy.state()
    with pytest.raises(PolicyStateError):
        policy.restore({**learned().state(), **changes})
    assert policy.state() == before


@pytest.mark.parametrize(
    "recent", [[], [[0.1]] * 7, [[0.1] * 5] * 6, [[float("nan")]] * 6, [0.5] * 6], ids=lambda r: str(r[:1])
)
def test_a_damaged_window_is_refused(recent):
    state = learned(window=6).state()
    with pytest.raises(PolicyStateError):
        make_policy("i-splitee", alpha=ALPHA, window=6).restore({**state, "recent": recent})
