import json
import shutil

import numpy as np
import pytest

from offramp.errors import (
    BundleAlteredError,
    BundleFileError,
    ConfigError,
    DigestMismatchError,
    ServerRefusedError,
)
from offramp.runtime.repository import BundleFolders, Repository
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest


@pytest.fixture(scope="session")
def versions(make_bundle, tmp_path_factory):
    """Bundles of the name `tiny` whose digests differ: by their exits."""
    root = tmp_path_factory.mktemp("versions")
    return [make_bundle(root / str(i), exits=exits) for i, exits in enumerate(((0, 2), (0,), (2,)))]


@pytest.fixture(scope="session")
def tails(versions):
    found = [Tail(Stages(bundle)) for bundle in versions]
    assert len({tail.bundle.digest for tail in found}) == 3
    return found


def renamed(source, target, name):
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    return target


# --- a repository ---------------------------------------------------------------------------------------


def test_a_digest_chooses_and_without_one_the_newest_answers(tails):
    repository = Repository(tails[:2])
    assert repository.find("tiny") is tails[1]
    assert repository.find("tiny-tail-0-uint8", tails[0].bundle.digest) is tails[0]
    assert list(repository.models["tiny"]) == [tails[1].bundle.digest, tails[0].bundle.digest]
    repository.replace([tails[1], tails[0]])
    assert repository.find("tiny") is tails[0]


def test_what_is_not_here_is_refused_and_the_refusal_says_what_is(tails):
    repository = Repository(tails[:2])
    with pytest.raises(ServerRefusedError, match="tiny-tail-1"):
        repository.find("other")
    with pytest.raises(DigestMismatchError) as caught:
        repository.find("tiny", tails[2].bundle.digest)
    for tail in tails:
        assert tail.bundle.digest[:12] in str(caught.value)
    repository.replace([])
    with pytest.raises(ServerRefusedError):
        repository.find("tiny")


def test_whoever_has_a_tail_finishes_with_it(tails):
    repository = Repository([tails[0]])
    tail = repository.find("tiny")
    repository.replace([])
    assert tail.infer(TailRequest("tiny", {"input": np.zeros((1, 8), np.float32)})).logits.shape == (1, 2)


def test_two_bundles_may_not_offer_the_same_model(tails, versions, tmp_path):
    from offramp.bundle.bundle import Bundle

    clash = Tail(Stages(Bundle.load(renamed(versions[0].path, tmp_path / "clash", "tiny-tail-0"))))
    repository = Repository([tails[0]])
    with pytest.raises(ConfigError, match="'tiny-tail-0'"):
        repository.replace([tails[0], clash])
    assert repository.tails == (tails[0],)
    assert Repository([clash]).find("tiny-tail-0-tail-1") is clash


# --- folders that are read again ------------------------------------------------------------------------


class Loader:
    def __init__(self):
        self.loaded = []

    def __call__(self, bundle):
        self.loaded.append(bundle.digest)
        return Tail(Stages(bundle))


@pytest.fixture
def load():
    return Loader()


