from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from offramp.bundle.bundle import Bundle, write_bundle
from offramp.bundle.manifest import Manifest, Tuning
from offramp.bundle.quantiser import MODES
from offramp.errors import (
    BundleAlteredError,
    BundleError,
    BundleFileError,
    BundleManifestError,
    BundlePathError,
    BundleShapeError,
    BundleVersionError,
    ConfigError,
    ExternalDataError,
    OfframpError,
)

Edit = Callable[..., Path]


def listing(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_bundle_is_read(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    assert bundle.held == 3
    assert bundle.digest == bundle.manifest.digest
    assert bundle.manifest.name == "digits"
    for graph in bundle.held_graphs():
        assert bundle.read(graph) == (digits_bundle / graph.file).read_bytes()
    assert Bundle.load(str(digits_bundle)).digest == bundle.digest


def test_stored_bytes_are_what_lies_on_disk(digits_bundle: Path) -> None:
    bundle = Bundle.load(digits_bundle)
    assert bundle.stored_bytes() == sum(p.stat().st_size for p in digits_bundle.rglob("*.onnx"))
    assert 0 < bundle.stored_bytes(1) < bundle.stored_bytes(2) < bundle.stored_bytes(3)


def test_the_digest_outlives_tuning_and_copies(bundle_copy: Path, tmp_path: Path) -> None:
    before = Bundle.load(bundle_copy)
    tuning = json.loads((bundle_copy / "tuning.json").read_text())
    tuning["thresholds"] = [0.123, 0.456, None]
    (bundle_copy / "tuning.json").write_text(json.dumps(tuning))
    after = Bundle.load(bundle_copy)
    assert after.tuning.thresholds == (0.123, 0.456, None)
    assert after.digest == before.digest
    assert after.edge_copy(tmp_path / "edge", 1).digest == before.digest


# --- hostile bundles -------------------------------------------------------------------------------------


KINDS = [
    "stages/stage_0.onnx",
    "stages/stage_2.onnx",
    "exits/exit_1.onnx",
    "codecs/input.uint8.enc.onnx",
    "codecs/cut_1.uint8.dec.onnx",
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_is_refused(bundle_copy: Path, name: str, place: int) -> None:
    content = bytearray((bundle_copy / name).read_bytes())
    content[place] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleAlteredError, match=name):
        Bundle.load(bundle_copy)


@pytest.mark.parametrize("name", KINDS)
def test_a_longer_or_shorter_file_is_refused(bundle_copy: Path, name: str) -> None:
    content = (bundle_copy / name).read_bytes()
    for other in (content + b"\0", content[:-1], b""):
        (bundle_copy / name).write_bytes(other)
        with pytest.raises(BundleAlteredError, match=name):
            Bundle.load(bundle_copy)


@pytest.mark.parametrize("name", ["manifest.json", "tuning.json", *KINDS])
def test_a_missing_file_is_refused(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleFileError, match=name):
        Bundle.load(bundle_copy)


def test_a_folder_in_a_files_place_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "stages/stage_0.onnx").unlink()
    (bundle_copy / "stages/stage_0.onnx").mkdir()
    with pytest.raises(BundleFileError, match=r"stages/stage_0\.onnx"):
        Bundle.load(bundle_copy)


def test_no_directory_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleFileError, match="no bundle directory"):
        Bundle.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleFileError, match="no bundle directory"):
        Bundle.load(tmp_path / "file")


@pytest.mark.parametrize(
    "path", ["../outside.onnx", "stages/../../outside.onnx", "stages\\..\\..\\outside.onnx", ".."]
)
def test_a_path_that_leaves_is_refused(edit: Edit, path: str) -> None:
    bundle = edit(lambda m: m["stages"][0]["graph"].update(file=path))
    shutil.copy(bundle / "stages/stage_0.onnx", bundle.parent / "outside.onnx")
    with pytest.raises(BundlePathError, match="leaves the bundle's directory"):
        Bundle.load(bundle)


def test_an_absolute_path_is_refused(edit: Edit, bundle_copy: Path) -> None:
    inside = str(bundle_copy / "stages/stage_0.onnx")
    with pytest.raises(BundlePathError, match=inside):
        Bundle.load(edit(lambda m: m["stages"][0]["graph"].update(file=inside)))


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_link_that_leaves_is_refused(bundle_copy: Path, tmp_path: Path, target: str) -> None:
    outside = tmp_path / "outside"
    if target == "folder":
        shutil.move(bundle_copy / "stages", outside)
        (bundle_copy / "stages").symlink_to(outside)
    else:
        shutil.move(bundle_copy / "stages/stage_0.onnx", outside)
        (bundle_copy / "stages/stage_0.onnx").symlink_to(outside)
    with pytest.raises(BundlePathError, match=r"stages/stage_0\.onnx' is a link that leaves"):
        Bundle.load(bundle_copy)


