"""Runs on synthetic tasks through the same loop: masked losses, figures, restarts, errors."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from miras_jax import cli, report_plots, report_runs, tasks
from miras_jax.data import train_iterator
from miras_jax.evals.recall import evaluate_task
from miras_jax.nn import LanguageModel, ModelConfig, generate
from miras_jax.training import (
    DataConfig,
    EvaluationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    UserError,
    train,
)
from miras_jax.training.checkpoint import load_model
from miras_jax.training.corpus import read_corpus
from miras_jax.training.step import nats
from miras_jax.training.task_runs import TaskRows
from tests.training.toy import MODEL, cut_short, records, toy

MQAR = "task:mqar,pairs=4,vocab_size=32,test_lengths=32+64"
SMALL = dataclasses.replace(MODEL, vocab_size=32)


def on_task(folder, source=MQAR, window=32, model=SMALL, **changes):
    data = DataConfig(source=source, window=window, batch_size=8)
    return toy(folder, data=data, model=model, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = on_task(tmp_path_factory.mktemp("task"))
    return config, train(config)


def test_a_run_measures_itself_on_the_test_examples(run):
    config, final = run
    names = {"step", "eval/loss", "eval/accuracy"}
    assert final.keys() == names | {"eval/accuracy/length_32", "eval/accuracy/length_64"}
    assert [r["step"] for r in records(config) if "eval/loss" in r] == [3, 6]
    drawn = report_plots.panels(report_runs.read_runs([config.directory]))["accuracy"]
    assert [panel.title for panel in drawn] == [
        "accuracy",
        "accuracy, length_32",
        "accuracy, length_64",
    ]
    model, metadata = load_model(config.directory)
    assert metadata["vocabulary"]["kind"] == "task"
    task = tasks.parse(config.data.source, length=32)
    found = evaluate_task(model, task, examples=16)  # two batches of eight
    assert found["loss"] == pytest.approx(final["eval/loss"], rel=1e-5)
    assert found["accuracy"] == final["eval/accuracy"]


def test_the_first_loss_is_that_of_the_graded_targets(run):
    config, _ = run
    task = tasks.parse(config.data.source, length=32)
    batch = next(batches_of(task))
    model = LanguageModel(config.model, rngs=nnx.Rngs(jax.random.key(config.seed)))
    logits, _ = jax.jit(LanguageModel.__call__)(model, batch["tokens"][:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    expected = float(losses[batch["mask"] > 0].mean())
    total, weight = jax.jit(nats)(
        model, {name: batch[name] for name in ("tokens", "targets", "mask")}
    )
    assert weight == 8 * 4
    assert float(total / weight) == pytest.approx(expected, rel=1e-5)
    first = next(r["train/loss"] for r in records(config) if r["step"] == 1)
    assert first == pytest.approx(expected, rel=1e-5)


def batches_of(task, **options):
    options = {"window": task.length, "batch_size": 8, "seed": 0, **options}
    return train_iterator(TaskRows(task, 0), **options)


def test_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    config, _ = run
    copy = cut_short(config, tmp_path / "copy")
    train(copy)
    assert records(copy) == records(config)
    weights = [jax.tree.leaves(load_model(c.directory)[0]) for c in (copy, config)]
    for x, y in zip(*weights, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_mesh_with_accumulation_gives_the_same_figures(run, tmp_path):
    config, final = run
    other = dataclasses.replace(
        config, mesh=MeshConfig(data=2, fsdp=2), accumulation=2, directory=str(tmp_path / "mesh")
    )
    # Six steps in float32, summed in another order.
    assert train(other)["eval/loss"] == pytest.approx(final["eval/loss"], rel=1e-4)


def test_processes_share_the_examples_out():
    task = tasks.get("mqar", pairs=4, length=32, vocab_size=32)
    whole = batches_of(task)
    parts = [batches_of(task, rows=range(8)[i::2]) for i in range(2)]
    for _ in range(3):
        batch, pieces = next(whole), [next(part) for part in parts]
        for i, piece in enumerate(pieces):
            for name in ("tokens", "targets", "mask"):
                np.testing.assert_array_equal(batch[name][i::2], piece[name])
        row = task.sample(0, int(batch["index"][3]))
        np.testing.assert_array_equal(batch["tokens"][3], row["tokens"])


def test_a_number_of_examples_comes_again_in_another_order():
    task = tasks.get("mad_memorization", examples=24)
    batches = batches_of(task)
    epochs = [np.concatenate([next(batches)["index"] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == [*range(24)]
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "task:mqar,pairs=99"}, "data.source 'task:mqar,pairs=99': length must be"),
        ({"source": "task:mqr"}, "data.source 'task:mqr': There is no task 'mqr'"),
        ({"source": "task:mqar,length=64"}, "data.window 32 must be 64, the length of the rows"),
        ({"source": ("task:s3", "task:s5")}, "a task must be the only source"),
        ({"validation": "stdlib"}, "data.validation 'stdlib': a task has test examples of its"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(tmp_path, changes, message):
    config = on_task(tmp_path)
    with pytest.raises(UserError, match=message):
        read_corpus(dataclasses.replace(config, data=dataclasses.replace(config.data, **changes)))


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    last = dataclasses.replace(SMALL, readout="last")
    for source, model, message in (
        ("task:s5", SMALL, "model.vocab_size 32 is less than the task's 120"),
        ("task:mad_compression", SMALL, "model.readout must be 'last' for task:mad_compression"),
        ("task:parity", last, "model.readout must be 'token' for task:parity"),
        ("stdlib", last, "model.readout 'last' is for tasks, not for text"),
    ):
        with pytest.raises(UserError, match=message):
            read_corpus(on_task(tmp_path, source=source, model=model))


def test_other_settings_are_another_run(run):
    config, _ = run
    data = dataclasses.replace(config.data, source=MQAR.replace("pairs=4", "pairs=5"))
    with pytest.raises(UserError, match=r"corpus.* is '.*', but the run in"):
        train(dataclasses.replace(config, data=data, steps=7))


def test_tokens_of_a_task_are_no_text(run, capsys):
    assert cli.main(["generate", run[0].directory]) == 2
    assert "trained on a synthetic task: its tokens are no text" in capsys.readouterr().err


def test_compression_tells_the_row_from_its_last_token(tmp_path):
    model = dataclasses.replace(SMALL, readout="last")
    config = on_task(
        tmp_path,
        "task:mad_compression",
        model=model,
        mesh=MeshConfig(fsdp=2, tensor=2),
        log=LogConfig(every=1, diagnostics_every=2),
        steps=2,
    )
    assert 0 < train(config)["eval/loss"] < 4
    assert any("inner/step" in record for record in records(config))
    trained, _ = load_model(config.directory)
    tokens = np.arange(12)[None] % 15
    logits, _ = trained(tokens)
    assert logits.shape == (1, 12, 32)
    gradient = jax.grad(lambda x: trained.readout(x)[:, 3].sum())(np.ones((1, 12, 16), np.float32))
    assert not gradient[:, :-1].any()
    assert gradient[:, -1].any()
    assert np.abs(np.diff(logits, axis=1)).max() > 1e-3  # the places differ
    with pytest.raises(ValueError, match="nothing that follows"):
        generate(trained, tokens[0], steps=1, key=jax.random.key(0))


def test_an_easy_setting_is_solved(tmp_path):
    """Two layers of the delta rule recall four pairs after 80 steps; chance is 0.25."""
    config = on_task(
        tmp_path,
        "task:mqar,pairs=4,vocab_size=16",
        window=16,
        model=ModelConfig(
            memory="deltanet",
            dim=32,
            depth=2,
            heads=2,
            vocab_size=16,
            chunk_size=16,
            ff_dim=32,
            remat=False,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
        evaluation=EvaluationConfig(every=100, batches=4, sample_tokens=0),
        steps=100,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=128))
    assert train(config)["eval/accuracy"] > 0.95
