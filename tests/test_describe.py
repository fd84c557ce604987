"""`miras zoo NAME`: what it says of each model runs as printed."""

import dataclasses
import pathlib
import re
import runpy
import shlex

import jax.numpy as jnp
import pytest

from miras_jax import cli, memory, zoo
from miras_jax.describe import describe, spell
from miras_jax.training.config import validate

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHOICES = ("architecture", "bias", "retention", "algorithm")


def code_of(text: str) -> str:
    """The Python that a description prints."""
    return re.search(r"example in Python\n\n(.*)\n\nexample of training", text, re.DOTALL)[1]


@pytest.mark.parametrize("name", zoo.names())
def test_examples_run_as_printed(name, capsys):
    assert cli.main(["zoo", name]) == 0
    text = capsys.readouterr().out
    # But for the sizes.
    if zoo.row(name).block == "memory":
        sizes, small, shape = "= 2, 100, 4, 32, 32 ", "= 1, 5, 2, 4, 4 ", "(1, 5, 2, 4)"
    else:
        sizes, small, shape = "= 2, 100, 64, 4, 257 ", "= 1, 6, 8, 2, 9 ", "(1, 3, 9)"
    code, count = re.subn(sizes, small, code_of(text))
    assert count == 1
    names = {"__name__": "snippet"}
    exec(compile(code, name, "exec"), names)
    assert capsys.readouterr().out == f"{shape}\n"
    assert jnp.all(jnp.isfinite(names["y"]))
    assert jnp.any(names["y"] != 0)


@pytest.mark.parametrize("name", zoo.names())
def test_says_all_that_the_row_holds(name):
    row, text = zoo.row(name), describe(name)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == f"{name}: {row.source}"
    assert all(line.strip() in lines for line in row.recurrence.splitlines())
    for choice in CHOICES:
        assert any(re.match(f"{choice} +{re.escape(getattr(row, choice))}", line) for line in lines)
    tables = text.split("gates that memorize needs")[1].split("defaults")[0]
    told = {line.split()[0] for line in tables.splitlines() if line.strip()}
    assert set(row.memory.gates) <= told
    assert {stream.name for stream in row.streams} <= told
    assert row.forms in lines
    for field in dataclasses.fields(row.memory):
        value = getattr(row.memory, field.name)
        if field.name in CHOICES:  # the Python that is printed makes the same
            code = spell(value)
            assert code in text
            assert eval(code, dict(vars(memory))) == value
        else:
            assert re.search(f"{field.name} +{value}", text)


def test_gates_and_streams_stand_with_shape_range_and_start():
    text = " ".join(describe("mesanet").split())
    assert "log_decay [B, T, H] (-inf, 0) -0.001 to -0.1 over the heads projection" in text
    assert "sliding" not in text
    assert "ridge [B, T, H, K] (0, inf) 0.75 learned" in text
    text = " ".join(describe("delta_product").split())
    assert "step_2 [B, T, H] (0, 2) 1 " in text
    assert "key_2 [B, T, H, K] unit norm random" in text


def test_attention_beside_the_memory_stands_with_its_options():
    for name, told in {
        "yaad_h": ("sliding_window_attention in turn", "window 2048", "persistent_tokens 0"),
        "titans_mag": ("model.window 2048", "model.persistent_tokens 16"),
        "titans_mac": ("model.segment 256", "model.persistent_tokens 16"),
    }.items():
        text = " ".join(describe(name).split())
        assert all(words in text for words in told), name
    assert "model.window" not in describe("titans_mac")
    assert "model.segment" not in describe("titans_mal")


def test_the_training_command_makes_a_valid_run():
    config = runpy.run_path(str(ROOT / "experiments/quickstart.py"))["config"]
    for name in zoo.names():
        command = shlex.split(describe(name).splitlines()[-1])
        assert command[:4] == "miras train experiments/quickstart.py --model.memory".split()
        assert command[4] == name
        model = dataclasses.replace(config.model, memory=name)
        validate(dataclasses.replace(config, model=model))
