"""lm-evaluation-harness on tasks in a folder, without a network: its figures are ours."""

import json
import math
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from miras_jax.data import DataError, load_vocabulary
from miras_jax.evals import EvaluationError, Subject, of_texts, perplexity, prepare
from miras_jax.evals.multiple_choice import Item, evaluate
from miras_jax.nn import LanguageModel, ModelConfig
from tests.evals.oracles import Uniform

BYTES = load_vocabulary("bytes")
NAMES = ("acc", "acc_norm")
QUESTIONS = [
    {"question": f"{a} and {b} make", "answers": [str(a + b), str(a * b + 7), "no"], "right": 0}
    for a in range(2, 6)
    for b in range(2, 5)
]
PAGES = ["A text of a few words.", "Another one,\nwhich has two lines and is longer."]


@pytest.fixture
def harness(monkeypatch, tmp_path):
    """The library, which may neither use the network nor touch the home folder."""
    if "lm_eval" not in sys.modules:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tasks: questions, pages, and texts to continue."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = {
        "sums": (
            QUESTIONS,
            """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: answers
doc_to_target: right
metric_list:
  - metric: acc
  - metric: acc_norm
""",
        ),
        "pages": (
            [{"page": page} for page in PAGES],
            """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
        ),
        "continued": (
            [{"text": "aaaa", "end": "aa"}, {"text": "abab", "end": "no"}],
            """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{end}}"
generation_kwargs: {until: ["b"], max_gen_toks: 2}
metric_list:
  - metric: exact_match
""",
        ),
    }
    for name, (items, yaml) in tasks.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs:\n  data_files:\n    test: {path}\n{yaml}"
        )
    return str(folder)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(memory="gated_deltanet", dim=16, heads=2, depth=1, chunk_size=4)
    return jax.jit(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)))(jax.random.key(0))


def run(task, model, folder, **options):
    [evaluator] = prepare([f"harness:{task}"], Subject(BYTES, include_path=folder, **options))
    return evaluator.run(model)


def test_multiple_choice_is_ours(harness, folder, model):
    items = [
        Item(tuple((x["question"], f" {answer}") for answer in x["answers"]), x["right"])
        for x in QUESTIONS
    ]
    for packed in (False, True):
        theirs = run("sums", model, folder, packed=packed)
        ours = evaluate(model, items, BYTES.tokenizer, packed=packed)
        assert {n: theirs.figures[n] for n in NAMES} == {n: ours.figures[n] for n in NAMES}
        for name in NAMES:
            assert theirs.errors[name] == pytest.approx(ours.errors[name])
        assert theirs.counts == {"items": 12}


@pytest.mark.parametrize("window", [None, 8])
def test_perplexity_is_ours(harness, folder, model, window):
    theirs = run("pages" if window is None else f"pages,window={window}", model, folder)
    ours = perplexity(model, list(of_texts(PAGES, BYTES)), separator=256, window=window).figures
    for name in ("word_perplexity", "bits_per_byte"):
        assert theirs.figures[name] == pytest.approx(ours[name], rel=1e-6)  # float32 sums


def test_generation_stops_where_it_is_told(harness, folder, monkeypatch):
    """After two tokens, or before a text that stops it."""
    from miras_jax.evals import harness as adapter

    def generate(model, prompt, *, steps, **_):
        assert steps >= 2
        yield from {ord("a"): b"aaaaaa", ord("b"): b"nob"}[int(prompt[-1])][:steps]

    monkeypatch.setattr(adapter, "generate", generate)
    assert run("continued", Uniform(), folder).figures["exact_match"] == 1


def test_generation_of_a_language_model(harness, model):
    from miras_jax.evals.harness import HarnessModel
    from miras_jax.nn import generate

    adapter = HarnessModel(model, BYTES.tokenizer)
    text = adapter._continue("The memory", {"until": [], "max_gen_toks": 5})
    prompt = BYTES.tokenizer.encode("The memory")
    ids = list(generate(model, prompt, steps=5, key=jax.random.key(1), temperature=0))
    assert text == BYTES.tokenizer.decode(ids)


def test_chance_and_limits(harness, folder):
    found = run("sums,limit=4", Uniform(), folder)
    assert found.counts == {"items": 4}
    assert found.figures["acc"] in np.arange(5) / 4
    pages = run("pages", Uniform(), folder).figures
    assert pages["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)


def test_unknown_tasks_are_refused(harness, folder):
    with pytest.raises(EvaluationError, match="there is no folder"):
        prepare(["harness:sums"], Subject(BYTES, include_path=f"{folder}/none"))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "miras_jax.evals.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(DataError, match=r"pip install 'miras_jax\[eval\]'"):
        prepare(["harness:sums"], Subject(BYTES))