def test_a_link_inside_is_fine(bundle_copy: Path) -> None:
    (bundle_copy / "stages/stage_0.onnx").rename(bundle_copy / "elsewhere")
    (bundle_copy / "stages/stage_0.onnx").symlink_to(bundle_copy / "elsewhere")
    assert Bundle.load(bundle_copy).held == 3


def test_a_link_to_itself_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "stages/stage_0.onnx").unlink()
    (bundle_copy / "stages/stage_0.onnx").symlink_to("stage_0.onnx")
    with pytest.raises(BundleError, match="stage_0"):
        Bundle.load(bundle_copy)


@pytest.mark.parametrize("path", ["stages/\0.onnx", "x" * 5000], ids=["null byte", "too long"])
def test_a_path_that_no_system_takes_is_refused(edit: Edit, path: str) -> None:
    with pytest.raises(BundleError):
        Bundle.load(edit(lambda m: m["stages"][0]["graph"].update(file=path)))


def test_a_newer_version_is_refused(edit: Edit) -> None:
    with pytest.raises(BundleVersionError, match=r"manifest\.json has format 2.*Upgrade"):
        Bundle.load(edit(lambda m: m.update(format=2)))


def test_a_newer_tuning_is_refused(edit: Edit) -> None:
    with pytest.raises(BundleVersionError, match=r"tuning\.json has format 9"):
        Bundle.load(edit(lambda t: t.update(format=9), "tuning.json"))


def test_a_newer_version_is_told_from_unknown_keys(edit: Edit) -> None:
    """A later format will have other keys; what to say is that it is later."""
    with pytest.raises(BundleVersionError):
        Bundle.load(edit(lambda m: m.update(format=2, new_key=1)))


@pytest.mark.parametrize("file", ["manifest.json", "tuning.json"])
def test_an_unknown_key_is_refused(edit: Edit, file: str) -> None:
    with pytest.raises(BundleManifestError, match=rf"{file}: surprise: "):
        Bundle.load(edit(lambda content: content.update(surprise=1), file))


@pytest.mark.parametrize("file", ["manifest.json", "tuning.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"format": 1' + b"0" * 5000 + b"}",
        b'{"\\ud800": 1}',
    ],
    ids=["empty", "open", "list", "null", "bytes", "deep", "huge number", "surrogate"],
)
def test_what_is_no_manifest_is_refused(bundle_copy: Path, file: str, content: bytes) -> None:
    (bundle_copy / file).write_bytes(content)
    with pytest.raises((BundleManifestError, BundleVersionError), match=file):
        Bundle.load(bundle_copy)


@pytest.mark.parametrize(
    "how",
    [
        lambda m: m.pop("stages"),
        lambda m: m.update(stages=[]),
        lambda m: m.update(name="../evil"),
        lambda m: m["stages"][0]["graph"].update(sha256="abc"),
        lambda m: m["stages"][0]["graph"].update(bytes=-1),
        lambda m: m["stages"][0].update(density=0),
        lambda m: m["inputs"][0].update(shape=[1, 28, -28]),
        lambda m: m["inputs"][0].update(dtype="object"),
        lambda m: m.update(format="1"),
        lambda m: m.update(format=0),
    ],
    ids=range(10),
)
def test_values_that_cannot_be_are_refused(edit: Edit, how: Callable[[Any], Any]) -> None:
    with pytest.raises((BundleManifestError, BundleVersionError), match=r"manifest\.json"):
        Bundle.load(edit(how))


