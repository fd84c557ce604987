"""What holds for every task: random access, splits apart, ranges, oracle, chance."""

import dataclasses
import subprocess
import sys
import zlib

import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.tasks.mad import Compression, Memorization, SelectiveCopying
from miras_jax.tasks.mad_recall import FuzzyRecall, InContextRecall
from miras_jax.tasks.mqar import Recall
from miras_jax.tasks.states import StateTracking

EVERY = [pytest.param(tasks.TASKS[name], id=name) for name in tasks.names()]
# One task for each name, or that of its first test.
SINGLE = [
    pytest.param(next(iter(dataclasses.replace(t, test_lengths=()).tests().values())), id=name)
    for name, t in tasks.TASKS.items()
]
GENERATED = [each for each in SINGLE if not isinstance(each.values[0], tasks.Needle)]


def crc(batch):
    return [zlib.crc32(np.ascontiguousarray(batch[name]).tobytes()) for name in sorted(batch)]


def graded(task, count=100):
    """Test examples, the oracle's answers and a mask as booleans."""
    batch = task.batch(3, 0, count, "test")
    answers = np.stack([task.oracle(tokens) for tokens in batch["tokens"]])
    return batch, answers, batch["mask"] > 0


@pytest.mark.parametrize("task", EVERY)
def test_an_example_is_a_function_of_seed_index_and_split(task):
    batch = task.batch(1, 5, 4)
    assert batch["tokens"].shape == (4, task.length + 1)
    assert {name: x.dtype.name for name, x in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "mask": "float32",
        "groups": "int32",
    }
    again = task.sample(1, 6)  # alone and out of order
    for name, rows in batch.items():
        np.testing.assert_array_equal(again[name], rows[1])
        assert rows.shape[1] == task.length + (name == "tokens")
    others = [task.sample(1, 6, "test"), task.sample(2, 6), task.sample(1, 7)]
    for other in others:
        assert (other["tokens"] != again["tokens"]).any()


@pytest.mark.parametrize("task", EVERY)
@pytest.mark.parametrize("split", ["train", "test"])
def test_tokens_targets_mask_and_groups_are_in_range(task, split):
    batch = task.batch(0, 0, 50, split)
    assert np.isin(batch["mask"], (0, 1)).all()
    assert (batch["mask"].sum(axis=1) > 0).all()
    for name in ("tokens", "targets"):
        assert batch[name].min() >= 0
        assert batch[name].max() < task.vocab_size
    assert batch["groups"].min() >= 0
    assert batch["groups"].max() < max(len(task.groups), 1)


def test_streams_of_seeds_and_splits_never_meet():
    task = tasks.get("mqar", length=64)
    rows = {
        task.sample(seed, index, split)["tokens"].tobytes()
        for seed in range(4)
        for index in range(10)
        for split in ("train", "test")
    }
    assert len(rows) == 80


