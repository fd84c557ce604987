"""Perplexity and bits per byte: models whose figures are known, and every token scored once."""

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from miras_jax.data import DataError, load_vocabulary, order0_entropy, tokenize
from miras_jax.evals import (
    Document,
    EvaluationError,
    Subject,
    of_texts,
    perplexity,
    prepare,
    read_documents,
    rolling_windows,
)
from miras_jax.evals.perplexity import bucket_edges
from miras_jax.evals.result import ratio_error
from miras_jax.nn import LanguageModel, ModelConfig
from tests.evals.oracles import Copy, Order0, Uniform

BYTES = load_vocabulary("bytes")
SEPARATOR = 256
TEXTS = ["One memory learns what it reads. ", "Äther, ", "and another one forgets it again."]


def documents(texts=TEXTS):
    return list(of_texts(texts, BYTES))


@given(total=st.integers(1, 120), window=st.integers(1, 50), data=st.data(), context=st.booleans())
@settings(max_examples=300, deadline=None)
def test_windows_score_every_token_once(total, window, data, context):
    stride = data.draw(st.integers(1, window))
    windows = list(rolling_windows(total, window, stride))
    scored = [token for _, first, stop in windows for token in range(first, stop)]
    assert scored == [*range(total)]
    for begin, first, stop in windows[1:]:
        assert stop - begin == window  # all of it is read
        assert first - begin >= window - stride  # the context, and the token before the first
    assert windows[0][0] == 0


@given(total=st.integers(1, 60), window=st.integers(1, 20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_the_harness(total, window, data):
    utils = pytest.importorskip("lm_eval.utils", reason="needs the extra eval")
    context = data.draw(st.integers(1, window))
    text = [*range(total)]
    expected = list(utils.get_rolling_token_windows(text, -1, window, context))
    windows = list(rolling_windows(total, window, window - context + 1))
    ids = [-1, *text]
    assert [(ids[b:e], text[f:e]) for b, f, e in windows] == expected


@pytest.mark.parametrize("window", [None, 16])
def test_a_uniform_model_needs_log2_of_the_vocabulary(window):
    found = perplexity(Uniform(), documents(), separator=SEPARATOR, window=window)
    bits = math.log2(257)
    size = sum(len(text.encode()) for text in TEXTS)
    words = [7, 2, 6]  # the space at the end of a text makes one more
    assert found.counts == {"documents": 3, "tokens": size, "bytes": size, "words": sum(words)}
    assert found.figures == {  # float32 log probabilities, summed in float64
        "loss": pytest.approx(bits * math.log(2), rel=1e-6),
        "perplexity": pytest.approx(257, rel=1e-5),
        "bits_per_byte": pytest.approx(bits, rel=1e-6),
        "word_perplexity": pytest.approx(2 ** (bits * size / sum(words)), rel=1e-4),
        "nats": pytest.approx(bits * size * math.log(2), rel=1e-6),
    }
    assert found.errors["bits_per_byte"] == pytest.approx(0, abs=1e-6)


def test_a_model_of_counts_needs_the_order_0_entropy():
    text = "".join(TEXTS)
    model = Order0.of(BYTES.tokenizer.encode(text))
    for window in (None, 10):
        found = perplexity(model, documents([text]), separator=SEPARATOR, window=window)
        assert found.figures["bits_per_byte"] == pytest.approx(order0_entropy(text), rel=1e-6)
        assert "bits_per_byte" not in found.errors  # of one document there is none


def test_a_copy_oracle_needs_nothing_after_the_first_period():
    """The memory is carried over pieces, and each document's first period is new to it."""
    period = 16
    documents = [
        Document(np.tile(np.arange(period) + k, 10)[:-1], 160, None) for k in (0, 40, 80, 120)
    ]
    found = perplexity(
        Copy(period),
        documents,
        separator=SEPARATOR,
        edges=[0, period, 32],
        batch_size=2,
        piece=32,
    )
    assert "word_perplexity" not in found.figures
    assert found.curves["start"] == [0, 16, 32]
    assert found.curves["loss"] == pytest.approx([math.log(257), 0, 0], abs=1e-5)
    assert found.curves["tokens"] == [4 * 16, 4 * 16, 4 * (159 - 32)]


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(memory="gated_deltanet", dim=16, heads=2, depth=1, chunk_size=4)
    return jax.jit(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)))(jax.random.key(0))


