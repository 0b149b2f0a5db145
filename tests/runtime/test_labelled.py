"""Where held-out data comes from, and that it is neither test nor training data where that can be known."""

import numpy as np
import pytest
from PIL import Image

from offramp.bundle.manifest import Preprocessing, Provenance, TensorSpec
from offramp.datasets import DATASETS, ImageData, folder_parts, named_parts
from offramp.errors import ConfigError, DatasetError
from offramp.runtime.labelled import calibration_data, held_out_data
from offramp.runtime.labelled import test_data as given_to_measure

SIZES = [9000, 1000, 2000]


@pytest.fixture
def manifest(tiny):
    """A network for digits, as far as data are concerned."""
    changes = {
        "classes": tuple("0123456789"),
        "preprocessing": Preprocessing(color="grey", height=28, width=28),
        "inputs": (TensorSpec(name="input", dtype="float32", shape=(1, 28, 28)),),
    }
    return tiny.manifest.model_copy(update=changes)


def trained_on(manifest, data, seed=3, sizes=SIZES):
    record = {"held_out": {"seed": seed, "sizes": sizes}}
    return manifest.model_copy(update={"provenance": Provenance(data=data, metrics=record)})


@pytest.fixture
def folder(tmp_path):
    """60 images of each of three digits, each of one shade."""
    for i in range(180):
        path = tmp_path / "photos" / ("1", "7", "9")[i % 3] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), i).save(path)
    return tmp_path / "photos"


def test_by_name_the_images_that_training_held_out(manifest, digits):
    found = held_out_data("mnist-subset", trained_on(manifest, "mnist-subset"))
    held_out = named_parts("mnist-subset", seed=3).held_out
    np.testing.assert_array_equal(found.inputs, held_out.images)
    np.testing.assert_array_equal(found.labels, held_out.labels)
    assert found.what == "the held-out part of mnist-subset's training images (1,000)"
    assert found.doubt == ""
    training = {image.tobytes() for image in digits[0].images}
    assert all(image.tobytes() in training for image in found.inputs)


@pytest.mark.parametrize("data", ["", "mnist", "photos"])
def test_a_network_from_elsewhere_raises_a_doubt(manifest, data):
    assert "does not say" in held_out_data("mnist-subset", trained_on(manifest, data)).doubt
    assert "does not say" in held_out_data("mnist-subset", manifest).doubt


@pytest.mark.parametrize("record", [{}, {"held_out": 7}, {"held_out": {"seed": "x"}}, {"held_out": {}}])
def test_a_record_that_says_nothing_raises_a_doubt(manifest, record):
    strange = manifest.model_copy(update={"provenance": Provenance(data="mnist-subset", metrics=record)})
    assert "does not say" in held_out_data("mnist-subset", strange).doubt


@pytest.mark.parametrize("sizes", [[9500, 500, 2000], None, "many"])
def test_other_sizes_than_in_training_are_refused(manifest, sizes):
    with pytest.raises(DatasetError, match=r"now gives \[9000, 1000, 2000\] images.*not known"):
        held_out_data("mnist-subset", trained_on(manifest, "mnist-subset", sizes=sizes))


def test_a_folder_is_taken_whole_and_its_names_are_the_bundle_s_classes(manifest, folder):
    found = held_out_data(str(folder), manifest)
    assert found.inputs.shape == (180, 28, 28)
    assert sorted(set(found.labels.tolist())) == [1, 7, 9]
    shades = found.inputs[:, 0, 0].astype(int)
    assert (found.labels == np.array([1, 7, 9])[shades % 3]).all()
    assert "only you know" in found.doubt


def test_of_the_folder_that_was_trained_on_only_the_part_held_out(manifest, folder, monkeypatch):
    parts = folder_parts(folder, (28, 28), color=False, seed=3)
    assert parts.sizes == [144, 18, 18]
    monkeypatch.chdir(folder.parent)
    found = held_out_data("photos", trained_on(manifest, str(folder), sizes=parts.sizes))
    np.testing.assert_array_equal(found.inputs, parts.held_out.images)
    assert found.doubt == ""
    Image.new("L", (28, 28), 200).save(folder / "1" / "new.png")
    Image.new("L", (28, 28), 201).save(folder / "1" / "more.png")
    with pytest.raises(DatasetError, match="not known which images"):
        held_out_data("photos", trained_on(manifest, str(folder), sizes=parts.sizes))


@pytest.mark.parametrize("data", ["x" * 5000, "a\0b", "some words of its author's"])
def test_what_a_network_was_trained_on_may_be_told_in_any_words(manifest, folder, data):
    assert "only you know" in held_out_data(str(folder), trained_on(manifest, data)).doubt


def test_images_are_made_what_the_manifest_says(manifest, folder):
    colour = Preprocessing(color="rgb", height=20, width=24)
    assert held_out_data(str(folder), manifest.model_copy(update={"preprocessing": colour})).inputs.shape == (
        180, 20, 24, 3,
    )  # fmt: skip


def test_a_class_that_the_bundle_does_not_know(manifest, folder):
    (folder / "7").rename(folder / "seven")
    with pytest.raises(DatasetError, match="classes that the bundle does not know: seven; it knows 0, 1"):
        held_out_data(str(folder), manifest)
    nameless = manifest.model_copy(update={"classes": ()})
    assert set(held_out_data(str(folder), nameless).labels.tolist()) == {0, 1, 2}


