"""Prompts with completions: which targets are learned, what fits into a row, and their bytes."""

import json

import numpy as np
import pytest

from miras_jax.data import (
    DataError,
    ExampleRows,
    TokenSet,
    load_text,
    tokenize,
    train_iterator,
    validation_batches,
)

S = 256  # the separator


def write(folder, examples, **options):
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in examples]
    (folder / "examples.jsonl").write_text("\n".join(lines))
    options = {"field": ("prompt", "completion"), "workers": 1, **options}
    manifest = tokenize([str(folder / "examples.jsonl")], str(folder / "set"), **options)
    return TokenSet.open(str(folder / "set")), manifest


def test_mask_is_on_completions_and_the_separator_after_them(tmp_path):
    """Two examples of 6 and 4 tokens in rows of 12, by hand."""
    tokens, manifest = write(tmp_path, [("ab", "xyz"), ("c", "dé")])
    assert (manifest["version"], manifest["documents"], manifest["bytes"]) == (2, 2, 9)
    (row,) = ExampleRows(tokens, 12)
    a, b, x, y, z, c, d = b"abxyzcd"
    e = list("é".encode())
    np.testing.assert_array_equal(row["tokens"], [S, a, b, x, y, z, S, c, d, *e, S, S])
    #                        targets:                 a, b, x, y, z, S, c, d, *e,   S, S
    np.testing.assert_array_equal(row["mask"], [0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(row["segment_ids"], [0] * 6 + [1] * 5 + [2])
    assert (row["tokens"].dtype, row["mask"].dtype) == (np.int32, np.float32)


def test_examples_stay_whole(tmp_path):
    """Of 6, 6, 3 and 11 tokens in rows of 10: the last is cut, one has no place for a target."""
    examples = [("ab", "xyz"), ("ab", "uvw"), ("", "s"), ("0123456789", "t"), ("p", "123456789")]
    tokens, _ = write(tmp_path, examples)
    rows = ExampleRows(tokens, 10)
    assert (len(rows), rows.examples, rows.cut, rows.left_out) == (3, 5, 1, 1)
    texts = ["".join(chr(t) if t < S else "|" for t in row["tokens"]) for row in rows]
    assert texts == ["|abxyz|||||", "|abuvw|s|||", "|p123456789"]
    assert [row["mask"].sum() for row in rows] == [4, 4 + 2, 9]
    # 3; 3 + 1; all 9 characters of the last, though not its end.
    assert [rows.text_bytes(n) for n in (4, 10, 19)] == [3, 7, 16]
    assert rows.text_bytes(0) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_training_rows_are_elastic(tmp_path, processes):
    examples = [("q" * (i % 5), "a" * (1 + i % 7)) for i in range(200)]
    tokens, _ = write(tmp_path, examples, shard_bytes=1000)
    assert len(tokens.manifest["shards"]) > 2

    def read(count, steps, state=None):
        options = {"window": 16, "batch_size": 4, "seed": 3}
        shares = [range(4)[i::count] for i in range(count)]
        each = [train_iterator(tokens, rows=rows, **options) for rows in shares]
        if state:
            for one in each:
                one.set_state(state)
        batches = [[next(one) for one in each] for _ in range(steps)]
        read = [np.concatenate([part["tokens"] for part in parts]) for parts in batches]
        return [rows[np.lexsort(rows.T)] for rows in read], each[0]

    expected, _ = read(1, 6)
    first, iterator = read(processes, 3)
    second, _ = read(3 - processes, 3, iterator.get_state())
    np.testing.assert_array_equal(first + second, expected)


def test_held_out_batches_weigh_every_completion_once(tmp_path):
    examples = [("why", "because" + "!" * (i % 5)) for i in range(50)]
    tokens, _ = write(tmp_path, examples)
    batches = [*validation_batches(tokens, window=40, batch_size=4)]
    assert {batch["tokens"].shape for batch in batches} == {(4, 41)}
    total = sum(batch["mask"].sum() for batch in batches)
    assert total == sum(len(c) + 1 for _, c in examples)
    assert ExampleRows(tokens, 40).text_bytes(int(total)) == sum(len(c) for _, c in examples)
    assert len([*validation_batches(tokens, window=40, batch_size=4, limit=2)]) == 2


def test_held_out_part_begins_at_an_example(tmp_path):
    write(tmp_path, [(f"{i}", "abc") for i in range(60)])
    text = load_text(str(tmp_path / "set"))
    ((training, _),), held_out = text.parts, text.validation[""]
    counts = [part.examples().shape[1] for part in (training, held_out)]
    assert sum(counts) == 60
    assert 2 <= counts[1] <= 6
    assert held_out[0:1] == [S]


def test_mixed_with_text_all_rows_have_a_mask(tmp_path):
    tokens, _ = write(tmp_path, [("a", "b")] * 40)
    (tmp_path / "t.txt").write_text("plain text " * 40)
    tokenize([str(tmp_path / "t.txt")], str(tmp_path / "text"), workers=1)
    both = [(tokens, 1.0), (TokenSet.open(str(tmp_path / "text")), 1.0)]
    batch = next(train_iterator(both, window=8, batch_size=4, seed=0))
    assert sorted(batch["mask"].sum(axis=1)) == [4, 4, 8, 8]


def test_what_is_no_pair_is_named(tmp_path):
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(DataError, match=r"t\.txt is no JSON lines"):
        tokenize([str(tmp_path / "t.txt")], str(tmp_path / "x"), field=("a", "b"), workers=1)
    (tmp_path / "e.jsonl").write_text('{"q": "a", "r": "b"}\n{"q": "a"}\n{"q": "a", "r": ""}\n')
    manifest = tokenize(
        [str(tmp_path / "e.jsonl")], str(tmp_path / "y"), field=("q", "r"), workers=1
    )
    assert [manifest[name] for name in ("documents", "corrupt", "empty")] == [1, 1, 1]
    assert manifest["problems"][0][1:] == ["line", 2, "no text in 'r'"]
    again = tokenize([str(tmp_path / "e.jsonl")], str(tmp_path / "y"), field=("q", "r"), workers=1)
    assert again == manifest
    with pytest.raises(DataError, match="options field"):
        tokenize([str(tmp_path / "e.jsonl")], str(tmp_path / "y"), field=("r", "q"), workers=1)
