"""Windows of token sets: packed, mixed by weight, and one stream on any number of processes."""

import itertools
import json

import numpy as np
import pytest

from miras_jax.data import TokenSet, tokenize, train_iterator, validation_batches
from tests.data.corpus import TEXTS, write_json_lines

WINDOW, BATCH = 16, 4


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[TokenSet, float]]:
    """Two token sets, three windows of the first to one of the second."""
    folder = tmp_path_factory.mktemp("mixtures")
    found = []
    for name, texts, weight in (("a", TEXTS[:40], 3.0), ("b", TEXTS[40:], 1.0)):
        source = write_json_lines(folder / f"{name}.jsonl", texts)
        tokenize([str(source)], str(folder / name), shard_bytes=300, workers=1)
        found.append((TokenSet.open(str(folder / name)), weight))
    return found


def stream(parts, **options: int):
    return train_iterator(parts, window=WINDOW, batch_size=BATCH, seed=0, **options)


def indices(batches, count: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in itertools.islice(batches, count)]


def test_rows_are_packed_windows(parts) -> None:
    first = (parts[0][0].size - 1) // WINDOW
    for batch in itertools.islice(stream(parts), 20):
        assert batch["tokens"].shape == (BATCH, WINDOW + 1)
        assert batch["segment_ids"].shape == (BATCH, WINDOW)
        assert batch["segment_ids"].dtype == np.int32
        rows = zip(batch["index"], batch["tokens"], batch["segment_ids"], strict=True)
        for index, tokens, ids in rows:
            whole, window = (parts[0][0], index) if index < first else (parts[1][0], index - first)
            start = int(window) * WINDOW
            np.testing.assert_array_equal(tokens, whole[start : start + WINDOW + 1])
            # A document begins with its separator, as read.
            expected = np.cumsum((tokens[:-1] == 256) & (np.arange(WINDOW) > 0))
            np.testing.assert_array_equal(ids, expected)


def test_weights_and_epochs(parts) -> None:
    """Shares as the weights say, evenly, and every set in epochs of its own."""
    first, second = ((part.size - 1) // WINDOW for part, _ in parts)
    order = np.concatenate(indices(stream(parts), 4 * second // BATCH))
    of_second = order >= first
    assert np.abs(np.cumsum(of_second) - np.arange(1, order.size + 1) / 4).max() <= 1
    np.testing.assert_array_equal(np.sort(order[of_second])[:second] - first, np.arange(second))
    assert np.unique(order[~of_second][:first]).size == min(first, (~of_second).sum())


def test_elastic(parts) -> None:
    """One stream and one state on 1, 2 and 4 processes, going on with another number each time."""
    whole = indices(stream(parts), 24)
    expected = [batch["tokens"] for batch in itertools.islice(stream(parts), 24)]
    state = stream(parts).get_state()
    step = 0
    for count in (2, 4, 1, 2, 4):
        processes = [stream(parts, rows=range(i, BATCH, count)) for i in range(count)]
        for process in processes:
            process.set_state(state)
        for _ in range(4):
            batches = [next(process) for process in processes]
            assert all(batch["index"].tolist() == whole[step] for batch in batches)
            tokens = np.stack([batches[i % count]["tokens"][i // count] for i in range(BATCH)])
            np.testing.assert_array_equal(tokens, expected[step])
            step += 1
        states = [json.loads(json.dumps(process.get_state())) for process in processes]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert step == 20


@pytest.mark.parametrize("limit", [None, 2])
def test_validation_is_packed(parts, limit) -> None:
    tokens = parts[1][0]
    targets, documents = [], 0
    for batch in validation_batches(tokens, window=WINDOW, batch_size=BATCH, limit=limit):
        ids, used = batch["segment_ids"], batch["mask"] == 1
        assert ids.shape == (BATCH, WINDOW)
        assert (np.diff(ids, axis=1) >= 0).all()
        begins = (batch["tokens"][:, 1:-1] == 256) & used[:, 1:]
        np.testing.assert_array_equal(np.diff(ids, axis=1)[used[:, 1:]], begins[used[:, 1:]])
        targets += batch["tokens"][:, 1:][used].tolist()
        documents += begins.sum()
    assert targets == tokens[1 : 1 + len(targets)].tolist()
    assert len(targets) == (tokens.size - 1 if limit is None else limit * BATCH * WINDOW)
    assert documents > (3 if limit is None else 0)
    assert tokens.text_bytes(1, 1 + len(targets)) == np.count_nonzero(np.array(targets) != 256)