def test_rolling_equals_carried_where_the_context_is_whole(model):
    options = {"separator": SEPARATOR, "piece": 16, "batch_size": 4}
    carried = perplexity(model, documents(), **options).figures
    longest = max(len(d.ids) for d in documents())
    rolling = perplexity(model, documents(), window=longest, stride=1, **options)
    # float32, with chunks that lie elsewhere.
    assert rolling.figures["nats"] == pytest.approx(carried["nats"], rel=1e-6)


def test_tokens_of_rolling_windows_have_the_context_of_their_window(model):
    """Each token's probability after the last tokens alone, counted by hand."""
    [document] = documents(TEXTS[2:])
    ids, window, stride = [SEPARATOR, *document.ids], 8, 3
    # Tokens 1 to 8 have all before them; then every third ends a window of 8, and the last one.
    ends = [8, *range(11, len(ids), 3)]
    ends += [len(ids) - 1] if ends[-1] < len(ids) - 1 else []
    rows = np.array([ids[end - window : end + 1] for end in ends])
    logprobs = jax.nn.log_softmax(jax.jit(lambda model, ids: model(ids)[0])(model, rows[:, :-1]))
    chosen = np.take_along_axis(np.asarray(logprobs), rows[:, 1:, None], axis=-1)[..., 0]
    scored = np.diff([0, *ends])
    expected = -sum(row[-n:].astype(float).sum() for row, n in zip(chosen, scored, strict=True))
    found = perplexity(model, [document], separator=SEPARATOR, window=window, stride=stride)
    assert found.figures["nats"] == pytest.approx(expected, rel=1e-6)  # float32


def test_curves_add_up_and_measure_the_memory(model):
    given_ = documents()
    found = perplexity(model, given_, separator=SEPARATOR, edges=[0, 8, 16], norms=True, piece=8)
    curves = found.curves
    nats = np.dot(curves["loss"], curves["tokens"])
    assert nats == pytest.approx(found.figures["nats"], rel=1e-9)  # float64 sums
    sizes = nats / math.log(2) / found.counts["bytes"]
    assert sizes == pytest.approx(found.figures["bits_per_byte"], rel=1e-9)
    total = max(len(d.ids) for d in given_)
    ids = [np.pad([SEPARATOR, *d.ids], (0, total - len(d.ids))) for d in given_]
    measured = jax.jit(lambda model, ids: model.diagnose(ids).memory_norm)(model, np.stack(ids))
    norms = [x[: len(d.ids)] for x, d in zip(measured[0].mean(axis=-1), given_, strict=True)]
    expected = [np.concatenate([x[a:b] for x in norms]) for a, b in ((0, 8), (8, 16), (16, None))]
    means = [np.mean(bucket) for bucket in expected]
    np.testing.assert_allclose(curves["memory_norm"], [means], rtol=1e-5)  # float32
    assert means[0] < means[1]  # it fills


def test_buckets():
    assert bucket_edges(300) == [0, 64, 128, 256]
    assert bucket_edges(64) == [0]
    assert bucket_edges(10, 4) == [0, 4, 8]


def test_the_standard_error_is_that_of_resampled_documents():
    random = np.random.default_rng(0)
    sizes = random.uniform(50, 150, 100)
    bits = sizes * random.normal(2, 0.3, 100)
    draws = random.integers(0, 100, (4000, 100))
    bootstrap = np.std(bits[draws].sum(axis=1) / sizes[draws].sum(axis=1))
    # 4,000 resamples know it to about 1%; first order and n / (n - 1) add less.
    assert ratio_error(bits, sizes) == pytest.approx(bootstrap, rel=0.05)


