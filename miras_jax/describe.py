"""A model of the zoo in words, for `miras zoo NAME`: what it is, what it needs, how to call it."""

import dataclasses
import math
import textwrap
from typing import Any

from miras_jax import zoo
from miras_jax.memory import Gate, Memory
from miras_jax.nn import ModelConfig
from miras_jax.zoo import LayerOptions, Row, Stream
from miras_jax.zoo.row import keep, norm_and_gate

BLOCKS = {
    "memory": "the memory alone mixes the tokens",
    "hybrid": "blocks of the memory and of sliding_window_attention in turn",
    "mac": "the memory recalls for attention over a segment, and learns what it gives",
    "mag": "the memory gates the sliding-window attention beside it",
    "mal": "the memory, then sliding-window attention",
}
CHOICES = ("architecture", "bias", "retention", "algorithm")
INDENT = "  "


def describe(name: str) -> str:
    """All that the zoo knows of a model, as plain text.

    Raises:
      ValueError: no model has that name.
    """
    row = zoo.row(name)
    sections = {
        "recurrence": row.recurrence,
        "choices": _choices(row),
        "gates that memorize needs": _gates(row),
        "streams that the layer makes of a token": _streams(row),
        "defaults": _defaults(row),
        "forms": row.forms,
    }
    told = [f"{title}\n{textwrap.indent(text, INDENT)}" for title, text in sections.items() if text]
    command = f"miras train experiments/quickstart.py --model.memory {name} --directory runs/{name}"
    # Not indented: to be copied.
    return "\n\n".join(
        [
            f"{name}: {row.source}",
            *told,
            f"example in Python\n\n{example(row)}",
            f"example of training\n\n{command}",
        ]
    )


def example(row: Row) -> str:
    """Python that reads random tokens with the row's memory, or with its model where the memory is
    but a part of a block."""
    return example_of_memory(row) if row.block == "memory" else example_of_model(row)


def example_of_model(row: Row) -> str:
    """Python that reads random tokens in two pieces with a new model."""
    return f"""\
import jax
from flax import nnx

from miras_jax.nn import LanguageModel, ModelConfig

B, T, D, H, V = 2, 100, 64, 4, 257  # rows, tokens, channels, heads, ids

config = ModelConfig(memory="{row.name}", dim=D, depth=2, heads=H, vocab_size=V)
model = LanguageModel(config, rngs=nnx.Rngs(0))
tokens = jax.random.randint(jax.random.key(0), (B, T), 0, V)
state = model.init_state(B)
read = jax.jit(lambda model, tokens, state: model(tokens, state=state))
for piece in (tokens[:, : T // 2], tokens[:, T // 2 :]):
    y, state = read(model, piece, state)
print(y.shape)  # (B, T // 2, V), logits of the next tokens"""


def example_of_memory(row: Row) -> str:
    """Python that reads random tokens with the memory, its gates at their initial values."""
    gates = "".join(
        f'    "{name}": {_value(seed, gate)},\n'
        for seed, (name, gate) in enumerate(row.memory.gates.items(), start=4)
    )
    return f"""\
import jax
import jax.numpy as jnp
import miras_jax as mj

B, T, H, K, V = 2, 100, 4, 32, 32  # rows, tokens, heads, channels of a key and of a value


def draw(seed, channels):
    return jax.random.normal(jax.random.key(seed), (B, T, H, channels))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


memory = mj.zoo.get("{row.name}")
params = memory.init(jax.random.key(0), heads=H, key_dim=K, value_dim=V)
q, k, v = unit(draw(1, K)), unit(draw(2, K)), draw(3, V)
gates = {{{chr(10) * bool(gates)}{gates}}}
y, state = mj.memorize(memory, params, q, k, v, gates)
print(y.shape)  # (B, T, H, V)"""


def _value(seed: int, gate: Gate) -> str:
    """An expression for a gate: its initial value, the middle one of the heads; further keys have
    unit norm."""
    if gate.is_input:
        channels = {"key": "K", "value": "V"}.get(gate.per, "1")
        drawn = f"draw({seed}, {channels})"
        drawn = f"{drawn}[..., 0]" if gate.per == "head" else drawn
        return f"unit({drawn})" if gate.per == "key" or gate.activation == "unit" else drawn
    ends = gate.initial if isinstance(gate.initial, tuple) else (gate.initial,) * 2
    middle = math.copysign(math.sqrt(ends[0] * ends[1]), ends[0])
    shape = {"head": "(B, T, H)", "key": "(B, T, H, K)", "value": "(B, T, H, V)"}[gate.per]
    return f"jnp.full({shape}, {middle:.3g})"