def test_another_process_draws_the_same():
    names = ["mqar", "mad_fuzzy", "passkey", "s5"]
    code = (
        "from tests.tasks.test_tasks import crc, tasks;"
        f"print([crc(tasks.TASKS[name].batch(7, 2, 3)) for name in {names}])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str([crc(tasks.TASKS[name].batch(7, 2, 3)) for name in names])


@pytest.mark.parametrize("task", SINGLE)
def test_the_oracle_is_right(task):
    batch, answers, mask = graded(task)
    right = (answers == batch["targets"])[mask]
    if isinstance(task, tasks.Corrupted):
        assert 0.9 < right.mean() < 1  # sometimes most writes of a key are wrong
    else:
        assert right.all()


ALL_AT_ONCE = (SelectiveCopying, Compression, Memorization)


@pytest.mark.parametrize(
    "task", [each for each in GENERATED if not isinstance(each.values[0], ALL_AT_ONCE)]
)
def test_the_oracle_does_not_look_ahead(task):
    random = np.random.default_rng(0)
    for index in range(5):
        tokens = task.sample(0, index, "test")["tokens"]
        answers, place = task.oracle(tokens), int(random.integers(task.length))
        first = task.written if isinstance(task, Recall) else 0
        place = max(place, first)
        changed = tokens.copy()
        changed[place + 1 :] = random.permutation(changed[place + 1 :])
        np.testing.assert_array_equal(task.oracle(changed)[: place + 1], answers[: place + 1])


def admissible(task, row):
    """What may be guessed at each graded target of a row, as the task's docstring says."""
    asked = row["targets"][row["mask"] > 0]
    if isinstance(task, Recall):
        return [asked] * len(asked)
    if isinstance(task, InContextRecall):
        return [np.arange(task.meaning // 2, task.meaning)] * len(asked)
    if isinstance(task, FuzzyRecall):
        return [np.arange(task.half, task.vocab_size - 1)] * len(asked)
    if isinstance(task, SelectiveCopying):
        return [np.arange(task.vocab_size - 2)] * len(asked)
    if isinstance(task, Compression):
        return [np.arange(task.vocab_size - 1)] * (len(asked) - 1) + [[task.vocab_size - 1]]
    if isinstance(task, Memorization):
        return [np.arange(task.keys, task.vocab_size - 1)] * len(asked)
    assert isinstance(task, StateTracking)
    return [np.arange(task.vocab_size)] * len(asked)


@pytest.mark.parametrize("task", GENERATED)
def test_a_guess_in_the_admissible_set_is_right_by_chance(task):
    random = np.random.default_rng(1)
    right = []
    for index in range(60):
        row = task.sample(5, index, "test")
        asked = row["targets"][row["mask"] > 0]
        choices = admissible(task, row)
        assert all(target in among for target, among in zip(asked, choices, strict=True))
        right += [random.choice(c) == target for c, target in zip(choices, asked, strict=True)]
    error = np.sqrt(task.chance * (1 - task.chance) / len(right))
    assert abs(np.mean(right) - task.chance) < 4 * error


def test_a_wrong_split_is_refused():
    with pytest.raises(ValueError, match="split must be train or test, got 'valid'"):
        tasks.get("s3").sample(0, 0, "valid")


def test_settings_are_replaced_by_name():
    task = tasks.get("mqar", pairs=4, length=64)
    assert (task.pairs, task.length, task.vocab_size) == (4, 64, 8192)
    with pytest.raises(ValueError, match="There is no task 'mqra'; there are mqar, "):
        tasks.get("mqra")
    with pytest.raises(ValueError, match="mqar has no size; its settings: length, "):
        tasks.get("mqar", size=3)


def test_tasks_are_written_as_text():
    text = "task:mqar,pairs=4,length=64,random_non_queries=false,test_lengths=64+128,examples=9"
    task = tasks.parse(text)
    assert task == tasks.get(
        "mqar",
        pairs=4,
        length=64,
        random_non_queries=False,
        test_lengths=(64, 128),
        examples=9,
    )
    assert tasks.parse("mqar,length=64", length=32, pairs=4).length == 64
    assert tasks.parse("mqar,pairs=4", length=32).length == 32
    assert tasks.parse("mad_fuzzy,examples=None").examples is None
    assert tasks.is_task(text)
    assert not tasks.is_task("tasks")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no task 'nothing'"),
        ("mqar,pairs", "FIELD=VALUE"),
        ("mqar,pairs=4,pairs=5", "each once, got 'pairs=5'"),
        ("mqar,pairs=few", "pairs must be of type int, got 'few'"),
        ("mqar,random_non_queries=1", "must be True or False"),
        ("mqar,size=1", "mqar has no size"),
        ("mqar,pairs=100", "length must be at least 400"),
        ("mqar,pairs=100,vocab_size=64", "pairs must be 1 to vocab_size / 2 - 1 = 31"),
        ("mqar,test_lengths=256+16", "length must be at least 64"),
        ("mqar,examples=0", "examples must be at least 1"),
        ("forgetting,updates=17", "updates must be 0 to pairs = 16"),
        ("compositional,pairs=8", "square"),
        ("compositional,vocab_size=48", "vocab_size must be at least 49"),
        ("corrupted,noise=1.0", "noise"),
        ("mad_in_context,length=9", "even"),
        ("mad_in_context,noise=0.5", "noise_tokens"),
        ("mad_noisy,vocab_size=17", "at least 2 more"),
        ("mad_fuzzy,key_tokens=8", "1 to .* = 7"),
        ("mad_fuzzy,length=18", "above 18"),
        ("mad_selective_copying,copied=128", "copied"),
        ("mad_compression,length=1", "at least 2"),
        ("mad_memorization,length=3", "even"),
        ("passkey,length=300", "length must be at least"),
        ("passkey,haystack=hay", "haystack must be noise, essay, needle"),
        ("passkey,haystack=essay", "needs text=FILE"),
        ("passkey,text=a.txt", "needs text=FILE"),
        ("s3,degree=7", "degree must be 2 to 6"),
        ("parity,elements=swaps", "single swap"),
        ("s5,elements=odd", "elements must be all or swaps"),
        ("mqar_mix,length=128", "length must be at least 256"),
        ("mqar_mix,test_lengths=256", "tests of its own"),
    ],
)
def test_a_wrong_setting_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        tasks.parse(text)
