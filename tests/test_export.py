"""`miras export`: what is written is read back, bit for bit, and the decode step is the model's."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import cli, export, zoo
from miras_jax.data import load_vocabulary
from miras_jax.decode_program import Decode, DecodeProgram
from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.training import train
from miras_jax.training.errors import UserError
from tests.training.toy import toy

library = pytest.importorskip("safetensors.numpy")
pytest.importorskip("flatbuffers")

SMALL = {"dim": 16, "heads": 2, "depth": 2, "vocab_size": 32}
CASES = {
    "matrix": ModelConfig(memory="gated_deltanet", **SMALL, tie_embeddings=False),
    "deep": ModelConfig(memory="yaad", **SMALL, chunk_size=4),
    "hybrid": ModelConfig(memory="moneta_h", **SMALL, chunk_size=4, window=4),
    "memory as context": ModelConfig(memory="titans_mac", **SMALL, chunk_size=4, segment=4),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 6), dtype=np.int32)


@functools.cache
def make(config: ModelConfig) -> LanguageModel:
    return jax.jit(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)))(jax.random.key(0))


@jax.jit
def read(model, tokens, state=None):
    return model(tokens, state)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps."""
    config = toy(tmp_path_factory.mktemp("export"), steps=2)
    train(config)
    return config


@pytest.mark.parametrize("case", ["matrix", "deep", "hybrid"])
def test_loads_the_same_model(case, tmp_path):
    model = make(CASES[case])
    config = export.save(model, tmp_path / "full", step=7)
    loaded = export.load(tmp_path / "full")
    assert loaded.config == model.config
    expected = read(model, TOKENS)[0]
    np.testing.assert_array_equal(read(loaded, TOKENS)[0], expected)

    export.save(loaded, tmp_path / "half", dtype="bfloat16")
    half = export.load(tmp_path / "half")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), model)
    found = read(half, TOKENS)[0]
    np.testing.assert_array_equal(found, read(rounded, TOKENS)[0])
    assert not np.array_equal(found, expected)

    said = json.loads((tmp_path / "full/config.json").read_text())
    assert said == config
    assert said["model"] == dataclasses.asdict(model.config)
    assert said["parameter_count"] == sum(x.size for x in jax.tree.leaves(model))
    assert (said["step"], said["dtype"], said["format_version"]) == (7, "float32", 1)
    assert said["vocabulary"] == load_vocabulary("bytes").describe()


NAMES = """
blocks.memory.convolutions.key.kernel 2 4 16
blocks.memory.convolutions.query.kernel 2 4 16
blocks.memory.convolutions.value.kernel 2 4 16
blocks.memory.gates.dt.expand.bias 2 2
blocks.memory.gates.dt.expand.kernel 2 16 2
blocks.memory.gates.step.expand.bias 2 2
blocks.memory.gates.step.expand.kernel 2 16 2
blocks.memory.key.kernel 2 16 16
blocks.memory.learned.log_rate.logits 2 2
blocks.memory.output.kernel 2 16 16
blocks.memory.output_gate.kernel 2 16 16
blocks.memory.output_norm.scale 2 8
blocks.memory.query.kernel 2 16 16
blocks.memory.value.kernel 2 16 16
blocks.memory_norm.scale 2 16
blocks.swiglu.down.kernel 2 64 16
blocks.swiglu.gate_up.kernel 2 16 64
blocks.swiglu.up.kernel 2 16 64
blocks.swiglu_norm.scale 2 16
embedding 32 16
final_norm.scale 16
head.kernel 16 32
"""


def test_names_stay_within_a_format_version(tmp_path):
    """A change here is a new FORMAT_VERSION: folders that were written have these names."""
    model = make(CASES["matrix"])
    export.save(model, tmp_path / "out")
    found = library.load_file(tmp_path / "out/model.safetensors")
    lines = [" ".join([name, *map(str, x.shape)]) for name, x in sorted(found.items())]
    assert lines == NAMES.split("\n")[1:-1]
    np.testing.assert_array_equal(
        found["blocks.memory.query.kernel"], model.blocks.memory.query.kernel[...]
    )


