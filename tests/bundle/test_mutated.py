"""Mutated bundles: `Bundle.load` refuses or loads, and so does what is loaded with the right hashes."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutation import mutated_bytes, mutated_json

from offramp.bundle.bundle import Bundle
from offramp.errors import BundleError, OfframpError
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail

DOCUMENTS = ("manifest.json", "tuning.json", "held.json")


def mutate(draw, source, target):
    """A copy of a bundle in which one thing is wrong; says which."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    files = sorted(file.relative_to(target) for file in target.rglob("*") if file.is_file())
    contents = [(target / file).read_bytes() for file in files]
    way = draw.choice(("bytes", "json", "json", "json", "graph", "places"))
    name = draw.choice(DOCUMENTS[:2]) if way == "json" else str(draw.choice(files))
    file = target / name
    if way == "json":
        text = json.dumps(mutated_json(draw, json.loads(file.read_bytes())))
        file.write_text(text.replace("NaN", draw.choice(("NaN", "1e999", "null"))))
    elif way == "places":
        draw.choice(
            (
                file.unlink,
                lambda: (file.unlink(), file.mkdir()),
                lambda: (file.unlink(), file.symlink_to(draw.choice(("/etc/passwd", "..", name, "nowhere")))),
                lambda: (target / "held.json").write_text(json.dumps({"stages": draw.randrange(-1, 5)})),
                lambda: (target / draw.choice(files)).replace(file),
                lambda: os.truncate(file, draw.choice((0, 1, 2**24))),
            )
        )()
    else:
        before = file.read_bytes()
        file.write_bytes(mutated_bytes(draw, before, contents))
        if way == "graph":  # whoever alters a graph may alter its hash too
            manifest = (target / "manifest.json").read_bytes()
            old, new = (hashlib.sha256(content).hexdigest().encode() for content in (before, file.read_bytes()))
            (target / "manifest.json").write_bytes(manifest.replace(old, new))
    return f"{way} {name}"


def load_many(source, folder, seeds, sessions):
    """Loads so many mutated bundles; gives how many were refused, loaded, and ran into a session's refusal."""
    refused = loaded = stopped = 0
    for seed in seeds:
        target = Path(folder) / f"mutated-{seed}"
        said = mutate(random.Random(seed), source, target)
        try:
            bundle = Bundle.load(target)
        except BundleError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {said}: {type(error).__name__}") from error
        else:
            loaded += 1
            if sessions:
                try:
                    Tail(Stages(bundle))
                except OfframpError:
                    stopped += 1
        shutil.rmtree(target)
    return refused, loaded, stopped


def test_two_hundred_mutated_bundles(digits_bundle, tmp_path):
    refused, loaded, _ = load_many(digits_bundle, tmp_path, range(200), sessions=False)
    assert refused + loaded == 200
    assert refused > 100
    assert loaded > 0  # what changes nothing that is checked


@pytest.mark.slow
def test_a_thousand_mutated_bundles_and_the_sessions_of_those_that_load(digits_bundle, tmp_path):
    """In a process of its own: a graph that kills ONNX Runtime must be seen, not end the tests."""
    code = (
        "import sys; sys.path[:0] = sys.argv[3:5]\n"
        "from test_mutated import load_many\n"
        "print(*load_many(sys.argv[1], sys.argv[2], range(1000, 2000), sessions=True))"
    )
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits_bundle), str(tmp_path), str(here), str(here.parent)],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, loaded, stopped = map(int, done.stdout.split())
    assert refused + loaded == 1000
    print(f"1,000 mutated bundles: {refused} refused, {loaded} loaded, of which sessions refused {stopped}")
