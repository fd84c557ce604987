"""`miras finetune`: defaults, data in the model's vocabulary, prompts with completions, export."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from miras_jax import adapter, cli, export, finetune
from miras_jax.data import TokenSet, load_text
from miras_jax.nn.lora import LoraConfig, merge_lora
from miras_jax.nn.names import tensors
from miras_jax.training import TrainableConfig, UserError, train
from miras_jax.training.checkpoint import load_model
from miras_jax.training.metrics import read_records
from miras_jax.training.source import open_source
from tests.training.toy import toy

EXAMPLES = [(f"say {i} and stop: ", f"{i}.") for i in range(120)]
SHORT = ["--data.window", "24", "--data.batch-size", "8", "--evaluation.sample-tokens", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run, `run`, and examples."""
    folder = tmp_path_factory.mktemp("finetune_cli")
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in EXAMPLES]
    (folder / "say.jsonl").write_text("\n".join(lines))
    train(toy(folder))
    return folder


@pytest.fixture(scope="module")
def tuned(folder):
    """A run with LoRA on the examples, from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--data", "say.jsonl", "--trainable.lora.rank", "2", "--steps", "6"]
        assert cli.main(["finetune", "run", *words, *SHORT]) == 0
    return folder / "run-finetuned"


@jax.jit
def log_probabilities(model, tokens):
    return jax.nn.log_softmax(model(tokens)[0])


def test_loss_is_of_completions_and_their_end(tuned):
    """The figures before the first step against the base, example by example."""
    base, _ = load_model(tuned.parent / "run")
    text = load_text(str(tuned / "tokens/0-say"))
    count = text.validation[""].examples().shape[1]
    nats = tokens = size = 0
    for prompt, completion in EXAMPLES[-count:]:
        ids = np.array([256, *prompt.encode(), *completion.encode(), 256])
        found = np.asarray(log_probabilities(base, np.pad(ids, (0, 32 - len(ids)))[None]))[0]
        for place in range(1 + len(prompt), len(ids)):
            nats -= found[place - 1, ids[place]]
            tokens += 1
        size += len(completion)
    before = read_records(tuned / "metrics.jsonl")[0]
    assert before["step"] == 0
    assert before["eval/loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert before["eval/bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)
    assert not any("order" in name for name in before)


def test_same_command_goes_on(tuned, monkeypatch, capsys):
    monkeypatch.chdir(tuned.parent)
    words = ["--data", "say.jsonl", "--trainable.lora.rank=2", "--steps", "8", *SHORT]
    copy = shutil.copytree(tuned, tuned.parent / "copy")
    assert cli.main(["finetune", "run", *words, "--directory", copy.name]) == 0
    said = capsys.readouterr().out
    assert "continuing after step 6" in said
    assert "nats per completion token" in said
    assert "train on:" in said
    assert "finetune run --data say.jsonl" in said
    steps = [record["step"] for record in read_records(copy / "metrics.jsonl")]
    assert steps[0] == 0
    assert steps[-1] == 8


def test_defaults(folder, monkeypatch):
    """Rates from the checkpoint's, steps from the data, the rest from the steps."""
    monkeypatch.chdir(folder)
    configs = []
    monkeypatch.setattr("miras_jax.training.train", lambda config, **_: configs.append(config))
    for words in ([], ["--trainable.lora.rank", "2"], ["--optimizer.learning-rate", "0.5"]):
        assert cli.main(["finetune", "run", "--data", "say.jsonl", *SHORT, *words]) == 0
    full, lora, _ = configs
    rates = [config.optimizer.learning_rate for config in configs]
    assert rates == pytest.approx([2e-4, 2e-3, 0.5])  # the base had 2e-3
    training = load_text(full.data.source).parts[0][0].examples().shape[1]
    # An example takes 19 to 22 of 24 tokens, a row of its own; three times, 8 at once.
    assert full.steps == -(-3 * training // 8)
    assert (full.optimizer.warmup_steps, full.evaluation.every) == (3, full.steps // 5)
    assert full.model == open_config(folder / "run").model
    assert full.start.checkpoint == "run"
    assert full.directory == lora.directory == "run-finetuned"
    path = str(folder / "run/checkpoints/6")
    assert finetune.defaults(path, open_source(path)).directory == str(folder / "run-finetuned")


def open_config(run: pathlib.Path):
    return finetune.defaults(str(run), open_source(str(run)))


def test_text_and_weights_and_other_names_of_fields(folder, tmp_path):
    lines = [json.dumps({"q": p, "a": c}) for p, c in EXAMPLES]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    (tmp_path / "notes.txt").write_text("plain text " * 50)
    config = dataclasses.replace(
        open_config(folder / "run"),
        directory=str(tmp_path / "out"),
        prompt_field="q",
        completion_field="a",
    )
    source = (f"{tmp_path}/qa.jsonl=2", f"{tmp_path}/notes.txt")
    data = dataclasses.replace(config.data, source=source, validation=f"v={tmp_path}/notes.txt")
    found = finetune.tokenized(
        dataclasses.replace(config, data=data), open_source(str(folder / "run"))
    )
    sets = [f"{tmp_path}/out/tokens/0-qa", f"{tmp_path}/out/tokens/1-notes"]
    assert found.source == (f"{sets[0]}=2", sets[1])
    assert found.validation == f"v={sets[1]}"
    assert [TokenSet.open(path).completions for path in sets] == [True, False]


def test_tokenizes_in_the_vocabulary_of_the_checkpoint(folder, tmp_path):
    library = pytest.importorskip("tokenizers")
    bpe = library.Tokenizer(library.models.BPE())
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    special = ["<eos>", "<end>"]
    trainer = library.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([p + c for p, c in EXAMPLES], trainer)
    (tmp_path / "run").mkdir()
    bpe.save(str(tmp_path / "run/tokenizer.json"))
    content = (tmp_path / "run/tokenizer.json").read_bytes()
    described = finetune_vocabulary(content, "<end>")
    source = open_source(str(folder / "run"))
    source = dataclasses.replace(
        source,
        folder=tmp_path / "run/checkpoints/6",
        metadata={**source.metadata, "vocabulary": described},
    )
    config = dataclasses.replace(open_config(folder / "run"), directory=str(tmp_path / "out"))
    data = dataclasses.replace(config.data, source=str(folder / "say.jsonl"))
    found = finetune.tokenized(dataclasses.replace(config, data=data), source)
    tokens = TokenSet.open(found.source)
    assert tokens.manifest["tokenizer"] == described
    place, length, prompt, _ = tokens.examples()[:, 7]
    ids = tokens[place : place + length]
    assert (ids[0], bpe.decode(ids[1 : 1 + prompt].tolist())) == (1, EXAMPLES[7][0])
    assert bpe.decode(ids[1 + prompt :].tolist()) == EXAMPLES[7][1]


def finetune_vocabulary(content: bytes, separator: str):
    from miras_jax.data.vocabulary import HuggingFaceTokenizer, Vocabulary

    return Vocabulary(HuggingFaceTokenizer(content, separator), "huggingface", content).describe()


def test_text_of_another_vocabulary_is_refused(folder, tmp_path):
    source = open_source(str(folder / "run"))
    config = open_config(folder / "run")
    corpus = load_text(str(folder / "text.txt"))
    other = dataclasses.replace(corpus, vocabulary={**corpus.vocabulary, "vocab_size": 99})
    from miras_jax.training.start import check_vocabulary

    check_vocabulary(config, source, corpus)
    with pytest.raises(UserError, match="its vocab_size is 99, there it is 257; tokenize it"):
        check_vocabulary(config, source, other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "--data must name what to train on"),
        (["gone", "--data", "say.jsonl"], "no checkpoint at"),
        (["run", "--data", "gone.jsonl"], "gone.jsonl is no file or folder"),
        (["run", "--data", "say.jsonl", "--data.window", "9"], "no prompt of the training text of"),
        (["run", "--data", "say.jsonl", "--start.checkpont", "x"], "perhaps you meant --start.ch"),
        (
            ["run", "--data", "say.jsonl", "--trainable.lora.rank", "-1"],
            "must not be negative",
        ),
    ],
)
def test_says_what_is_wrong(folder, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(folder)
    assert cli.main(["finetune", *words, "--directory", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


TOKENS = np.random.default_rng(0).integers(0, 257, (2, 12))


@jax.jit
def read(model):
    return model(TOKENS)[0]


def test_export_merged_and_separate(tuned, tmp_path, monkeypatch, capsys):
    """Merged logits are those of the run; what is apart gives them again on its base."""
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tuned.parent)
    model, _ = load_model(tuned)
    expected = read(model)
    for kind in ("merged", "separate"):
        words = ["export", "run-finetuned", "--lora", kind, "--out", str(tmp_path / kind)]
        assert cli.main(words) == 0
    assert f"on top of {tuned.parent / 'run'}" in capsys.readouterr().out

    merged, said = export.load_model(tmp_path / "merged")
    assert said["step"] == 6
    base = load_model(tuned.parent / "run")[0]
    assert tensors(merged).keys() == tensors(base).keys()
    # Float32, a product in another order.
    np.testing.assert_allclose(read(merged), expected, atol=1e-5)
    assert np.abs(read(base) - expected).max() > 1e-3

    apart, said = export.load_model(tmp_path / "separate")
    np.testing.assert_array_equal(read(apart), expected)
    trained = {n: x for n, x in tensors(model).items() if ".lora." in n}
    assert said["parameter_count"] == sum(x.size for x in trained.values())
    assert cli.main(["generate", str(tmp_path / "separate"), "--max-tokens", "2"]) == 0

    out = str(tmp_path / "again")
    words = ["export", str(tmp_path / "separate"), "--base", str(tuned.parent / "run")]
    assert cli.main([*words, "--out", out]) == 0
    for x, y in zip(*map(jax.tree.leaves, (export.load(out), merge_lora(model))), strict=True):
        np.testing.assert_array_equal(x, y)

    with pytest.raises(UserError, match=r"is not the base of .*: its weights are not those"):
        adapter.load(tmp_path / "separate", str(tmp_path / "merged"))
    with pytest.raises(UserError, match="is LoRA alone and needs its base: no checkpoint at"):
        adapter.load(tmp_path / "separate", "gone")
    capsys.readouterr()
    for words in (["run", "--lora", "separate"], ["run-finetuned", "--base", "run"]):
        assert cli.main(["export", *words, "--out", str(tmp_path / "no")]) == 2
    assert "this model has none" in capsys.readouterr().err


def test_what_patterns_trained_is_exported_apart_too(folder, tmp_path):
    pytest.importorskip("safetensors")
    config = open_config(folder / "run").run()
    trainable = TrainableConfig(patterns=("norm",), lora=LoraConfig(rank=1, targets=("query",)))
    data = dataclasses.replace(config.data, source=str(folder / "text.txt"))
    config = dataclasses.replace(
        config,
        data=data,
        trainable=trainable,
        steps=1,
        directory=str(tmp_path / "run"),
        evaluation=dataclasses.replace(config.evaluation, batches=1, sample_tokens=0),
    )
    train(config)
    model, metadata = export.load_model(config.directory)
    vocabulary = export.load_vocabulary_of(config.directory, metadata)
    adapter.save(model, tmp_path / "apart", metadata, vocabulary=vocabulary)
    for (name, x), y in zip(
        tensors(model).items(), jax.tree.leaves(adapter.load(tmp_path / "apart")), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_leaves_the_devices_alone_until_the_mesh_is_known(folder):
    """Else --mesh.devices could not emulate any, and no process could join others."""
    code = (
        "import jax, miras_jax.finetune as f; from miras_jax.training.source import open_source;"
        " f.defaults('run', open_source('run'));"
        " jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())"
    )
    plain = {
        **os.environ,
        "XLA_FLAGS": "",
        "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=plain, capture_output=True, text=True
    )
    assert done.stdout == "3\n", done.stderr
