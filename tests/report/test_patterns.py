"""Pictures of patterns: what they show, and recipes from a file that nobody vouches for."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.bundle.manifest import Provenance
from offramp.cli import app
from offramp.errors import BundleManifestError, ConfigError, MissingExtraError
from offramp.report.patterns import joined_shares, patterns_picture, stored_patterns, write_patterns
from offramp.sparse.block import BlockPattern
from offramp.sparse.clash_free import ClashFreePattern
from offramp.sparse.pattern import Pattern
from offramp.sparse.structured import StructuredPattern

PATTERNS = [
    BlockPattern(12, 24, 1, 4),
    BlockPattern(24, 12, 3, 4, "strided", seed=3),
    BlockPattern(12, 12, 5, 12, "strided"),  # blocks of one neuron: joined neuron by neuron
    StructuredPattern(20, 30, 6),
    ClashFreePattern(24, 12, 3, 6, kind=2, dither=True),
]


def stored(recipe: Any) -> dict[str, Pattern]:
    return stored_patterns(Provenance(patterns={"model.fc": recipe}))


def recipe_of(pattern: Pattern, /, **changed: Any) -> dict[str, Any]:
    return {**pattern.recipe(), "digest": pattern.digest, **changed}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("down", "across"), [(1, 1), (2, 3), (5, 7), (100, 100)])
def test_shares_are_averages_of_the_mask(pattern, down, across):
    mask = pattern.mask()
    expected = [
        [mask[r : r + down, c : c + across].mean() for c in range(0, pattern.n_left, across)]
        for r in range(0, pattern.n_right, down)
    ]
    found = joined_shares(pattern, np.arange(pattern.n_right) // down, np.arange(pattern.n_left) // across)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def images(picture: str) -> list[ET.Element]:
    return ET.fromstring(picture).findall(".//{http://www.w3.org/2000/svg}image")


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 12])
def test_a_panel_per_layer(layers):
    patterns = {f"layer{i}": PATTERNS[i % len(PATTERNS)] for i in range(layers)}
    picture = patterns_picture(patterns)
    assert len(images(picture)) == layers
    assert all(f"<!-- {name} -->" in picture for name in patterns)
    assert f"{PATTERNS[0].n_left}→{PATTERNS[0].n_right}, density 0.25" in picture
    assert "4 blocks, contiguous" in picture
    width, height = (
        float(ET.fromstring(picture).get(side, "").removesuffix("pt")) for side in ("width", "height")
    )
    assert layers < 3 or width > 0.7 * height


def test_the_same_patterns_give_the_same_picture():
    patterns = {str(i): pattern for i, pattern in enumerate(PATTERNS)}
    assert patterns_picture(patterns) == patterns_picture(patterns)


def test_an_inset_shows_what_averaging_hides():
    hidden = BlockPattern(2048, 256, 1, 8, "strided")
    picture = patterns_picture({"fc": hidden})
    assert len(images(picture)) == 2
    assert "cells 8×1" in picture
    assert "insets" in picture
    assert len(images(patterns_picture({"fc": BlockPattern(2048, 256, 1, 8)}))) == 1


def test_large_layers_in_few_blocks_are_drawn_without_their_joins():
    drawn = stored(recipe_of(BlockPattern(2**17, 2**16, 5, 16, "strided")))
    assert len(images(patterns_picture(drawn))) == 2


@pytest.mark.parametrize("name", ["$\\frac{$", "a--b-->c", "\x00\ud800\n", "层.0", "long." * 1000, ""])
def test_any_name_can_be_drawn(name):
    picture = patterns_picture({name: PATTERNS[0]})
    picture.encode()
    assert len(images(picture)) == 1


def test_pictures_are_written_by_their_suffix(tmp_path):
    patterns = {"a": PATTERNS[0], "b": PATTERNS[1]}
    write_patterns(patterns, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text(encoding="utf-8") == patterns_picture(patterns)
    write_patterns(patterns, tmp_path / "p.PNG")
    with Image.open(tmp_path / "p.PNG") as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 10
    for name, word in [("p.pdf", r"\.svg or \.png"), ("p", r"\.svg or \.png"), ("no/where.svg", "cannot write")]:
        with pytest.raises(ConfigError, match=word):
            write_patterns(patterns, tmp_path / name)


@pytest.mark.parametrize("count", [0, 257])
def test_none_and_too_many_are_refused(count):
    patterns = {str(i): PATTERNS[0] for i in range(count)}
    with pytest.raises(ConfigError, match="1 to 256"):
        patterns_picture(patterns)
    recipes = {name: recipe_of(pattern) for name, pattern in patterns.items()}
    with pytest.raises(ConfigError, match="1 to 256" if count else "no sparse layers"):
        stored_patterns(Provenance(patterns=recipes))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_stored_patterns_are_rebuilt(pattern):
    assert stored(recipe_of(pattern)) == {"model.fc": pattern}


@pytest.mark.parametrize("digest", [None, "", "0" * 64, 7, []])
def test_another_digest_is_refused(digest):
    with pytest.raises(BundleManifestError, match=r"model\.fc.*another digest"):
        stored(recipe_of(PATTERNS[1], digest=digest))
    with pytest.raises(BundleManifestError, match="another digest"):
        stored(PATTERNS[1].recipe())


BLOCK, STRUCTURED, CLASH_FREE = PATTERNS[0], PATTERNS[3], PATTERNS[4]


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        recipe_of(BLOCK, pattern="diagonal"),
        recipe_of(BLOCK, pattern=["block"]),
        recipe_of(BLOCK, pattern=None),
        recipe_of(BLOCK, extra=1),
        recipe_of(BLOCK, self=1),
        {"pattern": "block", "n_left": 12},
        *(
            recipe_of(BLOCK, **{entry: value})
            for entry in ("n_left", "n_right", "joined", "blocks", "seed")
            for value in (None, "12", 0.5, math.nan, [12], {}, True)
        ),
        *(recipe_of(BLOCK, n_left=value) for value in (0, -12, 2**64, 10**4000)),
        recipe_of(BLOCK, blocks=0),
        recipe_of(BLOCK, blocks=-4),
        recipe_of(BLOCK, joined=5),
        recipe_of(BLOCK, layout="round"),
        recipe_of(BLOCK, layout=[]),
        recipe_of(STRUCTURED, d_out=7),
        recipe_of(STRUCTURED, d_out=2**70),
        recipe_of(STRUCTURED, seed=0.5),
        recipe_of(CLASH_FREE, z=0),
        recipe_of(CLASH_FREE, z=5),
        recipe_of(CLASH_FREE, kind=4),
        recipe_of(CLASH_FREE, dither=1),
    ],
)
def test_hostile_recipes_are_refused(recipe):
    with pytest.raises(BundleManifestError, match=r"model\.fc"):
        stored(recipe)


@pytest.mark.parametrize(
    "pattern",
    [
        BlockPattern(2**18, 16, 1, 16),
        BlockPattern(2**15, 2**15, 2**12, 2**13),
        StructuredPattern(2**14, 2**14, 2**13),
        StructuredPattern(2**15, 16, 1),
        ClashFreePattern(2**20, 2**20, 2**20, 1),
    ],
    ids=str,
)
def test_what_is_too_large_is_refused_before_it_is_drawn(pattern):
    with pytest.raises(ConfigError, match=r"model\.fc is too large to draw"):
        stored({**pattern.recipe(), "digest": "0" * 64})


def test_a_picture_needs_no_torch():
    code = "import sys, offramp.report.patterns; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- offramp inspect --patterns -------------------------------------------------------------------------


def inspect(bundle: Path, *options: object) -> None:
    app(["inspect", str(bundle), *map(str, options)], standalone_mode=False)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_inspect_draws_the_patterns(tmp_path, digits_bundle, suffix, capsys):
    file = tmp_path / f"patterns{suffix}"
    inspect(digits_bundle, "--patterns", file, "--json")
    said = capsys.readouterr()
    layers = json.loads(said.out)["provenance"]["patterns"]
    assert said.err == f"{file}: the patterns of {len(layers)} sparse layers\n"
    start = file.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == ".png" else start.startswith(b"<svg")
    inspect(digits_bundle, "--patterns", file)
    assert "the last" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patterns", "kind", "word"),
    [
        ({}, ConfigError, "no sparse layers"),
        ({"fc": {"pattern": "block", "n_left": 10**30}}, BundleManifestError, "fc"),
        ({"fc": {"pattern": "wild"}}, BundleManifestError, "known: block"),
        ({"fc": PATTERNS[0].recipe()}, BundleManifestError, "digest"),
    ],
)
def test_inspect_refuses_what_it_cannot_draw(tmp_path, digits_bundle, patterns, kind, word, capsys):
    altered = Path(shutil.copytree(digits_bundle, tmp_path / "altered.bundle"))
    manifest = json.loads((altered / "manifest.json").read_text())
    manifest["provenance"]["patterns"] = patterns
    (altered / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(kind, match=word):
        inspect(altered, "--patterns", tmp_path / "new.svg")
    assert not capsys.readouterr().out
    assert not (tmp_path / "new.svg").exists()
    inspect(altered)


def test_inspect_without_matplotlib_says_what_to_install(tmp_path, digits_bundle, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("offramp.report.patterns", "offramp.report.pictures"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        MissingExtraError, match=r"`offramp inspect --patterns` needs matplotlib.*offramp\[report\]"
    ):
        inspect(digits_bundle, "--patterns", tmp_path / "new.svg")
    inspect(digits_bundle)
