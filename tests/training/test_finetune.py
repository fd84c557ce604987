"""Runs that begin with a checkpoint: all of it, LoRA, patterns; what fits; before and after."""

import dataclasses
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from miras_jax.nn.lora import LoraConfig
from miras_jax.nn.names import tensors
from miras_jax.training import (
    MeshConfig,
    StartConfig,
    TrainableConfig,
    UserError,
    train,
)
from miras_jax.training.checkpoint import load_model
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.start import begin
from miras_jax.training.state import abstract_state, make_mesh, shardings_of
from miras_jax.training.step import train_step
from miras_jax.training.trainable import is_trained
from tests.training.toy import MODEL, cut_short, records, toy, write_text

LORA = TrainableConfig(lora=LoraConfig(rank=2))
GATES = TrainableConfig(patterns=("gates", r"final_norm\.scale"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of six steps, and its weights."""
    config = toy(tmp_path_factory.mktemp("base"))
    train(config)
    return config, weights(config)


def weights(config):
    return {name: np.asarray(x) for name, x in tensors(load_model(config.directory)[0]).items()}


def tuned(folder, base, **changes):
    """A run in `folder` that begins with the base, on text of its own."""
    (folder / "text.txt").write_text("what is new is learned and what is old is kept. " * 300)
    return toy(folder, start=StartConfig(checkpoint=base.directory), **changes)


def evaluations(config):
    return [record for record in records(config) if "eval/loss" in record]


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    """A finished run with LoRA on top of the base, and what its last evaluation said."""
    config = tuned(tmp_path_factory.mktemp("lora"), base[0], trainable=LORA)
    return config, train(config)


def test_lora_trains_its_matrices_alone(base, lora):
    (_, before), (config, _) = base, lora
    after = weights(config)
    assert {n for n in after if n not in before} == {n for n in after if ".lora." in n}
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    assert all(np.any(after[name]) for name in after if name.endswith("lora_b"))
    norms = {name for record in records(config) for name in record if "grad_norm/" in name}
    assert norms == {"train/grad_norm/lora"}


def test_says_before_and_after_of_new_and_old_data(base, lora, capsys):
    (first, _), (config, final) = base, lora
    found = evaluations(config)
    assert [record["step"] for record in found] == [0, 3, 6]
    # Before: the base, as its own last evaluation found it; B = 0 changes rounding at most.
    own = evaluations(first)[-1]
    for name in ("loss", "bits_per_byte"):
        assert found[0][f"eval/old_data/{name}"] == pytest.approx(own[f"eval/{name}"], rel=1e-6)
    assert final == found[-1]
    assert final["eval/loss"] < found[0]["eval/loss"]
    assert final["eval/old_data/loss"] != found[0]["eval/old_data/loss"]

    train(config)  # nothing to do
    said = capsys.readouterr().out
    new, old = (
        f"{found[0][name]:.3f} -> {final[name]:.3f} bits per byte"
        for name in ("eval/bits_per_byte", "eval/old_data/bits_per_byte")
    )
    assert f"new data: {new}" in said
    assert f"old data: {old}" in said


def test_goes_on_as_if_it_had_not_stopped(lora, tmp_path):
    """What was measured before the first step is there after a restart too."""
    config, _ = lora
    copy = cut_short(config, tmp_path / "copy")
    train(copy)
    assert records(copy) == records(config)
    for (name, x), y in zip(weights(copy).items(), weights(config).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def test_another_trainable_set_or_start_is_another_run(lora):
    config, _ = lora
    with pytest.raises(UserError, match=r"trainable\.lora\.rank is 3, but the run in"):
        train(dataclasses.replace(config, trainable=TrainableConfig(lora=LoraConfig(rank=3))))
    with pytest.raises(UserError, match=r"start\.checkpoint is 'x', but the run in"):
        train(dataclasses.replace(config, start=StartConfig(checkpoint="x")))


def test_patterns_train_what_they_name_on_another_mesh_dtype_and_chunk_size(base, tmp_path, capsys):
    first, before = base
    model = dataclasses.replace(MODEL, dtype="bfloat16", chunk_size=4, remat=False)
    data = dataclasses.replace(first.data, source=str(tmp_path / "text.txt"), window=32)
    mesh = MeshConfig(fsdp=2, tensor=2, devices=8)
    options = {"model": model, "data": data, "mesh": mesh, "trainable": GATES, "steps": 2}
    write_text(tmp_path / "text.txt")
    config = toy(tmp_path, start=StartConfig(checkpoint=first.directory), **options)
    train(config)
    after = weights(config)
    assert after.keys() == before.keys()
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {name for name in after if "gates" in name} | {"final_norm.scale"}
    # The same text; the window is twice as long and bfloat16 has three digits.
    found = evaluations(config)[0]["eval/loss"]
    assert found == pytest.approx(evaluations(first)[-1]["eval/loss"], rel=1e-2)
    assert "begins with 17 parameters of" in capsys.readouterr().out


def abstract(config):
    mesh = make_mesh(config.mesh)
    return mesh, abstract_state(config, mesh)


def start(config):
    """The first state, and what is said of it."""
    from miras_jax.training.corpus import read_corpus

    mesh, expected = abstract(config)
    with jax.set_mesh(mesh):
        state, said = begin(config, expected, read_corpus(config))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
    return state, said


def test_kept_optimizer(base, tmp_path):
    first, before = base
    kept = StartConfig(checkpoint=first.directory, optimizer="kept")
    state, _ = start(dataclasses.replace(tuned(tmp_path, first), start=kept))
    adam, schedule = state.opt[1][0], state.opt[1][2]
    assert (int(adam.count), int(schedule.count), int(state.step)) == (6, 0, 0)
    norms = [math.fsum(float(abs(x).sum()) for x in jax.tree.leaves(m)) for m in (adam.mu, adam.nu)]
    assert min(norms) > 0
    for (name, x), y in zip(tensors(state.params).items(), before.values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)

    fresh, _ = start(tuned(tmp_path, first))
    assert not any(np.any(x) for x in jax.tree.leaves(fresh.opt))
    match = r"kept needs the trainable parameters of .*, but .*lora_a is not there; ask for"
    with pytest.raises(UserError, match=match):
        start(dataclasses.replace(tuned(tmp_path, first, trainable=LORA), start=kept))
    match = r"kept needs .*, but opt\.1\.0\.mu\.blocks.*kernel is not here; ask for"
    with pytest.raises(UserError, match=match):
        start(dataclasses.replace(tuned(tmp_path, first, trainable=GATES), start=kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dim": 32},
            r"parameter blocks\.memory\.convolutions\.key\.kernel is \(1, 4, 32\) here and"
            r" \(1, 4, 16\) there, model\.dim is 32 here and 16 there",
        ),
        (
            {"tie_embeddings": False},
            r"parameter head\.kernel is \(16, 257\) here and not there, model\.tie_embeddings is",
        ),
        ({"rotary": True}, r"does not fit: model\.rotary is True here and None there"),
        (
            {"memory": "linear_attention"},
            r"parameter blocks.* there and not of the model here, model\.memory is 'linear_att",
        ),
    ],
)
def test_refuses_what_does_not_fit(base, tmp_path, changes, message):
    first, _ = base
    config = tuned(tmp_path, first, model=dataclasses.replace(MODEL, **changes))
    with pytest.raises(UserError, match=message):
        start(config)


def test_takes_what_fits_if_asked(base, tmp_path):
    first, before = base
    wider = dataclasses.replace(MODEL, ff_dim=32, tie_embeddings=False)
    partial = StartConfig(checkpoint=first.directory, partial=True)
    config = dataclasses.replace(tuned(tmp_path, first, model=wider), start=partial)
    state, said = start(config)
    swiglu = "blocks.swiglu.down.kernel, blocks.swiglu.gate_up.kernel, blocks.swiglu.up.kernel"
    assert said == (
        f"begins with 14 parameters of {first.directory}; new 4: {swiglu}, head.kernel;"
        f" left 3: {swiglu}"
    )
    for name, x in tensors(state.params).items():
        if "swiglu." in name or "head" in name:
            assert np.any(x), name
        else:
            np.testing.assert_array_equal(x, before[name], err_msg=name)
    nothing = dataclasses.replace(MODEL, dim=32, vocab_size=300)
    with pytest.raises(UserError, match=r"nothing of start\.checkpoint"):
        start(dataclasses.replace(config, model=dataclasses.replace(nothing, depth=2)))


def test_a_run_with_lora_is_merged_where_the_next_has_another(base, lora, tmp_path):
    config, _ = lora
    before = weights(config)
    state, said = start(tuned(tmp_path, config))
    found = tensors(state.params)
    assert found.keys() == base[1].keys()
    assert said == f"begins with 17 parameters of {config.directory}"
    a, b = (before[f"blocks.swiglu.up.lora.lora_{x}"] for x in "ab")
    expected = before["blocks.swiglu.up.kernel"] + 2 * a @ b  # alpha is twice the rank
    np.testing.assert_allclose(found["blocks.swiglu.up.kernel"], expected, atol=1e-6)
    state, said = start(tuned(tmp_path, config, trainable=LORA))  # goes on with the matrices
    assert said == f"begins with 31 parameters of {config.directory}"
    np.testing.assert_array_equal(tensors(state.params)["blocks.swiglu.up.lora.lora_b"], b)


def test_kept_matrices_keep_their_factor(lora, tmp_path):
    """The same shapes with another alpha would be another model."""
    config, _ = lora
    other = TrainableConfig(lora=LoraConfig(rank=2, alpha=1.0))
    kept = StartConfig(checkpoint=config.directory, optimizer="kept")
    with pytest.raises(UserError, match=r"kept needs the LoRA of .*alpha=None.*alpha=1\.0"):
        start(dataclasses.replace(tuned(tmp_path, config, trainable=other), start=kept))


def test_old_data_that_is_gone_is_said(base, tmp_path, capsys):
    first, _ = base
    moved = shutil.copytree(first.directory, tmp_path / "moved")
    config = tuned(tmp_path, dataclasses.replace(first, directory=str(moved)), steps=1)
    text = pathlib.Path(first.data.source)
    kept = text.read_text()
    try:
        text.write_text(kept + "more")
        train(config)
        assert "has changed since" in capsys.readouterr().out
        text.unlink()
        train(config)
        assert f"old data: not measured, {first.data.source!r}: " in capsys.readouterr().out
    finally:
        text.write_text(kept)
    assert not any("old_data" in name for record in evaluations(config) for name in record)


def size(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_frozen_parameters_cost_no_moments_and_no_gradient(tmp_path):
    """What is counted: bytes of the optimizer's state, and what a compiled step takes."""
    model = dataclasses.replace(MODEL, dim=128)
    taken = {}
    for name, trainable in (("all", TrainableConfig()), ("lora", LORA), ("gates", GATES)):
        config = toy(tmp_path, model=model, trainable=trainable)
        mesh, expected = abstract(config)
        trained = {n: x for n, x in tensors(expected.params).items() if is_trained(n, trainable)}
        assert size(expected.opt) == 2 * size(trained) + 2 * 4  # two counts
        if trainable == GATES:
            continue
        batch = jax.ShapeDtypeStruct(
            (2, 9), np.int32, sharding=NamedSharding(mesh, jax.P(("data", "fsdp")))
        )
        step = jax.jit(
            lambda state, batch, config=config, expected=expected: train_step(
                state,
                batch,
                optimizer=make_optimizer(config),
                schedule=learning_rate(config),
                shardings=shardings_of(expected).params,
                trainable=config.trainable,
            ),
            donate_argnums=0,
        )
        with jax.set_mesh(mesh):
            compiled = step.lower(expected, {"tokens": batch}).compile()
        taken[name] = compiled.memory_analysis().temp_size_in_bytes
        taken[f"{name} trained"] = size(trained)
    # A full step holds one gradient more, beside the same activations; those of the matrices
    # themselves are 4 % of it here.
    gradient = taken["all trained"] - taken["lora trained"]
    assert taken["all"] - taken["lora"] >= 0.9 * gradient, taken


def test_patterns_that_name_nothing_are_refused(base, tmp_path):
    for trainable, match in (
        (TrainableConfig(patterns=("gates", "gaits")), r"trainable.patterns 'gaits' matches no"),
        (
            TrainableConfig(lora=LoraConfig(2, targets=("x{3}",))),
            r"trainable.lora.targets 'x\{3\}'",
        ),
        (TrainableConfig(patterns=("(",)), r"trainable.patterns '\(' is no pattern"),
    ):
        with pytest.raises(UserError, match=match):
            train(tuned(tmp_path, base[0], trainable=trainable))
    with pytest.raises(UserError, match=r"need a start\.checkpoint"):
        train(toy(tmp_path, start=StartConfig(partial=True)))
