import numpy as np
import pytest

from offramp.bundle.bundle import Bundle
from offramp.bundle.preprocessing import preprocess
from offramp.bundle.quantiser import MODES
from offramp.errors import DigestMismatchError, InputError, ServerRefusedError
from offramp.runtime.gate import Gate
from offramp.runtime.stages import Stages
from offramp.runtime.tail import Tail, TailRequest, tail_name

NEVER = 2.0


@pytest.fixture(scope="module")
def stages(digits_bundle):
    return Stages(Bundle.load(digits_bundle))


@pytest.fixture(scope="module")
def inputs(stages, digit_images):
    return preprocess(digit_images[0][:24], stages.bundle.manifest.preprocessing)


@pytest.fixture(scope="module")
def tiny_tail(tiny):
    return Tail(Stages(tiny))


def chained(stages, x, cut, mode):
    """The slow way: what the edge would send from `cut`, and the logits of every exit after it."""
    tensors = [x]
    for i in range(cut + 1):
        tensors, _ = stages.stage(i, tensors)
    sent, _ = stages.encode(cut, mode, tensors)
    tensors, _ = stages.decode(cut, mode, sent)
    logits, last = {}, stages.bundle.manifest.last
    for i in range(cut + 1, last + 1):
        tensors, _ = stages.stage(i, tensors)
        if i == last:
            logits[i] = tensors[0]
        elif stages.bundle.manifest.exits[i] is not None:
            logits[i], _ = stages.exit(i, tensors)
    return dict(zip((s.name for s in stages.wire(cut, mode)), sent, strict=True)), logits


@pytest.mark.parametrize(
    ("cut", "mode", "name"),
    [
        (-1, "float", "d"),
        (-1, "uint8", "d-uint8"),
        (0, "float", "d-tail-0"),
        (12, "uint4", "d-tail-12-uint4"),
    ],
)
def test_names_on_the_wire(cut, mode, name):
    assert tail_name("d", cut, mode) == name


def test_the_models_are_every_cut_in_every_mode(stages):
    models, name = Tail(stages).models, stages.bundle.manifest.name
    assert set(models) == {tail_name(name, cut, mode) for cut in (-1, 0, 1) for mode in ("float", *MODES)}
    for model in models.values():
        assert model.inputs == stages.wire(model.cut, model.mode)
        assert [(t.name, t.dtype, t.shape) for t in model.outputs] == [
            ("logits", "float32", (10,)),
            ("exit", "int64", ()),
        ]


@pytest.mark.parametrize("mode", ["float", "uint8"])
@pytest.mark.parametrize("cut", [-1, 0, 1])
def test_one_by_one_the_answer_is_the_chained_stages_bit_for_bit(stages, inputs, cut, mode):
    tail, model = Tail(stages), tail_name(stages.bundle.manifest.name, cut, mode)
    for x in inputs[:6]:
        sent, logits = chained(stages, x[None], cut, mode)
        reply = tail.infer(TailRequest(model, sent, final=True))
        assert reply.logits.tobytes() == logits[2].tobytes()
        assert reply.logits.dtype == np.float32
        assert reply.exits.tolist() == [2]
        assert reply.server_ms > 0


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("cut", [-1, 0])
def test_a_batch_answers_each_sample_as_alone_within_1e_5(stages, inputs, cut, final):
    tail, model = Tail(stages), tail_name(stages.bundle.manifest.name, cut, "float")
    sent, _ = chained(stages, inputs, cut, "float")
    together = tail.infer(TailRequest(model, sent, final=final))
    for i in range(len(inputs)):
        alone = tail.infer(TailRequest(model, {k: t[i : i + 1] for k, t in sent.items()}, final=final))
        assert together.exits[i] == alone.exits[0]
        np.testing.assert_allclose(together.logits[i], alone.logits[0], rtol=1e-5, atol=1e-5)


def test_leaves_at_the_first_exit_that_is_sure(stages, inputs):
    tail, name = Tail(stages), stages.bundle.manifest.name
    gate = Gate(stages.bundle.tuning)
    for x in inputs:
        sent, logits = chained(stages, x[None], -1, "float")
        sure = [e for e in (0, 1) if gate.passes(e, gate.belief(e, logits[e][0]).confidence)]
        reply = tail.infer(TailRequest(name, sent))
        assert reply.exits.tolist() == [(*sure, 2)[0]]
        assert reply.logits.tobytes() == logits[int(reply.exits[0])].tobytes()


