import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from offramp.bundle.bundle import Bundle
from offramp.bundle.manifest import TensorSpec
from offramp.bundle.preprocessing import preprocess
from offramp.errors import ActionError, BundleShapeError, ConfigError, InputError, StageError
from offramp.runtime.stages import PROVIDERS, Stages, check_tensor

SPEC = TensorSpec(name="x", dtype="float32", shape=(2, 3))


@pytest.fixture(scope="module")
def stages(digits_bundle):
    return Stages(Bundle.load(digits_bundle))


@pytest.fixture(scope="module")
def cuts(stages, digit_images):
    """The float tensors of every cut for 16 digits, the input first, the last logits last."""
    tensors = [preprocess(digit_images[0][:16], stages.bundle.manifest.preprocessing)]
    found = [tensors]
    for i in range(3):
        tensors, spent = stages.stage(i, tensors)
        assert spent > 0
        found.append(tensors)
    return found


def test_the_last_stage_and_the_exits_give_logits(stages, cuts):
    assert cuts[3][0].shape == (16, 10)
    for i in range(2):
        logits, spent = stages.exit(i, cuts[i + 1])
        assert (logits.shape, logits.dtype) == ((16, 10), np.float32)
        assert spent > 0


@pytest.mark.parametrize("cut", [-1, 0, 1])
def test_float_travels_as_it_is(stages, cuts, cut):
    packed, spent = stages.encode(cut, "float", cuts[cut + 1])
    assert packed[0] is cuts[cut + 1][0]
    assert stages.decode(cut, "float", packed)[0][0] is packed[0]
    assert spent == 0.0
    assert stages.wire(cut, "float") == stages.bundle.manifest.cut(cut)


@pytest.mark.parametrize("cut", [-1, 0, 1])
def test_uint8_travels_in_a_quarter_and_comes_back_within_a_step(stages, cuts, cut):
    plain = cuts[cut + 1][0]
    packed, _ = stages.encode(cut, "uint8", [plain])
    (spec,) = stages.wire(cut, "uint8")
    assert packed[0].dtype == np.uint8
    assert packed[0].shape[1:] == spec.shape == plain.shape[1:]
    assert packed[0].nbytes * 4 == plain.nbytes
    back, _ = stages.decode(cut, "uint8", packed)
    assert back[0].dtype == np.float32
    step = back[0][np.nonzero(back[0])].__abs__().min() if back[0].any() else 1.0
    inside = (plain >= back[0].min()) & (plain <= back[0].max())  # values beyond the calibrated range are clipped
    assert inside.mean() > 0.9
    assert np.abs(plain - back[0])[inside].max() <= step / 2 + 1e-5
    again, _ = stages.encode(cut, "uint8", back)
    assert np.array_equal(again[0], packed[0])


@pytest.mark.parametrize("call", ["encode", "decode", "wire"])
def test_an_unknown_mode_names_those_that_are_there(stages, call):
    arguments = (0, "uint3") if call == "wire" else (0, "uint3", [np.zeros((1, 1), np.float32)])
    with pytest.raises(ActionError, match=r"uint3.*float, uint8"):
        getattr(stages, call)(*arguments)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_stage_that_is_not_there(stages, index):
    with pytest.raises(ActionError, match="stage"):
        stages.stage(index, [])


@pytest.mark.parametrize("index", [-1, 2, 3])
def test_the_last_exit_has_no_head(stages, index):
    with pytest.raises(ActionError, match="no early exit"):
        stages.exit(index, [])


def test_an_edge_copy_has_only_its_own_stages(tiny, tmp_path):
    copy = Stages(tiny.edge_copy(tmp_path / "copy", 2))
    x = np.zeros((1, 8), np.float32)
    assert np.array_equal(copy.stage(1, [x])[0][0], x)
    with pytest.raises(ActionError, match="stages 0 to 1"):
        copy.stage(2, [x])
    with pytest.raises(ActionError):
        copy.exit(2, [x])


@pytest.mark.parametrize("provider", ["tpu", "", "CPUExecutionProvider"])
def test_an_unknown_provider_lists_what_is_here(tiny, provider):
    with pytest.raises(ConfigError, match=r"available.*cpu"):
        Stages(tiny, provider=provider)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="cuda is here")
def test_cuda_without_onnxruntime_gpu_is_not_silently_the_cpu(tiny):
    assert "cuda" in PROVIDERS
    with pytest.raises(ConfigError, match="cuda"):
        Stages(tiny, provider="cuda")


@pytest.mark.parametrize(
    "bad", [{"slowdown": 0.99}, {"slowdown": float("nan")}, {"slowdown": float("inf")}, {"threads": 0}]
)
def test_bad_settings(tiny, bad):
    with pytest.raises(ConfigError):
        Stages(tiny, **bad)


def test_slowdown_sleeps_the_rest(tiny, clock):
    def ticking():
        clock.now += 0.001
        return clock.now

    slow = Stages(tiny, slowdown=5, clock=ticking, sleep=clock.sleep)
    _, spent = slow.stage(0, [np.zeros((1, 8), np.float32)])
    assert clock.slept == pytest.approx([0.004])
    assert spent == pytest.approx(1 + 4 + 1)  # what it took, the sleep, and the clock's own last tick