def put(source, target):
    """What an export does: the new version takes the old one's place."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source.path, target)
    return target


def digests(repository, model="tiny"):
    return list(repository.models.get(model, {}))


def test_a_changed_bundle_is_served_beside_its_previous_version(versions, tmp_path, load):
    a, b, c = (version.digest for version in versions)
    path, repository = put(versions[0], tmp_path / "tiny.bundle"), Repository()
    folders = BundleFolders([path], repository, load)
    assert folders.reread() == ([f"loaded tiny {a[:12]}"], [])
    assert folders.reread() == ([], [])  # nothing changed, nothing is loaded twice
    put(versions[1], path)
    assert folders.reread() == ([f"loaded tiny {b[:12]}"], [])
    assert digests(repository) == [b, a]
    assert folders.reread() == ([], [])
    assert digests(repository) == [b, a]
    put(versions[2], path)
    assert folders.reread() == ([f"loaded tiny {c[:12]}", f"unloaded tiny {a[:12]}"], [])
    assert digests(repository) == [c, b]
    put(versions[1], path)  # back to the one before
    folders.reread()
    assert digests(repository) == [b, c]
    assert load.loaded == [a, b, c, b]


def test_a_new_tuning_is_a_change_that_keeps_the_previous_version(versions, tmp_path, load):
    path, repository = put(versions[0], tmp_path / "tiny.bundle"), Repository()
    folders = BundleFolders([path], repository, load)
    folders.reread()
    put(versions[1], path)
    folders.reread()
    tuning = json.loads((path / "tuning.json").read_text())
    (path / "tuning.json").write_text(json.dumps({**tuning, "thresholds": [0.1, None, None, None]}))
    folders.reread()
    assert digests(repository) == [versions[1].digest, versions[0].digest]
    assert repository.find("tiny").bundle.tuning.thresholds[0] == 0.1
    assert len(repository.tails) == 2


def test_a_folder_of_bundles(versions, tmp_path, load):
    root, repository = tmp_path / "models", Repository()
    put(versions[0], root / "one")
    renamed(versions[1].path, root / "two", "other")
    put(versions[2], root / ".tiny.bundle-half-written")
    (root / "notes").mkdir()
    folders = BundleFolders([root], repository, load)
    folders.reread()
    assert (digests(repository), digests(repository, "other")) == ([versions[0].digest], [versions[1].digest])
    shutil.rmtree(root / "two")
    put(versions[2], root / "three")
    changes, errors = folders.reread()
    assert changes == [f"loaded tiny {versions[2].digest[:12]}", f"unloaded other {versions[1].digest[:12]}"]
    assert errors == []
    assert digests(repository) == [
        versions[2].digest,
        versions[0].digest,
    ]  # two folders, one name: the later is newer
    assert digests(repository, "other") == []


def test_a_named_bundle_that_is_gone_is_unloaded(versions, tmp_path, load):
    paths, repository = [put(v, tmp_path / str(i)) for i, v in enumerate(versions[:2])], Repository()
    folders = BundleFolders(paths, repository, load)
    folders.reread()
    shutil.rmtree(paths[1])
    assert folders.reread() == ([f"unloaded tiny {versions[1].digest[:12]}"], [])
    assert digests(repository) == [versions[0].digest]


def test_what_cannot_be_read_stays_as_it_was(versions, tmp_path, load):
    paths, repository = [put(versions[0], tmp_path / "one")], Repository()
    folders = BundleFolders(paths, repository, load)
    folders.reread()
    put(versions[1], paths[0])
    (paths[0] / "stages" / "stage_0.onnx").write_bytes(b"torn")
    changes, (error,) = folders.reread()
    assert changes == []
    assert isinstance(error, BundleAlteredError)
    assert digests(repository) == [versions[0].digest]
    put(versions[1], paths[0])
    folders.reread()
    assert digests(repository) == [versions[1].digest, versions[0].digest]


def test_a_clash_leaves_everything_as_it_was(versions, tmp_path, load):
    root, repository = tmp_path / "models", Repository()
    put(versions[0], root / "one")
    folders = BundleFolders([root], repository, load)
    folders.reread()
    renamed(versions[1].path, root / "two", "tiny-tail-0")
    with pytest.raises(ConfigError, match="tiny-tail-0"):
        folders.reread()
    assert digests(repository) == [versions[0].digest]
    shutil.rmtree(root / "two")
    assert folders.reread() == ([], [])


@pytest.mark.parametrize("what", ["nothing", "empty", "edge copy"])
def test_what_never_was_a_whole_bundle_is_an_error(versions, tmp_path, load, what):
    path = tmp_path / "here"
    if what == "empty":
        path.mkdir()
    if what == "edge copy":
        versions[0].edge_copy(path, 2)
    _, (error,) = BundleFolders([path], Repository(), load).reread()
    assert isinstance(error, ServerRefusedError if what == "edge copy" else BundleFileError)
    assert "here" in str(error)