def rename_last(m: dict[str, Any]) -> None:
    m["exits"][-1]["logits"]["name"] = "other"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m: m["stages"][1]["graph"]["inputs"][0].update(shape=[32, 7, 8]), "stage 1"),
        (lambda m: m["stages"][1]["graph"]["inputs"][0].update(name="cut_x"), "stage 1"),
        (lambda m: m["stages"][1]["graph"]["inputs"][0].update(dtype="uint8"), "stage 1"),
        (lambda m: m["inputs"][0].update(shape=[1, 32, 32]), "stage 0"),
        (lambda m: m["exits"][0]["graph"]["inputs"][0].update(shape=[3]), "exit 0"),
        (lambda m: m["exits"][1]["logits"].update(shape=[11]), "exit 1"),
        (rename_last, "last stage"),
        (lambda m: m["codecs"][4]["decoder"]["outputs"][0].update(shape=[3]), "uint8 decoder of cut 0"),
        (lambda m: m["codecs"][4]["encoder"]["inputs"][0].update(shape=[3]), "uint8 encoder of cut 0"),
        (lambda m: m["codecs"][4]["decoder"]["inputs"][0].update(name="z"), "uint8 decoder of cut 0"),
        (lambda m: m["codecs"][4].update(cut=2), "cut 2; the last cut is 1"),
        (lambda m: m.update(classes=["a", "b"]), "2 class names"),
        (lambda m: m["exits"].pop(0), "3 stages need 3 exits"),
        (lambda m: m["exits"].append(m["exits"][-1]), "3 stages need 3 exits"),
        (lambda m: m["exits"].__setitem__(-1, None), "last exit"),
        (lambda m: m["exits"][-1].update(graph=m["exits"][0]["graph"]), "last exit"),
        (lambda m: m["exits"][0].update(graph=None), "exit 0"),
    ],
    ids=range(17),
)
def test_tensors_that_do_not_chain_are_refused(edit: Edit, how: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(BundleShapeError, match=message):
        Bundle.load(edit(how))


def test_a_cut_without_an_exit_is_fine(edit: Edit) -> None:
    bundle = Bundle.load(edit(lambda m: m["exits"].__setitem__(0, None)))
    assert bundle.manifest.exits[0] is None


def stage_pointing_outside(bundle: Path) -> bytes:
    model = onnx.load(bundle / "stages/stage_0.onnx")
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    content: bytes = model.SerializeToString()
    return content


def if_pointing_outside() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "b", [], [out], [tensor])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    content: bytes = helper.make_model(helper.make_graph([node], "g", [condition], [out])).SerializeToString()
    return content


@pytest.mark.parametrize("nested", [False, True])
def test_external_data_is_refused_even_with_the_right_hash(
    plant: Callable[[bytes], Path], bundle_copy: Path, nested: bool
) -> None:
    path = plant(if_pointing_outside() if nested else stage_pointing_outside(bundle_copy))
    with pytest.raises(ExternalDataError, match=r"stages/stage_0\.onnx' points to data outside itself"):
        Bundle.load(path)


def test_a_file_that_is_no_onnx_is_refused_even_with_the_right_hash(plant: Callable[[bytes], Path]) -> None:
    with pytest.raises(BundleAlteredError, match=r"stages/stage_0\.onnx.*not an ONNX file"):
        Bundle.load(plant(b"\xff\xff\xff\xff no protobuf"))


@pytest.mark.parametrize(
    "how",
    [
        lambda t: t["temperatures"].pop(),
        lambda t: t["thresholds"].append(0.5),
        lambda t: t.update(temperatures=[], thresholds=[]),
        lambda t: t["temperatures"].__setitem__(0, -1),
        lambda t: t["temperatures"].__setitem__(0, float("nan")),
        lambda t: t["thresholds"].__setitem__(0, "high"),
        lambda t: t.update(mode="uint16"),
    ],
    ids=range(7),
)
def test_tuning_that_does_not_fit_is_refused(edit: Edit, how: Callable[[Any], Any]) -> None:
    with pytest.raises(BundleManifestError, match=r"tuning\.json"):
        Bundle.load(edit(how, "tuning.json"))


@pytest.mark.parametrize("content", ['{"stages": 4}', '{"stages": 0}', '{"stages": "all"}', "{}", "x"])
def test_held_stages_that_cannot_be_are_refused(bundle_copy: Path, content: str) -> None:
    (bundle_copy / "held.json").write_text(content)
    with pytest.raises(BundleManifestError, match=r"held\.json"):
        Bundle.load(bundle_copy)


# --- edge copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_an_edge_copy_holds_the_first_stages(digits_bundle: Path, tmp_path: Path, stages: int) -> None:
    whole = Bundle.load(digits_bundle)
    copied = whole.edge_copy(tmp_path / "edge.bundle", stages)
    assert (copied.held, copied.digest, copied.manifest) == (stages, whole.digest, whole.manifest)
    assert copied.tuning == whole.tuning
    found = {name for name in listing(copied.path) if name.endswith(".onnx")}
    cuts = ["input", "cut_0", "cut_1"][: stages + 1]
    expected = {f"stages/stage_{i}.onnx" for i in range(stages)}
    expected |= {f"exits/exit_{i}.onnx" for i in range(min(stages, 2))}
    expected |= {f"codecs/{cut}.{m}.{end}.onnx" for cut in cuts for m in MODES for end in ("enc", "dec")}
    assert found == expected
    assert copied.stored_bytes() == whole.stored_bytes(stages)
    assert Bundle.load(copied.path).held == stages


