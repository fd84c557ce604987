"""What reading gives: a part of a source, a document in it, or why there is none."""

import json
from typing import NamedTuple

RECORDS = ("example", "json", "text")


class Piece(NamedTuple):
    """A part of a source.

    `start` and `stop` count bytes of JSON lines (those that begin there), row groups of Parquet,
    records of ArrayRecord and rows of Hugging Face's `datasets`; `stop` None is the end. `size` is
    its share in bytes, known or guessed.
    """

    path: str
    format: str
    start: int = 0
    stop: int | None = None
    size: int = 0


class Corrupt(NamedTuple):
    """What could not be read: `unit` is `line` (from 1), `record` or `row` (from 0), or `file`."""

    path: str
    unit: str
    number: int | None
    reason: str

    def __str__(self) -> str:
        where = self.unit if self.number is None else f"{self.unit} {self.number}"
        return f"{self.path}, {where}: {' '.join(self.reason.split())}"


class Pair(NamedTuple):
    """A prompt and what is to be learned after it."""

    prompt: str
    completion: str


class Reason(str):
    """Why a record holds no document."""


def from_json(content: bytes, field: str | tuple[str, str]) -> str | Pair | Reason:
    """The text in a JSON object, or a prompt and a completion where two fields are named."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reason(f"not UTF-8, bad byte at offset {error.start}")
    except (ValueError, RecursionError) as error:
        return Reason(f"no JSON: {error}")
    if not isinstance(value, dict):
        return Reason(f"a JSON {type(value).__name__}, not an object")
    if isinstance(field, str):
        return text_in(value.get(field), field)
    pair = Pair(*(text_in(value.get(name), name) for name in field))
    return next((text for text in pair if isinstance(text, Reason)), pair)


def text_in(value: object, field: str) -> str | Reason:
    """`value`, if it is text that UTF-8 can hold; `field` is where it stood."""
    if not isinstance(value, str):
        found = "" if value is None else f" but {value!r:.40}"
        return Reason(f"no text in {field!r}{found}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a character, as \\ud800
        return Reason(f"half a character (a lone surrogate) at {error.start}")
    return value