def test_names_of_a_hybrid_say_the_part():
    names = export.tensors(make(CASES["hybrid"])).keys()
    assert {
        "blocks.memory.memory.start.layer_1",
        "blocks.memory.swiglu.down.kernel",
        "blocks.attention.memory.key.kernel",
        "blocks.attention.swiglu.down.kernel",
    } <= names


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, "float32") for case in CASES] + [("matrix", "bfloat16")],
)
def test_decode_step_is_the_model(case, dtype, tmp_path):
    folder = tmp_path / "out"
    config = export.save(make(CASES[case]), folder, dtype=dtype, decode=Decode(batch=2))
    model, program = export.load(folder), DecodeProgram(folder)
    signature = config["decode"]
    assert signature["files"] == {
        "cpu": {"start": "start.cpu.jax_export", "decode": "decode.cpu.jax_export"}
    }
    state, expected_state = program.start(), model.init_state(2)
    names = [x["name"] for x in signature["start"]["outputs"]]
    paths = jax.tree_util.tree_leaves_with_path(expected_state)
    assert names == [
        f"state.{jax.tree_util.keystr(p, simple=True, separator='.')}" for p, _ in paths
    ]
    for token in TOKENS.T:
        logits, state = program(token, state)
        expected, expected_state = read(model, token[:, None], expected_state)
        np.testing.assert_array_equal(logits, expected[:, 0])
        described = [(tuple(x["shape"]), x["dtype"]) for x in signature["decode"]["outputs"]]
        assert described == [(x.shape, x.dtype.name) for x in (logits, *state)]
    for x, y in zip(state, jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_array_equal(x, y)


def test_decode_step_lowers_for_every_platform(tmp_path):
    folder = tmp_path / "out"
    # Widths for which a TPU's kernels would be taken.
    config = ModelConfig(memory="gated_deltanet", dim=64, heads=1, depth=1, vocab_size=32)
    decode = Decode(platforms=("tpu", "cuda", "cpu"))
    signature = export.save(make(config), folder, decode=decode)["decode"]
    assert list(signature["files"]) == ["cpu", "cuda", "tpu"]
    for platform, files in signature["files"].items():
        for part, name in files.items():
            exported = jax.export.deserialize(bytearray((folder / name).read_bytes()))
            assert exported.platforms == (platform,)
            described = [(tuple(x["shape"]), x["dtype"]) for x in signature[part]["inputs"]]
            assert described == [(x.shape, x.dtype.name) for x in exported.in_avals]
            assert len(exported.module_kept_var_idx) == len(described)
            assert "custom_call" not in exported.mlir_module()


def test_growing_attention_asks_for_a_capacity(tmp_path):
    model = make(ModelConfig(memory="transformer", **SMALL))
    with pytest.raises(UserError, match="grows with every token: say how many it will read"):
        export.save(model, tmp_path / "out", decode=Decode())
    assert not (tmp_path / "out").exists()
    export.save(model, tmp_path / "out", decode=Decode(capacity=4))
    program = DecodeProgram(tmp_path / "out")
    state, expected_state = program.start(), model.init_state(1, capacity=4)
    for token in TOKENS[0, :4]:
        logits, state = program([token], state)
        expected, expected_state = read(model, token[None, None], expected_state)
        np.testing.assert_array_equal(logits, expected[:, 0])


def rewrite(change):
    def apply(folder):
        weights = library.load_file(folder / "model.safetensors")
        change(weights)
        library.save_file(dict(weights), folder / "model.safetensors")

    return apply


def say(**changes):
    def apply(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            rewrite(lambda w: [w.pop(x) for x in ("final_norm.scale", "embedding")]),
            r"has no tensor embedding; its model has one of \(32, 16\)",
        ),
        (
            rewrite(lambda w: w.update({"final_norm.scale": np.zeros(3, np.float32)})),
            r"tensor final_norm.scale is \(3,\), its model has it \(16,\)",
        ),
        (
            rewrite(lambda w: w.update({"blocks.more": np.zeros(3, np.float32)})),
            "has a tensor blocks.more, which its model does not have",
        ),
        (
            rewrite(lambda w: w.update(embedding=w["embedding"].astype(np.int32))),
            "tensor embedding is int32, not one of float32, bfloat16",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "is damaged: "),
        (lambda f: (f / "model.safetensors").unlink(), "has lost its model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "no exported model in .*: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (say(format="other"), "does not say format 'miras_jax'"),
        (say(format_version=2), "is of format 2, this version reads 1"),
        (say(model={"memory": "none"}), "There is no model 'none'"),
        (say(model={"depths": 3}), "unexpected keyword argument 'depths'"),
    ],
)
def test_says_what_is_wrong_with_a_folder(damage, message, tmp_path):
    export.save(make(CASES["matrix"]), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        export.load(tmp_path / "out")


def test_exports_a_run_and_generates_from_it(run, tmp_path, capsys):
    folder = str(tmp_path / "out")
    assert cli.main(["export", run.directory, "--out", folder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}: ")
    assert lines[0].endswith(" parameters in float32, of step 2")
    assert lines[1] == f"try it: miras generate {folder}"
    texts = []
    for source in (run.directory, folder):
        assert cli.main(["generate", source, "--prompt", "the", "--max-tokens", "8"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]

    # Again, from the folder: the step and the vocabulary go along.
    again = str(tmp_path / "again")
    options = ["--dtype", "bfloat16", "--stablehlo", "--batch", "3", "--platforms", "cpu"]
    assert cli.main(["export", folder, "--out", again, *options]) == 0
    assert "decode step for cpu, 3 row(s)" in capsys.readouterr().out
    said = export.read_config(again)
    assert (said["step"], said["dtype"], said["decode"]["batch"]) == (2, "bfloat16", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --out out", "there is no such folder"),
        ("{run} --out {run}", "holds something already"),
        ("{run} --out out --batch 2", "--batch is of the decode step: ask for it, --stablehlo"),
        ("{run} --out out --stablehlo --batch 0", "batch of the decode step must be at least 1"),
        (
            "{run} --out out --stablehlo --capacity 9",
            "has constant size: leave --capacity out",
        ),
    ],
)
def test_a_bad_request_gets_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments.format(run=run.directory).split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("miras: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_decode_step_of_another_platform(tmp_path):
    export.save(make(CASES["matrix"]), tmp_path / "out", decode=Decode(platforms=("tpu",)))
    with pytest.raises(UserError, match="has no decode step for cpu, it has tpu"):
        DecodeProgram(tmp_path / "out")
    with pytest.raises(UserError, match="platforms must be of cpu, cuda, tpu, got metal"):
        Decode(platforms=("metal",))


def test_keeps_the_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "words.json"))
    vocabulary = load_vocabulary(str(tmp_path / "words.json"))
    model = make(CASES["matrix"])
    export.save(model, tmp_path / "out", vocabulary=vocabulary, packed=True)
    said = export.read_config(tmp_path / "out")
    assert said["packed"]
    assert said["vocabulary"]["file"] == "tokenizer.json"
    assert export.load_tokenizer(tmp_path / "out", said).encode("b").tolist() == [1]
    (tmp_path / "out/tokenizer.json").unlink()
    with pytest.raises(UserError, match="has lost its tokenizer"):
        export.load_tokenizer(tmp_path / "out", said)


def test_a_registered_model_loads_where_it_is_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", {**zoo.ROWS, "mine": zoo.ROWS["gated_deltanet"]})
    export.save(make(ModelConfig(memory="mine", **SMALL)), tmp_path / "out")
    assert export.load(tmp_path / "out").config.memory == "mine"
    monkeypatch.undo()
    with pytest.raises(UserError, match="If an experiment registers it, run that file first"):
        export.load(tmp_path / "out")
