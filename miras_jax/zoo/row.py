"""A row of the zoo: a model as its memory, the layer round it and where it comes from."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from miras_jax.memory.attention import Attention
from miras_jax.memory.gate import Gate
from miras_jax.memory.memorize import available_forms
from miras_jax.memory.memory import Memory
from miras_jax.memory.window import SlidingWindowAttention

BlockKind = Literal["memory", "hybrid", "mac", "mag", "mal"]
Inputs = dict[str, jax.Array]


class Stream(NamedTuple):
    """Something that a layer makes of each token besides q, k and v.

    A gate per head is linear in the token, a gate per channel goes through a low rank; a further
    input of the memory (`Gate.is_input`) is projected and convolved like a key or a value; what is
    learned is a constant.

    Attributes:
      name: its key in the inputs of `prepare` and `finish`.
      gate: its shape, activation and initial value.
      hidden: activation between the two factors of a low rank; given for a further input, that is
        made like a gate instead, without convolution.
      full: a gate per channel through one full matrix instead of a low rank.
      of_chunk: what is learned is one constant for each place in a chunk.
    """

    name: str
    gate: Gate
    hidden: Literal["identity", "tanh", "sigmoid"] | None = None
    full: bool = False
    of_chunk: bool = False

    @property
    def is_learned(self) -> bool:
        return self.gate.source == "learned"

    @property
    def is_low_rank(self) -> bool:
        return self.gate.per != "head" and not (self.is_learned or self.is_input or self.full)

    @property
    def is_input(self) -> bool:
        """True if it is projected and convolved like a key or a value."""
        return self.gate.is_input and self.hidden is None and not self.is_learned


class Facts(NamedTuple):
    """What a layer knows beside its tokens.

    Attributes:
      heads: H.
      depth: number of layers of the model.
      layer: int, the layer's index, 0 .. depth - 1; traced.
      place: int `[B, T]`, each token's place in its chunk, 0 .. chunk_size - 1.
    """

    heads: int
    depth: int
    layer: jax.Array | int
    place: jax.Array


def keep(inputs: Inputs, facts: Facts) -> Inputs:
    """The `prepare` of a model that adds nothing: its streams are the memory's gates."""
    return inputs


def norm_and_gate(y: jax.Array, inputs: Inputs, norm: Callable[[jax.Array], jax.Array]):
    """The `finish` of most models: the output norm, then the output gate where there is one."""
    y = norm(y)
    return y * inputs["gate"] if "gate" in inputs else y


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What a layer does round its memory, in this order.

    Attributes:
      shift: every projection reads a mixture of its token and the one before it, in a learned
        proportion per channel (RWKV's token shift).
      key_expansion, value_expansion: channels of a key, of a value, for each of the dim / heads
        channels of a head.
      key_heads: distinct heads of q and k, repeated to all heads; None is all.
      share_query_key: q and k come of one projection; their convolutions tell them apart.
      convolution: depthwise causal convolution of width 4 on each of q, k, v and further inputs.
      not_convolved: names of those that it leaves out, such as "value".
      activation: of the convolution's output.
      streams: what the layer makes of the token besides q, k and v; None is the memory's gates.
      prepare: `(inputs, facts) -> inputs`. Maps q `[B, T, H, K]`, k, v, the streams (`[B, T, H]` or
        `[B, T, H, channels]`) and, with an output gate, "gate" `[B, T, H, V]` to a dict with at
        least "q", "k", "v" and the memory's gates.
      normalize: l2-normalises q and k of every head.
      normalize_values: divides v of every head by the root of its mean square, so that its entries
        are of the size that a memory with a LayerNorm predicts.
      rotary: rotary positions on q and k.
      rotary_within: what they count from, the start of the document or of the chunk.
      scale_query: multiplies q by K^-0.5.
      start_std: standard deviation of the start of the memory's matrices; None is the memory's.
      finish: `(y, inputs, norm) -> y`, from what the memory gives `[B, T, H, V]` to what is
        projected out; the inputs are those that `prepare` returned, `norm` the output norm.
      output_norm: whether there is one, of every head's channels, shared by the heads.
      norm: "rms", or "layer" (with RetNet's and RWKV's group norm, a group is a head).
      output_gate: whether the token is projected to "gate".
      gate_activation: of that gate.
    """

    shift: bool = False
    key_expansion: float = 1
    value_expansion: float = 1
    key_heads: int | None = None
    share_query_key: bool = False
    convolution: bool = True
    not_convolved: tuple[str, ...] = ()
    activation: Literal["silu", "identity"] = "silu"
    streams: tuple[Stream, ...] | None = None
    prepare: Callable[[Inputs, Facts], Inputs] = keep
    normalize: bool = True
    normalize_values: bool = False
    rotary: bool = False
    rotary_within: Literal["document", "chunk"] = "document"
    scale_query: bool = False
    start_std: float | None = None
    finish: Callable[..., jax.Array] = norm_and_gate
    output_norm: bool = True
    norm: Literal["rms", "layer"] = "rms"
    output_gate: bool = True
    gate_activation: Literal["silu", "sigmoid", "gelu"] = "silu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model.

    Attributes:
      name: how it is called everywhere.
      memory: its memory with the default choices.
      layer: the layer's options.
      block: what mixes the sequence. "memory": the memory alone. "hybrid": blocks of the memory and
        of sliding-window attention in turn (Samba). "mac", "mag", "mal": memory and attention in
        one block, the memory as context, as gate and as layer of Titans.
      architecture, bias, retention, algorithm: the four choices in words, for the table.
      source: paper and equation.
      recurrence: its equations as lines of text, rows as vectors, S `[K, V]`.
    """

    name: str
    memory: Memory | Attention | SlidingWindowAttention
    layer: LayerOptions = LayerOptions()
    block: BlockKind = "memory"
    architecture: str
    bias: str
    retention: str
    algorithm: str
    source: str
    recurrence: str = ""

    @property
    def gates(self) -> str:
        """The names of the gates that the memory needs, for the table."""
        return ", ".join(self.memory.gates) or "none"

    @property
    def forms(self) -> str:
        """The names of the forms in which it runs, for the table."""
        return ", ".join(available_forms(self.memory)).replace("pallas_tpu, pallas_gpu", "pallas")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What the layer makes of each token besides q, k and v."""
        if self.layer.streams is not None:
            return self.layer.streams
        return tuple(Stream(name, gate) for name, gate in self.memory.gates.items())


def equations(header: str) -> str:
    """The first indented block of a module's docstring, where each model states its recurrence."""
    lines = inspect.cleandoc(header).splitlines()
    block = itertools.dropwhile(lambda line: not line.startswith(" "), lines)
    block = itertools.takewhile(lambda line: line.startswith(" ") or not line, block)
    return inspect.cleandoc("\n" + "\n".join(block)).rstrip()
