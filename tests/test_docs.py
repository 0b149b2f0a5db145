"""Documents that can be wrong: examples in the README and published schemas."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from offramp.bundle.manifest import Manifest, Tuning
from offramp.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.stem}-{number}": block
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}


@pytest.mark.parametrize("name", BLOCKS)
def test_an_example_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[name]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples():
    assert {"README-0", "sparsity-0"} <= set(BLOCKS)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, *(ROOT / "docs").rglob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                found = page.parent / target if target else page
                assert found.exists(), f"{page.name} links to {target}"
                assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize(("model", "name"), [(Manifest, "manifest"), (Tuning, "tuning")])
def test_published_schema_is_the_code_s(model, name):
    """Made anew by printing `json.dumps(model.model_json_schema(), indent=1)`."""
    published = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert published == model.model_json_schema()


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert f"\n{target}:" in makefile
    known = subprocess.run(
        [sys.executable, "-m", "offramp", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(r"^offramp ([a-z]+)", text, re.MULTILINE)):
        assert command in known


#: The lines of shell blocks that call us; images are called after their names, which are ours too.
COMMANDS = [
    (page.name, line)
    for page in PAGES
    for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()  # continued ones in one
    if re.match(r"(\S*/)?offramp [a-z]|docker run .*? offramp-", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_line_has_options_that_exist(page, line):
    """Parsed as typed, not run."""
    words = shlex.split(re.sub(r"[&>].*", "", line), comments=True)
    start = next(i for i, word in enumerate(words) if re.fullmatch(r"(\S*/)?offramp(-edge|-server)?", word))
    name, *arguments = words[start + 1 :] or ["serve", "/bundle"]  # the server image's own command
    command = typer.main.get_command(app).commands[name]
    if not hasattr(command, "commands"):
        command.make_parser(command.context_class(command)).parse_args(arguments)


@pytest.mark.parametrize("name", ["run", "serve"])
def test_every_setting_is_explained(name):
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    table = text.partition(f"| setting of `offramp {name}` |")[2].partition("\n\n")[0]
    said = re.findall(r"^\| `(--[a-z-]+)` \|", table, re.MULTILINE)
    known = [parameter.opts[0] for parameter in typer.main.get_command(app).commands[name].params]
    assert sorted(said) == sorted(option for option in known if option.startswith("--"))