def _choices(row: Row) -> str:
    memory = row.memory
    learns = isinstance(memory, Memory)
    rows = [
        (choice, getattr(row, choice), spell(getattr(memory, choice)) if learns else "")
        for choice in CHOICES
    ]
    return _columns(rows)


def _gates(row: Row) -> str:
    rows = [(name, *_gate(gate)) for name, gate in row.memory.gates.items()]
    return _columns([("name", "shape", "range", "starts at"), *rows]) if rows else "none"


def _streams(row: Row) -> str:
    """Nothing where they are the gates as they are."""
    if row.layer.streams is None:
        return ""
    rows = [(s.name, *_gate(s.gate), _origin(s, row.layer)) for s in row.streams]
    header = ("name", "shape", "range", "starts at", "made by")
    return _columns([header, *rows]) if rows else "none"


def _gate(gate: Gate) -> tuple[str, str, str]:
    """Shape, range and initial value in words."""
    shape = {"head": "[B, T, H]", "key": "[B, T, H, K]", "value": "[B, T, H, V]"}[gate.per]
    if gate.is_input:
        start = "0" if gate.source == "learned" else "random"
        return shape, "unit norm" if gate.activation == "unit" else "any", start
    low, high = gate.range
    start = gate.initial
    if isinstance(start, tuple):
        return shape, f"({low:.3g}, {high:.3g})", f"{start[0]:.3g} to {start[1]:.3g} over the heads"
    return shape, f"({low:.3g}, {high:.3g})", f"{start:.3g}"


def _origin(stream: Stream, options: LayerOptions) -> str:
    """Where a layer takes a stream from."""
    if stream.is_learned:
        return "learned for each place in a chunk" if stream.of_chunk else "learned"
    if stream.is_input:
        convolved = options.convolution and stream.name not in options.not_convolved
        return f"projection{', convolved' * convolved}"
    if stream.is_low_rank:
        through = "" if stream.hidden in (None, "identity") else f" with {stream.hidden}"
        return f"low rank{through}"
    return "projection"


def _defaults(row: Row) -> str:
    memory, lines = row.memory, [("block", BLOCKS[row.block]), *_attention(row)]
    fields = [f.name for f in dataclasses.fields(memory) if f.name not in CHOICES]
    lines += [(name, _number(getattr(memory, name))) for name in fields]
    if isinstance(memory, Memory):
        exact = "yes, any chunk size gives the same" if memory.exact else "no, chunk_size counts"
        lines.append(("exact", exact))
    functions = ("streams", "prepare", "finish")
    options = [f.name for f in dataclasses.fields(row.layer) if f.name not in functions]
    lines += _wrapped("layer", ", ".join(f"{n}={getattr(row.layer, n)!r}" for n in options))
    for name, usual in (("prepare", keep), ("finish", norm_and_gate)):
        function = getattr(row.layer, name)
        if function is not usual:
            lines += _wrapped(name, function.__doc__ or "a function of the row's own")
    return _columns(lines)


def _attention(row: Row) -> list[tuple[str, str]]:
    """Options of the attention beside the memory."""
    if row.block == "memory":
        return []
    config = ModelConfig(memory=row.name)
    attention = config.attention.build_memory()
    reach = ("segment", config.segment_size) if row.block == "mac" else ("window", attention.window)
    options = dict([reach, ("persistent_tokens", attention.persistent)])
    return [(f"model.{name}", str(count)) for name, count in options.items()]


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrapped(name: str, text: str) -> list[tuple[str, str]]:
    """A cell of one line as cells of as many as it takes."""
    lines = textwrap.wrap(" ".join(text.split()), 80, break_on_hyphens=False)
    return [(name if i == 0 else "", line) for i, line in enumerate(lines)]


def spell(value: Any) -> str:
    """Python for a choice, without what it has by default."""
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = [
        f"{field.name}={spell(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})"


def _columns(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        INDENT.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
