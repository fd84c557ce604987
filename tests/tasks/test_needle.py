"""Needles: RULER's sentences, a haystack as long as fits, essays of a text of one's own."""

import re
import uuid

import numpy as np
import pytest

from miras_jax import tasks
from miras_jax.data import ByteTokenizer
from miras_jax.tasks.words import ADJECTIVES, NOUNS

LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def text_of(row):
    return ByteTokenizer().decode(row["tokens"])


def test_passkey_row_word_for_word():
    task = tasks.get("passkey", length=1024)
    row = task.sample(0, 3)
    text = text_of(row)
    found = re.fullmatch(
        r"A special magic number is hidden within the following text\. Make sure to memorize it\."
        r" I will quiz you about the number afterwards\.\n"
        r"(?P<hay>.*)\n"
        r"What is the special magic number for (?P<key>\w+-\w+) mentioned in the provided text\?"
        r" The special magic number for (?P=key) mentioned in the provided text is"
        r" (?P<value>[1-9]\d{6})",
        text,
        re.DOTALL,
    )
    lines = found["hay"].split("\n")
    needle = f"One of the special magic numbers for {found['key']} is: {found['value']}."
    assert lines.count(needle) == 1
    assert {*lines} == {LINE, needle}
    at = np.flatnonzero(row["mask"])
    assert len(text) - 9 == at[0]  # the token before " 1234567"
    answer = row["targets"][at].astype(np.uint8).tobytes().decode()
    assert answer == " " + found["value"]
    assert 1025 - len(text) < len(LINE) + 1  # one line more would not fit
    adjective, noun = found["key"].split("-")
    assert adjective in ADJECTIVES
    assert noun in NOUNS


def test_needles_lie_at_all_depths():
    task = tasks.get("passkey", length=2048)
    batch = task.batch(0, 0, 80)
    counts = np.bincount(batch["groups"][:, 0], minlength=4)
    assert counts.min() >= 8  # 20 expected of each
    for tokens, group in zip(batch["tokens"], batch["groups"][:, 0], strict=True):
        lines = ByteTokenizer().decode(tokens).split("\n")[1:-1]
        [place] = [i for i, line in enumerate(lines) if line.startswith("One of")]
        assert group == 4 * place // (len(lines) - 1)


def test_values_of_every_kind():
    for name, check in (
        ("needle_word", lambda value: value.split("-")[1] in NOUNS),
        ("needle_uuid", lambda value: uuid.UUID(value).version == 4),
    ):
        task = tasks.get(name)
        row = task.sample(0, 0)
        assert check(text_of(row).rsplit(" ", 1)[1])
    assert tasks.get("needle_word").chance == 1 / len(ADJECTIVES) / len(NOUNS)
    assert tasks.get("passkey").chance == 1 / 9_000_000


def test_among_needles_the_question_decides():
    task = tasks.get("needle_among_needles", key="uuid", value="uuid", length=2048)
    row = task.sample(0, 1)
    text = text_of(row)
    pairs = re.findall(r"One of the special magic uuids for (\S+) is: (\S+)\.\n", text)
    assert len(pairs) > 5
    asked = re.search(r"What is the special magic uuid for (\S+)", text)[1]
    assert dict(pairs)[asked] == text.rsplit(" ", 1)[1]


def test_essay_reads_a_text_from_its_start(tmp_path):
    book = tmp_path / "book.txt"
    sentences = [f"Sentence number {i} has nothing to hide!" for i in range(30)]
    book.write_text("\n\n".join(sentences))
    task = tasks.get("needle_word", haystack="essay", text=str(book), length=1200)
    seen = set()
    for index in range(8):
        text = text_of(task.sample(0, index)).split("\n")[1]
        needle = re.search(r"One of the special magic words for \S+ is: \S+\. ?", text)[0]
        seen.add(text.index(needle))
        hay = text.replace(needle, "")
        whole = " ".join(sentences)
        assert whole.startswith(hay.rstrip())
        assert re.search(r"(^|! )$", text[: text.index(needle)])  # between two sentences
    assert len(seen) > 3
    before = task.describe()
    longer = tasks.get("needle_word", haystack="essay", text=str(book), length=4000)
    assert text_of(longer.sample(0, 0)).count("Sentence number 3 ") == 3  # read again
    assert before["text"] == task.describe()["text"] != str(book)


def test_a_missing_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is no file or folder"):
        tasks.get("passkey", haystack="essay", text=str(tmp_path / "none.txt")).sample(0, 0)
