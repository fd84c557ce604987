"""Multiple choice and last words: oracles score 1, guessing gives chance, batches do not matter."""

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from miras_jax.data import ByteTokenizer, load_vocabulary
from miras_jax.evals import EvaluationError, Subject, prepare
from miras_jax.evals.multiple_choice import (
    Item,
    encode_pair,
    evaluate,
    read_items,
    score_pairs,
)
from miras_jax.evals.result import standard_error
from miras_jax.nn import LanguageModel, ModelConfig
from tests.evals.oracles import Copy, Order0, Uniform

BYTES = ByteTokenizer()


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def choice(context, *choices, gold):
    return Item(tuple((context, text) for text in choices), gold)


def test_the_copy_oracle_scores_1():
    """It says what came 6 bytes before; contexts of all lengths above that."""
    words = "ready " * 5
    items = [
        choice(words[: 30 - k], words[30 - k :] + "rea", words[29 - k :] + "zzz", gold=0)
        for k in range(1, 6)
    ]
    found = evaluate(Copy(6), [*items, choice(words, "xx", "read", gold=1)], BYTES, batch_size=3)
    assert found.figures == {
        "acc": 1.0,
        "acc_norm": 1.0,
        "chance": 0.5,
        "gold_bits_per_byte": pytest.approx(0, abs=1e-6),
    }
    last = Item(((words, "ready read"),), None)
    assert evaluate(Copy(6), [last], BYTES, packed=True).figures == {
        "acc": 1.0,
        "perplexity": pytest.approx(1, abs=1e-6),
        "gold_bits_per_byte": pytest.approx(0, abs=1e-6),
    }
    wrong = Item(((words, "ready rear"),), None)  # one byte of it is
    assert evaluate(Copy(6), [last, wrong], BYTES).figures["acc"] == 0.5


def test_a_uniform_model_guesses():
    """Of choices of one length it takes the first; right ones are spread evenly here."""
    items = [choice("Which?", " one", " two", " six", " ten", gold=k % 4) for k in range(40)]
    found = evaluate(Uniform(), items, BYTES)
    assert found.figures["acc"] == found.figures["acc_norm"] == found.figures["chance"] == 0.25
    assert found.figures["gold_bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)
    # Of 40 draws, a quarter of them 1: sqrt(p (1 - p) / (n - 1)).
    assert found.errors["acc"] == pytest.approx(math.sqrt(0.25 * 0.75 / 39))
    assert found.counts == {"items": 40, "tokens": 640}
    last = evaluate(Uniform(), [Item((("a", "bc"),), None), Item((("a", "b"),), None)], BYTES)
    assert last.figures["perplexity"] == pytest.approx(257**1.5, rel=1e-5)
    assert last.errors["perplexity"] == pytest.approx(
        257**1.5 * standard_error([math.log(257), 2 * math.log(257)]), rel=1e-5
    )


def test_choices_are_normalized_by_their_bytes_without_the_leading_space():
    """Two bytes and their space cost 3 x 1 bit; one, of the rare kind, and its space 1 + 4."""
    ids = np.frombuffer(b" a" * 8 + b"z", np.uint8)
    model = Order0.of(ids)
    bits = {c: -math.log2(ids.tolist().count(ord(c)) / 17) for c in " az"}
    long, short = 2 * bits["a"] + bits[" "], bits["z"] + bits[" "]
    assert short > long  # in all, and also by the byte
    found = evaluate(model, [choice("a", " z", " aa", gold=1)], BYTES).figures
    assert (found["acc"], found["acc_norm"]) == (1, 1)
    assert found["gold_bits_per_byte"] == pytest.approx(long / 3, rel=1e-6)
    # Four bytes cost more than one in all, and less by the byte.
    found = evaluate(model, [choice("a", " z", " aaaaa", gold=1)], BYTES).figures
    assert (found["acc"], found["acc_norm"]) == (0, 1)


def test_among_contexts_the_same_continuation_is_scored():
    """The copy oracle finds the context after which the continuation is a repetition."""
    item = Item((("abcdef", "xbcde"), ("uvwxyz", "uvwxy")), 1, among_contexts=True)
    found = evaluate(Copy(6), [item], BYTES, packed=True).figures
    assert found["acc"] == 1
    assert "acc_norm" not in found


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(memory="gated_deltanet", dim=16, heads=2, depth=1, chunk_size=4)
    return jax.jit(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)))(jax.random.key(0))


@jax.jit
def logprobs(model, tokens):
    return jax.nn.log_softmax(model(tokens)[0][0])