def test_an_edge_copy_is_verified_too(digits_bundle: Path, tmp_path: Path) -> None:
    copied = Bundle.load(digits_bundle).edge_copy(tmp_path / "edge", 2)
    (copied.path / "stages/stage_1.onnx").write_bytes(b"")
    with pytest.raises(BundleAlteredError):
        Bundle.load(copied.path)
    with pytest.raises(BundleAlteredError):
        copied.edge_copy(tmp_path / "again", 2)
    assert not (tmp_path / "again").exists()


def test_an_edge_copy_replaces_edge_copies_only(digits_bundle: Path, tmp_path: Path) -> None:
    """Whoever types the wrong place must not lose what took hours to train."""
    shutil.copytree(digits_bundle, tmp_path / "whole")
    whole = Bundle.load(tmp_path / "whole")
    for place in (tmp_path / "whole", tmp_path / "edge" / ".." / "whole"):
        with pytest.raises(BundleError, match="would lose the stages"):
            whole.edge_copy(place, 1)
    copied = Bundle.load(digits_bundle).edge_copy(tmp_path / "edge", 2)
    with pytest.raises(BundleError, match="would lose the stages"):
        copied.edge_copy(copied.path, 1)
    assert (Bundle.load(whole.path).held, Bundle.load(copied.path).held) == (3, 2)
    whole.edge_copy(copied.path, 1)
    assert Bundle.load(copied.path).held == 1


@pytest.mark.parametrize("stages", [0, 4, -1])
def test_an_edge_copy_of_stages_that_are_not_there(digits_bundle: Path, tmp_path: Path, stages: int) -> None:
    with pytest.raises(ConfigError, match=f"stages must be 1 to 3, not {stages}"):
        Bundle.load(digits_bundle).edge_copy(tmp_path / "edge", stages)
    copied = Bundle.load(digits_bundle).edge_copy(tmp_path / "edge", 1)
    with pytest.raises(ConfigError, match="stages must be 1 to 1, not 2"):
        copied.edge_copy(tmp_path / "edge2", 2)


# --- writing ---------------------------------------------------------------------------------------------


def rewritten(source: Path, target: Path, **changes: Any) -> Manifest:
    """Writes the source's bundle to another place, with another manifest."""
    bundle = Bundle.load(source)
    manifest = bundle.manifest.model_copy(update=changes)
    files = {g.file: bundle.read(g) for g in bundle.held_graphs()}
    write_bundle(target, manifest, bundle.tuning, files)
    return manifest


def test_a_bundle_is_replaced_whole(digits_bundle: Path, bundle_copy: Path) -> None:
    (bundle_copy / "held.json").write_text('{"stages": 1}')
    rewritten(digits_bundle, bundle_copy, name="other")
    assert Bundle.load(bundle_copy).manifest.name == "other"
    assert not (bundle_copy / "held.json").exists()
    assert os.listdir(bundle_copy.parent) == [bundle_copy.name]  # no temporary folder is left


def test_parents_are_made_and_an_empty_directory_is_used(digits_bundle: Path, tmp_path: Path) -> None:
    rewritten(digits_bundle, tmp_path / "a/b/c.bundle")
    assert Bundle.load(tmp_path / "a/b/c.bundle").held == 3
    (tmp_path / "empty").mkdir()
    rewritten(digits_bundle, tmp_path / "empty")
    assert Bundle.load(tmp_path / "empty").held == 3
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(tmp_path)) == ["a", "empty"]


def refused(source: Path, target: Path) -> None:
    """The target stays as it is, and nothing is left beside it."""
    beside = sorted(os.listdir(target.parent))
    before = listing(target) if target.is_dir() else target.read_bytes()
    with pytest.raises(BundleError, match=target.name):
        rewritten(source, target)
    assert (listing(target) if target.is_dir() else target.read_bytes()) == before
    assert sorted(os.listdir(target.parent)) == beside


def test_what_is_no_bundle_is_left_alone(digits_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"irreplaceable")
    refused(digits_bundle, folder)
    (tmp_path / "notes.txt").write_text("irreplaceable")
    refused(digits_bundle, tmp_path / "notes.txt")


