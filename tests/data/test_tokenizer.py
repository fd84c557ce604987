"""The byte tokenizer: round trips, characters in pieces, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miras_jax.data import ByteTokenizer

TOKENIZER = ByteTokenizer()
# Everything but lone surrogates, which UTF-8 cannot hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
IDS = st.lists(st.integers(0, 256))


@given(TEXT)
def test_decode_inverts_encode(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(text.encode("utf-8"))
    assert TOKENIZER.decode(ids) == text


@given(TEXT)
def test_stream_yields_each_character_when_its_last_byte_comes(text: str) -> None:
    assert list(TOKENIZER.decode_stream(TOKENIZER.encode(text))) == list(text)


@given(IDS)
def test_stream_and_decode_agree_on_any_ids(ids: list[int]) -> None:
    assert "".join(TOKENIZER.decode_stream(ids)) == TOKENIZER.decode(ids)


def test_stream_waits_for_the_end_of_a_character() -> None:
    first, second = "é".encode()
    asked = []

    def ids():
        for token in (ord("a"), first, second, ord("b")):
            asked.append(token)
            yield token

    pieces = TOKENIZER.decode_stream(ids())
    assert next(pieces) == "a"
    assert next(pieces) == "é"
    assert asked == [ord("a"), first, second]


def test_separator_is_dropped_and_ends_a_broken_character() -> None:
    first, second = "é".encode()
    assert TOKENIZER.decode([ord("a"), 256, ord("b")]) == "ab"
    assert TOKENIZER.decode([first, 256, second]) == "\ufffd\ufffd"
    assert TOKENIZER.decode([first]) == "\ufffd"
    assert TOKENIZER.decode([]) == ""


@pytest.mark.parametrize("token", [-1, 257])
def test_id_out_of_range_is_named(token: int) -> None:
    with pytest.raises(ValueError, match=f"token id {token} is not in 0..256"):
        TOKENIZER.decode([0, token])
    with pytest.raises(ValueError, match=f"token id {token} is not in 0..256"):
        list(TOKENIZER.decode_stream([0, token]))
