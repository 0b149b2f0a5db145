"""The container images, as far as they can be checked without a builder: contents, commands, rights."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest
import typer

from offramp.cli import app

ROOT = Path(__file__).parents[1]


def instructions():
    """Per stage, its instructions as (name, rest), with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages, parents, stage = {}, {}, None
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            parent, _, stage = rest.partition(" AS ")
            stages[stage], parents[stage] = [], parent
        elif stage is not None and name:
            stages[stage].append((name, rest.strip()))
    return stages, parents


STAGES, PARENTS = instructions()


def whole(stage):
    """A stage's instructions after those of the stages that it builds on."""
    return [*(whole(PARENTS[stage]) if PARENTS[stage] in STAGES else []), *STAGES[stage]]


def last(stage, name):
    return [rest for found, rest in whole(stage) if found == name][-1]


def test_there_are_two_images():
    assert {"edge", "server"} <= set(STAGES)
    assert PARENTS["edge"] == PARENTS["server"] == "base"


@pytest.mark.parametrize("stage", ["edge", "server"])
def test_an_image_does_not_run_as_root(stage):
    user, _, group = last(stage, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize(("stage", "command"), [("edge", ["--help"]), ("server", ["serve"])])
def test_the_command_is_one_of_ours(stage, command):
    assert json.loads(last(stage, "ENTRYPOINT")) == ["offramp"]
    words = json.loads(last(stage, "CMD"))
    assert words[:1] == command
    if words[0] == "serve":
        serve = typer.main.get_command(app).commands["serve"]
        with serve.make_context("serve", words[1:]) as context:
            assert context.params["host"] == "0.0.0.0"
            ports = {str(context.params["grpc_port"]), str(context.params["http_port"])}
        assert set(last(stage, "EXPOSE").split()) == ports
        assert f":{context.params['http_port']}/v2/health/ready" in last(stage, "HEALTHCHECK")


def test_packages_are_pinned_and_an_edge_gets_no_extras():
    installs = {
        stage: [rest for name, rest in STAGES[stage] if name == "RUN" and " install " in rest] for stage in STAGES
    }
    (edge,), (server,) = installs["edge-packages"], installs["server-packages"]
    assert [stage for stage, runs in installs.items() if runs] == ["edge-packages", "server-packages"]
    assert "-c constraints.txt" in edge
    assert "-c constraints.txt" in server
    assert "[" not in edge
    assert "[serve,observe]" in server
    for stage in ("edge", "server"):
        assert last(stage, "COPY").startswith(f"--from={stage}-packages ")


def test_what_is_copied_is_there_and_not_ignored():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    copied = [
        source
        for stage in STAGES.values()
        for name, rest in stage
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        wanted = True
        for rule in ignored:
            if fnmatch.fnmatch(source, rule.removeprefix("!").removeprefix("**/")):
                wanted = rule.startswith("!")
        assert wanted, f"{source} is left out by .dockerignore"