def test_stretches_are_documents_of_their_own(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 3 + "rest")
    found = read_documents(str(path), BYTES, length=10)
    assert [bytes(d.ids.astype(np.uint8)) for d in found] == [b"abcdefghij"] * 3
    assert [d.bytes for d in found] == [10] * 3
    assert len(read_documents(str(path), BYTES, length=10, limit=2)) == 2
    path.write_text("abcdefghij")
    found = read_documents(str(path), BYTES, length=2, every=2)
    assert [bytes(d.ids.astype(np.uint8)) for d in found] == [b"ab", b"ef", b"ij"]
    found = read_documents(str(path), BYTES, length=2, every=3, limit=1)
    assert [bytes(d.ids.astype(np.uint8)) for d in found] == [b"ab"]


def test_token_sets_are_read_as_the_text_that_they_were(tmp_path):
    lines = [{"text": text} for text in TEXTS]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenize([str(source)], str(tmp_path / "set"), workers=1)
    of_set = read_documents(str(tmp_path / "set"), BYTES)
    for x, y, z in zip(of_set, documents(), read_documents(str(source), BYTES), strict=True):
        assert x.ids.tolist() == y.ids.tolist() == z.ids.tolist()
        assert (x.bytes, x.words) == (y.bytes, y.words) == (z.bytes, z.words)


def test_token_sets_of_another_vocabulary_are_refused(tmp_path, shared):
    source = tmp_path / "text.txt"
    source.write_text("".join(TEXTS))
    tokenize([str(source)], str(tmp_path / "set"), workers=1)
    other = load_vocabulary(str(shared / "data" / "tokenizers" / "gpt-neox-20b.json"))
    with pytest.raises(DataError, match="another vocabulary"):
        read_documents(str(tmp_path / "set"), other)
    # Tokens of several bytes: the bytes are the text's.
    [document] = read_documents(str(source), other)
    assert document.bytes == len("".join(TEXTS).encode()) > 2 * len(document.ids)


def test_wikitext_is_counted_as_others_count_it(shared):
    """62 articles, 241,335 words and 1,290,588 bytes, out of the raw file as out of its articles,
    and word perplexity and bits per byte over them, of a model whose log probability is known."""
    folder = shared / "data" / "wikitext"
    articles = folder / "test.documents.jsonl"
    found = read_documents(str(folder / "wiki.test.raw"), BYTES, format_="wikitext")
    again = read_documents(str(articles), BYTES, field="page")
    assert [d.ids.tobytes() for d in found] == [d.ids.tobytes() for d in again]
    text = b"".join(d.ids.astype(np.uint8).tobytes() for d in found).decode()
    model = Order0.of(np.concatenate([d.ids for d in found]))
    result = perplexity(model, found, separator=SEPARATOR, piece=1024)
    size, words = 1_290_588, 241_335
    assert result.counts == {"documents": 62, "tokens": size, "bytes": size, "words": words}
    entropy = order0_entropy(text)
    # float32 log probabilities of the same few values: their rounding does not average out.
    assert result.figures["bits_per_byte"] == pytest.approx(entropy, rel=1e-6)
    assert result.figures["bits_per_byte"] == pytest.approx(4.57, abs=0.005)
    nats = entropy * math.log(2) * size
    assert result.figures["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("mode=rolling,context=4,stride=2", "not both"),
        ("mode=rolling,window=8,context=9", "between 1 and the window 8, got 0"),
        ("mode=rolling,memory", "mode=carried"),
        ("format=pdf", "format 'pdf' is not one of"),
        ("length=100000", "holds no document of 100000 tokens"),
        ("mode=rolled", "mode must be carried or rolling, got 'rolled'"),
        ("windows=3", "perhaps you meant window"),
        ("window=0", "window must be a whole number of at least 1"),
    ],
)
def test_bad_requests_say_what_to_change(task, message, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    with pytest.raises(EvaluationError, match=message):
        prepare([f"perplexity:{path},{task}"], Subject(BYTES))