@pytest.mark.parametrize("before", [[], [256]])
def test_batches_and_filling_do_not_change_scores(model, before):
    random = np.random.default_rng(0)
    pairs = [
        (random.integers(0, 256, n).tolist(), random.integers(0, 256, m).tolist())
        for n, m in ((0, 3), (5, 1), (40, 7), (3, 12), (20, 2))
    ]
    options = {"before": before, "separator": 256}
    expected = []
    for context, after in pairs:
        ids = [*([*before, *context] or [256]), *after]
        filled = np.pad(ids, (0, 64 - len(ids)))[None]
        logits = np.asarray(logprobs(model, filled))[len(ids) - 1 - len(after) :]
        expected.append(sum(logits[range(len(after)), after].astype(float)))
    for sizes in ({"batch_size": 1}, {"batch_size": 4, "piece": 16}):
        found = score_pairs(model, pairs, **options, **sizes)
        # float32, sums of up to 12 log probabilities of about -6.
        np.testing.assert_allclose([x.logprob for x in found], expected, atol=5e-5)
        assert [x.tokens for x in found] == [3, 1, 7, 12, 2]


def test_spaces_go_with_the_continuation(shared):
    tokenizer = load_vocabulary(str(shared / "data/tokenizers/gpt-neox-20b.json")).tokenizer
    before, after = encode_pair(tokenizer, "The memory ", "learns")
    assert [tokenizer.decode(x) for x in (before, after)] == ["The memory", " learns"]
    assert encode_pair(tokenizer, "The memory", " learns") == (before, after)
    assert encode_pair(tokenizer, "", "learns") == ([], tokenizer.encode("learns").tolist())


def test_the_shared_sets_are_read(shared):
    """Ten sets of 200 items each, of the three kinds."""
    folder = shared / "data" / "zeroshot"
    subject = Subject(load_vocabulary("bytes"), batch_size=4, piece=64)
    evaluators = {each.name: each for each in prepare([f"zeroshot:{folder},limit=2"], subject)}
    assert evaluators.keys() == {path.stem for path in folder.glob("*.jsonl")}
    items = {name: read_items(f"{folder}/{name}.jsonl") for name in evaluators}
    assert [len(x) for x in items.values()] == [200] * 10
    model = Uniform()  # one: each is compiled anew
    chances = {"siqa_val": 1 / 3, "winogrande_xl_val": 0.5}
    for name, chance in chances.items():
        found = evaluators[name].run(model).figures
        assert found["chance"] == pytest.approx(chance)
        assert ("acc_norm" in found) == (name == "siqa_val")
    found = evaluators["lambada_openai_test"].run(model).figures
    lengths = [len(item.pairs[0][1]) for item in items["lambada_openai_test"][:2]]
    assert found["acc"] == 0
    assert found["perplexity"] == pytest.approx(257 ** np.mean(lengths), rel=1e-4)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "no JSON object"),
        ({"context": "a", "choices": ["b"], "gold": 0}, "'choices' must be a list of two"),
        ({"context": "a", "choices": ["b", "c"], "gold": 2}, "from 0 to 1, got 2"),
        ({"context": "a", "choices": ["b", "c"]}, "from 0 to 1, got None"),
        ({"context": "a", "continuation": ""}, "a continuation is empty"),
        ({"choices": ["b", "c"], "gold": 0}, "'context' must be text"),
    ],
)
def test_bad_items_are_named_by_their_line(item, message, tmp_path):
    good = {"context": "a", "choices": ["b", "c"], "gold": 0}
    path = write(tmp_path / "items.jsonl", [good, item])
    with pytest.raises(EvaluationError, match=f"line 2: .*{message}"):
        read_items(path)


def test_other_bad_requests(tmp_path):
    subject = Subject(load_vocabulary("bytes"), taken=("web",))
    good = {"context": "a", "choices": ["b", "c"], "gold": 0}
    path = write(tmp_path / "items.jsonl", [good])
    for tasks, message in (
        (["zeroshot:none.jsonl"], "no file, folder"),
        ([f"zeroshot:{path}"] * 2, "'items' is taken"),
        ([f"zeroshot:{path},name=web"], "'web' is taken"),
        ([f"zeroshot:{path},name=a/b"], "cannot be called"),
        ([f"perplexity:{tmp_path}/*.jsonl,field=context"], r"cannot be called '\*'"),
        ([f"zeroshot:{path},limit=none"], "limit must be a whole number"),
        ([f"zeroshot:{path},fewshot=3"], "no option 'fewshot'"),
        ([f"zeroshot:{path},limit=1,limit=2"], "has the option 'limit' twice"),
        (["guess:a"], "with a KIND of perplexity"),
        (["zeroshot"], "KIND:TARGET"),
    ):
        with pytest.raises(EvaluationError, match=message):
            prepare(tasks, subject)
    mixed = write(tmp_path / "mixed.jsonl", [good, {"context": "a", "continuation": "b"}])
    with pytest.raises(EvaluationError, match="mixes items"):
        read_items(mixed)