def test_without_slowdown_nothing_sleeps(tiny, clock):
    Stages(tiny, clock=clock, sleep=clock.sleep).stage(0, [np.zeros((1, 8), np.float32)])
    assert clock.slept == []


def test_the_runtimes_failure_is_a_stage_error_that_names_the_file(tiny):
    with pytest.raises(StageError, match=r"stages/stage_0\.onnx"):
        Stages(tiny).stage(0, [np.zeros((1, 5), np.float64)])


def _alone(bundle, x):
    """Every stage's cut, each from a session with memory of its own."""
    found, options = [x], ort.SessionOptions()
    options.intra_op_num_threads = 1
    for stage in bundle.manifest.stages:
        session = ort.InferenceSession(bundle.read(stage.graph), options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {session.get_inputs()[0].name: found[-1]})[0])
    return found[1:]


def _cuts(stages, x):
    tensors, found = [x], []
    for i in range(stages.bundle.held):
        tensors, _ = stages.stage(i, tensors)
        found.append(tensors[0])
    return found


def _equal(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_stages_share_memory_and_give_what_they_give_alone(stages, digit_images):
    entries = [
        session.get_session_options().get_session_config_entry("session.use_env_allocators")
        for session, *_ in stages._sessions.values()
    ]
    assert set(entries) == {"1"}
    inputs = preprocess(digit_images[0][:8], stages.bundle.manifest.preprocessing)
    expected = [_alone(stages.bundle, x[None]) for x in inputs]
    found = [_cuts(stages, x[None]) for x in inputs]
    assert all(map(_equal, found, expected))  # what was given first is still there after the last


def test_threads_do_not_disturb_each_other_in_the_shared_memory(stages, digit_images):
    inputs = preprocess(digit_images[0][:40], stages.bundle.manifest.preprocessing)
    expected = [_cuts(stages, x[None]) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: _cuts(stages, x[None]), inputs))
    assert all(map(_equal, found, expected))


def test_sessions_made_earlier_work_on_when_others_come_and_go(stages, digit_images):
    x = preprocess(digit_images[0][:1], stages.bundle.manifest.preprocessing)
    expected = _cuts(stages, x)
    others = [Stages(stages.bundle) for _ in range(3)]
    assert all(_equal(_cuts(other, x), expected) for other in others)
    del others
    assert _equal(_cuts(stages, x), expected)


def test_a_process_that_has_a_shared_arena_already_keeps_it(tiny, monkeypatch):
    def taken(*_):
        raise RuntimeError("An allocator for this device has already been registered for sharing.")

    monkeypatch.setattr(ort, "create_and_register_allocator", taken)
    x = np.zeros((1, 8), np.float32)
    assert np.array_equal(Stages(tiny).stage(0, [x])[0][0], x)


def _replaced(bundle, content):
    """The bundle with another first stage, vouched for by the manifest."""
    manifest = bundle.manifest
    first = manifest.stages[0]
    graph = first.graph.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    (bundle.path / graph.file).write_bytes(content)
    changed = (first.model_copy(update={"graph": graph}), *manifest.stages[1:])
    return Bundle(bundle.path, manifest.model_copy(update={"stages": changed}), bundle.tuning, bundle.held)


def test_a_graph_that_cannot_be_loaded_is_a_stage_error(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "b")
    content = (bundle.path / "stages/stage_0.onnx").read_bytes().replace(b"Identity", b"Idendity")
    with pytest.raises(StageError, match=r"stages/stage_0\.onnx"):
        Stages(_replaced(bundle, content))


def test_a_graph_with_other_tensors_than_the_manifests_is_refused(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "b")
    content = (bundle.path / "stages/stage_1.onnx").read_bytes()
    with pytest.raises(BundleShapeError, match="manifest says"):
        Stages(_replaced(bundle, content))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (np.zeros((1, 2, 3), np.float64), "float64"),
        (np.zeros((1, 2, 3), ">f4"), "expected float32"),
        (np.zeros((1, 3, 2), np.float32), r"\(1, 3, 2\)"),
        (np.zeros((2, 3), np.float32), r"\(2, 3\)"),
        (np.zeros((), np.float32), r"\(\)"),
        (np.full((1, 2, 3), np.nan, np.float32), "NaN or infinity"),
        (np.array([[[0, 0, 0], [0, 0, np.inf]]], np.float32), "NaN or infinity"),
        (np.array([[[np.inf, 0, 0], [0, 0, -np.inf]]], np.float32), "NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit(tensor, why):
    with pytest.raises(InputError, match=why) as caught:
        check_tensor(tensor, SPEC)
    assert "'x'" in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 2, 3), np.float32),
        np.zeros((7, 2, 3), np.float32),
        np.zeros((0, 2, 3), np.float32),
        np.full((1, 2, 3), 3e38, np.float32),  # finite, though the sum is not
        np.full((1, 2, 3), -3e38, np.float32),
        np.asfortranarray(np.ones((2, 2, 3), np.float32)),
    ],
)
def test_tensors_that_fit(tensor):
    check_tensor(tensor, SPEC)


def test_integers_are_not_looked_at_for_nan():
    check_tensor(np.zeros((1, 4), np.uint8), TensorSpec(name="q", dtype="uint8", shape=(4,)))
    with pytest.raises(InputError, match="uint8"):
        check_tensor(np.zeros((1, 4), np.int8), TensorSpec(name="q", dtype="uint8", shape=(4,)))
