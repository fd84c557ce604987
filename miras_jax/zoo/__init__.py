"""The model zoo: one file per paper, one row per model."""

import dataclasses

from miras_jax.memory.attention import Attention
from miras_jax.memory.memory import Memory
from miras_jax.memory.window import SlidingWindowAttention
from miras_jax.zoo import (
    comba,
    delta_product,
    deltanet,
    dfw,
    gated_delta_product,
    gated_deltanet,
    gdn2,
    gla,
    hgrn2,
    hybrids,
    kda,
    lact,
    lightning_attention,
    linear_attention,
    longhorn,
    mamba2,
    memora,
    mesanet,
    moneta,
    retnet,
    rwkv7,
    sliding_window_attention,
    titans,
    titans_mac,
    titans_mag,
    titans_mal,
    transformer,
    ttt_linear,
    ttt_mlp,
    yaad,
)
from miras_jax.zoo.row import Facts, LayerOptions, Row, Stream, equations

ROWS: dict[str, Row] = {
    module.ROW.name: module.ROW
    for module in (
        linear_attention,
        retnet,
        lightning_attention,
        dfw,
        gla,
        mamba2,
        hgrn2,
        deltanet,
        longhorn,
        ttt_linear,
        ttt_mlp,
        gated_deltanet,
        rwkv7,
        delta_product,
        gated_delta_product,
        titans,
        moneta,
        yaad,
        memora,
        transformer,
        mesanet,
        comba,
        kda,
        gdn2,
        lact,
        sliding_window_attention,
        titans_mac,
        titans_mag,
        titans_mal,
    )
}
ROWS.update({row.name: row for row in hybrids.ROWS})

PUBLISHED = tuple(ROWS)
"""The names of the models that come with the library; others are registered by their users."""

__all__ = [
    "PUBLISHED",
    "ROWS",
    "Facts",
    "LayerOptions",
    "Row",
    "Stream",
    "equations",
    "get",
    "names",
    "register",
    "row",
    "table",
]


def names() -> list[str]:
    """Every model's name, in the order of the table."""
    return list(ROWS)


def table() -> list[Row]:
    """Every model, a row each."""
    return list(ROWS.values())


def register(row: Row) -> None:
    """Adds a model of your own, so that it trains by its name like the others.

    Raises:
      ValueError: the name is taken.
    """
    if ROWS.setdefault(row.name, row) != row:
        raise ValueError(f"The zoo already has a model {row.name!r}; choose another name.")


def row(name: str) -> Row:
    """A model's row.

    Raises:
      ValueError: no model has that name.
    """
    if name not in ROWS:
        raise ValueError(f"There is no model {name!r}; the zoo has {', '.join(ROWS)}.")
    return ROWS[name]


def get(name: str, **choices) -> Memory | Attention | SlidingWindowAttention:
    """A model's memory, with fields replaced: `get("yaad", chunk_size=64)`.

    Raises:
      ValueError: no model has that name, or its memory has no such field.
    """
    memory = row(name).memory
    fields = [field.name for field in dataclasses.fields(memory)]
    unknown = sorted(set(choices) - set(fields))
    if unknown:
        known = ", ".join(fields) or "none"
        raise ValueError(f"{name} has no {', '.join(unknown)}; the fields of its memory: {known}.")
    return dataclasses.replace(memory, **choices)
