"""A run on token sets: packed rows, a mixture, held-out texts by name, another vocabulary."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

from miras_jax import cli
from miras_jax.data import TokenSet, tokenize
from miras_jax.training import EvaluationConfig, UserError, train
from miras_jax.training.checkpoint import load_model, load_tokenizer
from miras_jax.training.corpus import read_corpus
from miras_jax.training.step import nats
from tests.training.toy import records, toy

tokenizers = pytest.importorskip("tokenizers")
TEXTS = [f"the memory number {i} learns " + "what it reads, " * (i % 9) for i in range(120)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four steps on two sets of a byte-level BPE, and its last record."""
    folder = tmp_path_factory.mktemp("token_sets")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=64, special_tokens=["<eos>"], show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.save(str(folder / "bpe.json"))
    for i, name in enumerate("abcd"):
        lines = [json.dumps({"text": text}) for text in TEXTS[i::4]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        tokenize(
            [str(folder / f"{name}.jsonl")],
            str(folder / name),
            tokenizer=str(folder / "bpe.json"),
            shard_bytes=1000,
            workers=1,
        )
    config = toy(folder, steps=4, evaluation=EvaluationConfig(every=4, sample_tokens=4))
    data = dataclasses.replace(
        config.data,
        source=(f"{folder}/a=2", f"{folder}/b"),
        validation=(f"one={folder}/c", f"two={folder}/d"),
    )
    config = dataclasses.replace(config, data=data)
    return config, train(config)


def test_figures_by_name_in_bits_per_byte_of_the_text(run):
    config, final = run
    folder = pathlib.Path(config.directory).parent
    nats_of, bytes_of = {}, {}
    for name, path in (("one", "c"), ("two", "d")):
        tokens = TokenSet.open(str(folder / path))
        nats_of[name] = final[f"eval/{name}/loss"] * (tokens.size - 1)
        bytes_of[name] = json.loads((folder / path / "manifest.json").read_text())["bytes"]
        bits = nats_of[name] / math.log(2) / bytes_of[name]
        assert final[f"eval/{name}/bits_per_byte"] == pytest.approx(bits, rel=1e-6)
        assert not any("order" in figure for figure in final)  # those are of bytes
    together = sum(nats_of.values()) / math.log(2) / sum(bytes_of.values())
    assert final["eval/bits_per_byte"] == pytest.approx(together, rel=1e-6)
    assert final["eval/one/loss"] != final["eval/two/loss"]


def test_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    config, _ = run
    copy = dataclasses.replace(config, directory=str(tmp_path / "copy"))
    shutil.copytree(config.directory, copy.directory)
    shutil.rmtree(pathlib.Path(copy.directory, "checkpoints/4"))
    train(copy)
    assert records(copy) == records(config)
    weights = [jax.tree.leaves(load_model(c.directory)[0]) for c in (copy, config)]
    for x, y in zip(*weights, strict=True):
        np.testing.assert_array_equal(x, y)


def test_other_weights_are_another_run(run):
    config, _ = run
    source = (config.data.source[0].replace("=2", "=3"), config.data.source[1])
    data = dataclasses.replace(config.data, source=source)
    with pytest.raises(UserError, match=r"corpus.* is '.*', but the run in"):
        train(dataclasses.replace(config, data=data, steps=5))
    model = dataclasses.replace(config.model, vocab_size=63)
    with pytest.raises(UserError, match="vocab_size 63 is less than the tokenizer's 64"):
        read_corpus(dataclasses.replace(config, model=model))
    data = dataclasses.replace(config.data, window=10**5)
    with pytest.raises(UserError, match=r"the training text of .* has \d+ tokens: too few"):
        read_corpus(dataclasses.replace(config, data=data))


def test_generates_in_its_own_vocabulary(run, capsys, tmp_path):
    config, _ = run
    model, metadata = load_model(config.directory)
    tokenizer = load_tokenizer(config.directory, metadata)
    assert tokenizer.vocab_size == 64
    assert tokenizer.decode(tokenizer.encode(TEXTS[5])) == TEXTS[5]
    arguments = ["generate", config.directory, "--prompt", "the memory", "--max-tokens", "3"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("the memory")
    copy = tmp_path / "copy"
    shutil.copytree(config.directory, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"copy has lost its tokenizer tokenizer.json"):
        load_tokenizer(copy, metadata)
    del model


def test_a_document_does_not_see_the_one_before(run):
    """The loss of packed documents is that of each alone."""
    model, _ = load_model(run[0].directory)
    random = np.random.default_rng(0)
    tokens = random.integers(1, 64, (8, 17), np.int32)
    tokens[:, 8] = 0  # a separator: of the second document as it is read
    ids = np.broadcast_to(np.arange(16) >= 8, (8, 16)).astype(np.int32)
    loss = jax.jit(nats)
    packed, _ = loss(model, {"tokens": tokens, "segment_ids": ids})
    pieces = [tokens[:, :9], tokens[:, 8:]]
    apart = sum(loss(model, {"tokens": piece})[0] for piece in pieces)
    np.testing.assert_allclose(packed, apart, rtol=1e-5)  # float32 sums of 128 losses
    whole, _ = loss(model, {"tokens": tokens})
    assert abs(whole - packed) > 1e-3