def test_arrays(manifest, tmp_path):
    x, y = np.zeros((12, 1, 28, 28), np.float32), np.arange(12, dtype=np.uint8) % 10
    np.savez(tmp_path / "some.NPZ.npz", x=x, y=y)
    found = held_out_data(str(tmp_path / "some.NPZ.npz"), manifest)
    assert (found.inputs.shape, found.labels.dtype) == ((12, 1, 28, 28), np.int64)
    assert "only you know" in found.doubt


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((3, 4))}, "'y is not a file in the archive'|y is not a file"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(4, int)}, r"float64 \(3, 4\) and int64 \(4,\)"),
        ({"x": np.zeros((3, 4)), "y": np.zeros(3)}, r"and float64 \(3,\)"),
        ({"x": np.zeros((3, 4)), "y": np.zeros((3, 1), int)}, r"int64 \(3, 1\)"),
        ({"x": np.float32(1), "y": np.zeros(3, int)}, r"float32 \(\)"),
        ({"x": np.array([{}] * 3, object), "y": np.zeros(3, int)}, "can be read: Object arrays"),
    ],
)
def test_arrays_that_cannot_be(manifest, tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=words):
        held_out_data(str(tmp_path / "x.npz"), manifest)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_archive(manifest, tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"no \.npz file with inputs `x` and labels `y`"):
        held_out_data(str(tmp_path / "x.npz"), manifest)


def test_one_array_called_npz(manifest, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(DatasetError, match=r"no \.npz file"):
        held_out_data(str(tmp_path / "x.npz"), manifest)


@pytest.mark.parametrize("source", ["mnits", "missing.npz", "missing/", "x" * 5000, "a\0b"])
def test_what_is_not_there(manifest, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"is no data set, no folder .*{', '.join(DATASETS)}"):
        held_out_data(source, manifest)


def test_images_need_preprocessing(manifest, folder):
    plain = manifest.model_copy(update={"preprocessing": None})
    for source in ("mnist-subset", str(folder)):
        with pytest.raises(ConfigError, match=r"no preprocessing.*\(N, 1, 28, 28\)"):
            held_out_data(source, plain)


def test_a_name_goes_before_a_folder(manifest, tmp_path, monkeypatch):
    (tmp_path / "kmnist").mkdir()
    monkeypatch.chdir(tmp_path)
    tiny = ImageData(np.zeros((40, 28, 28), np.uint8), np.arange(40) % 10, tuple("0123456789"))
    monkeypatch.setattr("offramp.datasets.parts.idx_set", lambda name: (tiny, tiny))
    assert len(held_out_data("kmnist", manifest).labels) == 4
    with pytest.raises(DatasetError, match="holds no folders"):
        held_out_data("./kmnist", manifest)


def test_data_to_measure_by_are_test_images_or_all_that_is_given(manifest, folder):
    found = given_to_measure("mnist-subset", manifest)
    assert (found.inputs == named_parts("mnist-subset").test.images).all()
    assert (found.what, found.doubt) == ("the test images of mnist-subset (2,000)", "")
    assert len(given_to_measure(str(folder), manifest).labels) == len(held_out_data(str(folder), manifest).labels)
    with pytest.raises(ConfigError, match="'nothing' is no data set, no folder"):
        given_to_measure("nothing", manifest)
    some = found.first(7)
    assert (len(some.inputs), len(some.labels), some.what) == (7, 7, f"the first 7 of {found.what}")
    assert found.first(None) is found.first(10_000) is found


def test_calibration_data_are_drawn_and_never_measured_by(manifest, tmp_path, digits):
    """Of a file, what is drawn and what is left make up all of it; of a data set by name, test images measure."""
    x = np.arange(30, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 28, 28), np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(30) % 10)
    known, rest = calibration_data(str(tmp_path / "own.npz"), manifest, 8)
    drawn, left = (part.inputs[:, 0, 0, 0].tolist() for part in (known, rest))
    assert sorted(drawn + left) == list(range(30))
    assert len(drawn) == 8
    assert drawn != sorted(drawn)
    assert left == sorted(left)
    np.testing.assert_array_equal(known.labels, np.array(drawn) % 10)
    assert known.what.startswith("8 of all samples in")
    assert rest.what.startswith("22 of all samples in")
    assert len(calibration_data(str(tmp_path / "own.npz"), manifest, 1000)[0].labels) == 15
    again, _ = calibration_data(str(tmp_path / "own.npz"), manifest, 8)
    np.testing.assert_array_equal(again.inputs, known.inputs)
    named, test = calibration_data("mnist-subset", trained_on(manifest, "mnist-subset"), 300)
    assert len(named.labels) == 300
    held_out = {image.tobytes() for image in named_parts("mnist-subset", seed=3).held_out.images}
    assert all(image.tobytes() in held_out for image in named.inputs)
    np.testing.assert_array_equal(test.inputs, digits[1].images)


def test_one_sample_cannot_both_calibrate_and_measure(manifest, tmp_path):
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 1, 28, 28), np.float32), y=[0])
    with pytest.raises(DatasetError, match="at least two samples"):
        calibration_data(str(tmp_path / "one.npz"), manifest, 1)