def test_another_programs_manifest_makes_no_bundle(digits_bundle: Path, tmp_path: Path) -> None:
    """Web pages and browser extensions have a manifest.json too."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "mine"}')
    (folder / "background.js").write_text("irreplaceable")
    refused(digits_bundle, folder)


def test_a_place_that_cannot_be_written(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot write a bundle"):
        rewritten(digits_bundle, tmp_path / "file/inside.bundle")
    assert (tmp_path / "file").read_text() == "x"


def test_a_failure_while_writing_leaves_the_old_bundle(
    digits_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(bundle_copy)
    write = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        if self.name == "stage_2.onnx":
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises((BundleError, OSError)) as caught:
        rewritten(digits_bundle, bundle_copy)
    monkeypatch.undo()
    assert listing(bundle_copy) == before
    assert os.listdir(bundle_copy.parent) == [bundle_copy.name]
    assert isinstance(caught.value, OfframpError)


def test_a_failure_while_replacing_leaves_the_old_bundle(
    digits_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(bundle_copy)
    replace, calls = os.replace, []

    def fails_once(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:  # the old one is out of the way, the new one not yet there
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises((BundleError, OSError)):
        rewritten(digits_bundle, bundle_copy, name="other")
    monkeypatch.undo()
    assert len(calls) >= 2
    assert bundle_copy.is_dir()
    assert listing(bundle_copy) == before


def test_a_bundle_behind_a_link_is_replaced_or_refused(digits_bundle: Path, bundle_copy: Path) -> None:
    link = bundle_copy.parent / "current"
    link.symlink_to(bundle_copy)
    try:
        rewritten(digits_bundle, link, name="other")
    except BundleError:
        assert Bundle.load(link).manifest.name == "digits"
    else:
        assert Bundle.load(link).manifest.name == "other"
    assert set(os.listdir(bundle_copy.parent)) == {bundle_copy.name, "current"}


def test_a_usual_mode_that_no_cut_has_is_named(edit: Edit) -> None:
    with pytest.raises(BundleManifestError, match="no cut has the mode 'uint-4'; there is float, uint8"):
        Bundle.load(edit(lambda t: t.update(mode="uint-4"), "tuning.json"))


# --- a new tuning ----------------------------------------------------------------------------------------


def other_tuning(bundle: Bundle) -> Tuning:
    return bundle.tuning.model_copy(update={"thresholds": (0.25, 0.5, None), "confidence": "entropy"})


def test_a_new_tuning_changes_nothing_else(bundle_copy: Path) -> None:
    (bundle_copy / "tuning.json").chmod(0o640)
    before, old = listing(bundle_copy), Bundle.load(bundle_copy)
    new = old.retuned(other_tuning(old))
    assert Bundle.load(bundle_copy).tuning == new.tuning == other_tuning(old)
    assert (new.digest, new.held, new.path) == (old.digest, old.held, old.path)
    after = listing(bundle_copy)
    assert after.pop("tuning.json.bak") == before.pop("tuning.json")
    after.pop("tuning.json")
    assert after == before
    assert (bundle_copy / "tuning.json").stat().st_mode & 0o777 == 0o640  # who may read it stays as it was


def test_an_edge_copy_is_retuned_alone(digits_bundle: Path, tmp_path: Path) -> None:
    whole = Bundle.load(digits_bundle)
    copied = whole.edge_copy(tmp_path / "edge", 1)
    copied.retuned(other_tuning(copied))
    again = Bundle.load(tmp_path / "edge")
    assert (again.held, again.digest, again.tuning) == (1, whole.digest, other_tuning(whole))
    assert Bundle.load(digits_bundle).tuning == whole.tuning


def test_a_tuning_of_another_length_is_not_written(bundle_copy: Path) -> None:
    before, bundle = listing(bundle_copy), Bundle.load(bundle_copy)
    with pytest.raises(BundleManifestError, match="one temperature and threshold per exit, 3"):
        bundle.retuned(Tuning(temperatures=(1.0,), thresholds=(None,)))
    assert listing(bundle_copy) == before


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "shutil.copymode"])
@pytest.mark.parametrize("when", [1, 2])
def test_a_tuning_that_cannot_be_written_leaves_the_old_one(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: str, when: int
) -> None:
    """Whichever step fails, while the backup (1) or the new file (2) is written."""
    before, bundle = listing(bundle_copy), Bundle.load(bundle_copy)
    module, name = call.split(".")
    real, calls = getattr({"os": os, "shutil": shutil}[module], name), []

    def fails(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == when:
            raise error
        return real(*arguments)

    monkeypatch.setattr(f"offramp.bundle.bundle.{call}", fails)
    expected = BundleError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        bundle.retuned(other_tuning(bundle))
    after = listing(bundle_copy)
    after.pop("tuning.json.bak", None)
    assert after == before  # and nothing half-written lies about