def test_in_a_batch_every_sample_leaves_where_it_is_sure(tiny_tail, says):
    batch = np.stack(
        [
            says({0: 0.6, 2: 0.6, 3: 0.9}),
            says({0: 0.9, 2: 0.6, 3: 0.6}, label=0),
            says({0: 0.6, 2: 0.8, 3: 0.6}, label=0),
            says({0: 0.8, 2: 0.9, 3: 0.6}),
        ]
    )
    reply = tiny_tail.infer(TailRequest("tiny", {"input": batch}))
    assert reply.exits.tolist() == [3, 0, 2, 0]
    assert np.array_equal(reply.logits, [batch[i, 2 * e : 2 * e + 2] for i, e in enumerate(reply.exits)])
    # From cut 0 on, exit 0 lies behind.
    assert tiny_tail.infer(TailRequest("tiny-tail-0", {"cut_0": batch})).exits.tolist() == [3, 3, 2, 2]


def test_all_may_leave_before_the_end(tiny_tail, says):
    batch = np.stack([says({0: 0.9})] * 3)
    assert tiny_tail.infer(TailRequest("tiny", {"input": batch})).exits.tolist() == [0, 0, 0]


def test_final_forces_the_last_exit(tiny_tail, says):
    batch = np.stack([says({0: 0.99, 2: 0.99, 3: 0.6}), says({0: 0.5, 3: 0.7})])
    reply = tiny_tail.infer(TailRequest("tiny", {"input": batch}, final=True))
    assert reply.exits.tolist() == [3, 3]
    assert np.array_equal(reply.logits, batch[:, 6:8])


def test_temperatures_count(make_bundle, tmp_path, says):
    hot = Tail(Stages(make_bundle(tmp_path / "hot", temperatures=(10.0, None, 1.0, 1.0))))
    x = says({0: 0.9, 2: 0.9, 3: 0.9})[None]
    assert hot.infer(TailRequest("tiny", {"input": x})).exits.tolist() == [2]


def test_the_digest_is_checked_where_one_is_given(tiny_tail, tiny, says):
    x = {"input": says({3: 0.9})[None]}
    same = tiny_tail.infer(TailRequest("tiny", x, digest=tiny.digest))
    none = tiny_tail.infer(TailRequest("tiny", x))
    assert np.array_equal(same.logits, none.logits)
    with pytest.raises(DigestMismatchError) as caught:
        tiny_tail.infer(TailRequest("tiny", x, digest="f" * 64))
    assert tiny.digest[:12] in str(caught.value)
    assert "ffffffffffff" in str(caught.value)


@pytest.mark.parametrize(
    "model", ["other", "", "tiny-tail-3", "tiny-tail--1", "tiny-tail-0-uint3", "tiny-tail-0-float"]
)
def test_an_unknown_model_lists_what_is_here(tiny_tail, model):
    with pytest.raises(ServerRefusedError, match="tiny-tail-0-uint8"):
        tiny_tail.infer(TailRequest(model, {}))


GOOD = np.zeros((1, 8), np.float32)


@pytest.mark.parametrize(
    ("model", "tensors", "why"),
    [
        ("tiny", {}, "nothing"),
        ("tiny", {"cut_0": GOOD}, "takes input"),
        ("tiny", {"input": GOOD, "more": GOOD}, "more"),
        ("tiny-tail-0", {"input": GOOD}, "takes cut_0"),
        ("tiny", {"input": GOOD.astype(np.float64)}, "float64"),
        ("tiny", {"input": np.zeros((1, 7), np.float32)}, r"\(1, 7\)"),
        ("tiny", {"input": np.zeros(8, np.float32)}, r"\(8,\)"),
        ("tiny", {"input": np.zeros((), np.float32)}, r"\(\)"),
        ("tiny", {"input": GOOD * np.nan}, "NaN"),
        ("tiny", {"input": GOOD[:0]}, "at least one"),
        ("tiny-uint8", {"input_uint8": GOOD}, "expected uint8"),
        ("tiny-uint8", {"input": GOOD}, "takes input_uint8"),
    ],
)
def test_tensors_that_do_not_fit(tiny_tail, model, tensors, why):
    with pytest.raises(InputError, match=why):
        tiny_tail.infer(TailRequest(model, tensors))


def test_an_edge_copy_cannot_serve(tiny, tmp_path):
    copy = tiny.edge_copy(tmp_path / "copy", 3)
    with pytest.raises(ServerRefusedError, match="3 of 4 stages"):
        Tail(Stages(copy))


def test_an_edge_copy_of_everything_can(tiny, tmp_path, says):
    tail = Tail(Stages(tiny.edge_copy(tmp_path / "copy", 4)))
    assert tail.infer(TailRequest("tiny", {"input": says({3: 0.9})[None]}, digest=tiny.digest)).exits.tolist() == [
        3
    ]


def test_server_ms_is_measured_by_the_clock(tiny, says):
    ticks = iter([1.0, 1.25])
    tail = Tail(Stages(tiny), clock=lambda: next(ticks))
    assert tail.infer(TailRequest("tiny", {"input": says({3: 0.9})[None]})).server_ms == pytest.approx(250.0)
