"""Log probabilities of a sequence are those of the model alone with it, however it is batched."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from miras_jax.evals import EvaluationError, score
from miras_jax.evals.device import grows
from miras_jax.evals.scoring import plan
from miras_jax.nn import LanguageModel, ModelConfig
from tests.evals.oracles import Copy, Order0, Uniform

SMALL = {"dim": 16, "heads": 2, "depth": 1, "vocab_size": 40}
CASES = {
    "matrix": ModelConfig(memory="gated_deltanet", **SMALL, chunk_size=4),
    "attention": ModelConfig(memory="transformer", **SMALL),
    "deep hybrid": ModelConfig(memory="yaad_h", window=5, **SMALL | {"depth": 2}, chunk_size=4),
    "memory as context": ModelConfig(memory="titans_mac", **SMALL, chunk_size=4, segment=6),
}
LENGTHS = (2, 70, 9, 33, 1, 50, 17, 40)


@functools.cache
def make(case: str) -> LanguageModel:
    config = CASES[case]
    return jax.jit(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)))(jax.random.key(0))


def sequences(lengths=LENGTHS, vocab_size=40):
    random = np.random.default_rng(0)
    return [random.integers(0, vocab_size, n).astype(np.uint16) for n in lengths]


def in_order(found):
    return sorted(found, key=lambda scores: scores.index)


def fill(given_):
    """Rows of one length, with zeros behind their ends."""
    return np.stack([np.pad(ids, (0, max(LENGTHS) - len(ids))) for ids in given_]).astype(np.int32)


@jax.jit
def logprobs(model, tokens):
    return jax.nn.log_softmax(model(tokens)[0])


@jax.jit
def diagnose(model, tokens):
    return model.diagnose(tokens)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_model_alone(case):
    """Also of sequences that share a lane, and of those cut into pieces off the grid."""
    model, given_ = make(case), sequences()
    found = in_order(score(model, given_, batch_size=3, piece=10))
    assert [x.index for x in found] == [*range(len(given_))]
    alone = np.asarray(logprobs(model, fill(given_)))
    for x, ids, expected in zip(found, given_, alone, strict=True):
        expected = expected[: len(ids) - 1]
        chosen = expected[np.arange(len(ids) - 1), ids[1:]]
        # float32, summed in another order; nats of about 4.
        np.testing.assert_allclose(x.logprobs, chosen, atol=2e-5)
        assert np.array_equal(x.greedy, expected.argmax(axis=-1) == ids[1:])


def test_lanes_that_have_ended_are_left_out():
    """Of four lanes of 5, 7, 7 and 4 pieces the two in the middle go on alone."""
    seen = []

    class Watched(Copy):
        def __call__(self, tokens, state=None, segment_ids=None):
            seen.append(tokens.shape)
            return super().__call__(tokens, state, segment_ids)

    rows = sequences((8,) * 6)
    given_ = [np.tile(x, n) for n, x in zip((5, 4, 4, 4, 3, 3), rows, strict=True)]
    found = in_order(score(Watched(8), given_, batch_size=4, piece=8))
    assert seen == [(4, 8), (2, 8)]  # each compiled once
    for x, ids in zip(found, given_, strict=True):
        assert -x.logprobs.sum() == pytest.approx(8 * np.log(257), rel=1e-5)
        assert len(x.logprobs) == len(ids) - 1


def test_memories_are_measured_where_the_model_says_so():
    model, given_ = make("deep hybrid"), sequences((40, 12, 30))
    found = in_order(score(model, given_, batch_size=2, piece=8, norms=True))
    expected = diagnose(model, fill(given_)).memory_norm.mean(axis=-1)
    for row, x in enumerate(found):
        length = len(given_[row]) - 1
        np.testing.assert_allclose(x.norms, expected[:, row, :length], rtol=1e-5)  # float32


def test_only_attention_grows():
    assert {case: grows(make(case)) for case in CASES} == {
        case: case == "attention" for case in CASES
    }


@pytest.mark.parametrize("piece", [4, 16])
def test_a_lane_forgets_the_document_before(piece):
    """The copy oracle is right after its first period, and knows nothing before."""
    period, rows = 8, sequences((8, 8, 8, 8, 8))
    given_ = [np.tile(x, n)[: 8 * n - n] for n, x in zip((5, 3, 4, 2, 6), rows, strict=True)]
    for x in score(Copy(period), given_, batch_size=2, piece=piece):
        expected = np.zeros(len(x.logprobs))
        expected[:period] = -np.log(257)
        np.testing.assert_allclose(x.logprobs, expected, atol=1e-6)
        assert x.greedy[period:].all()


@given(
    lengths=st.lists(st.integers(0, 60), max_size=30),
    rows=st.integers(1, 7),
    piece=st.integers(1, 40),
    packs=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_sequence_is_read_once_from_a_piece_of_its_own(lengths, rows, piece, packs):
    rounds = plan(lengths, rows, piece, packs=packs)
    read = sorted(i for each in rounds for lane in each.lanes for i in lane)
    assert read == [i for i, n in enumerate(lengths) if n]
    for each in rounds:
        loads = [sum(-(-lengths[i] // each.size) for i in lane) for lane in each.lanes]
        assert max(loads) == each.pieces
        assert min(loads) > 0
        assert len(loads) <= rows
        assert each.size <= piece
        assert packs or all(len(lane) == 1 for lane in each.lanes)


def test_lanes_are_filled_evenly():
    """Documents of uneven lengths cost hardly more than their sum."""
    lengths = np.random.default_rng(0).integers(100, 3000, 60).tolist()
    [packed] = plan(lengths, 8, 50, packs=True)
    assert packed.pieces * 50 * 8 < 1.05 * sum(lengths)


def test_models_need_not_be_pytrees():
    ids = np.array([3, 1, 2, 1])
    [plain] = score(Uniform(4), [ids])
    [tree] = score(Order0.of(np.array([0, 1, 2, 3]), 4), [ids])
    np.testing.assert_allclose(plain.logprobs, -np.log([4.0] * 3), rtol=1e-6)
    np.testing.assert_allclose(tree.logprobs, plain.logprobs, rtol=1e-6)


def test_bad_requests():
    with pytest.raises(EvaluationError, match="token 40 is outside the model's vocabulary of 40"):
        list(score(make("matrix"), [np.array([1, 40])]))
    with pytest.raises(EvaluationError, match="no inner loop"):
        list(score(make("attention"), [np.array([1, 2])], norms=True))
    with pytest.raises(EvaluationError, match="piece=0"):
        list(score(Uniform(), [np.array([1, 2])], piece=0))
