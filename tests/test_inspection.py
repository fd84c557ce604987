"""`miras inspect`: the picture and the table of a tiny checkpoint."""

import importlib.util
import struct

import jax
import numpy as np
import pytest
from flax import nnx

from miras_jax import cli, inspection
from miras_jax.nn import LanguageModel, ModelConfig
from miras_jax.training import train
from miras_jax.training.checkpoint import load_model
from tests.training.toy import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step, and its text."""
    config = toy(tmp_path_factory.mktemp("inspect"), steps=1)
    train(config)
    return config


def test_draws_and_prints_what_the_model_does(run, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    text, out = run.data.source, str(picture)
    assert cli.main(["inspect", run.directory, "--text", text, "--out", out, "--tokens", "9"]) == 0
    header, row, last = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["memory", "loss", "before"]
    assert last == f"picture: {picture}"

    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 1000)

    model, _ = load_model(run.directory)
    with open(text, "rb") as file:
        tokens = np.frombuffer(file.read(9), np.uint8).astype(np.int32)
    said = jax.jit(lambda model, tokens: model.diagnose(tokens))(model, tokens[None])
    names = ("loss_before", "loss_after", "step_norm", "memory_norm")
    expected = [np.mean(getattr(said, name)) for name in names]
    expected += [np.max(said.memory_norm), np.mean(said.retention), np.mean(said.step)]
    assert row.split()[0] == "0"
    # Four figures are printed.
    np.testing.assert_allclose([float(cell) for cell in row.split()[1:]], expected, rtol=1e-3)


def test_names_the_package_where_matplotlib_is_missing(run, monkeypatch, capsys):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert cli.main(["inspect", run.directory, "--text", run.data.source]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "miras: error: miras inspect draws with matplotlib: pip install matplotlib\n"


def test_attention_has_nothing_to_inspect():
    config = ModelConfig(memory="transformer", dim=8, depth=1, heads=2)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    with pytest.raises(inspection.UserError, match="transformer keeps pairs and has no inner loop"):
        inspection.read(model, np.zeros(3, np.int32))


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, [1, 3, 5, 11]), (2, [1, 2, 4, 8]), (3, [2, 3, 19 / 3, 8])],
)
def test_smoothing_averages_what_there_is(width, expected):
    np.testing.assert_allclose(inspection.smooth(np.array([1.0, 3, 5, 11]), width), expected)
