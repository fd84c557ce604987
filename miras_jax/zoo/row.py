"""A row of the zoo: a model as its memory, the layer round it and where it comes from."""

import dataclasses

from miras_jax.memory.attention import Attention
from miras_jax.memory.memory import Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What a layer does round its memory.

    Attributes:
      convolution: depthwise causal convolution of width 4 with SiLU on each of q, k and v.
      normalize: l2-normalises q and k of every head.
      rotary: rotary positions on q and k.
      scale_query: multiplies q by K^-0.5.
      output_norm: RMSNorm of every head's output.
      output_gate: multiplies the output by SiLU of a projection of the input.
    """

    convolution: bool = True
    normalize: bool = True
    rotary: bool = False
    scale_query: bool = False
    output_norm: bool = True
    output_gate: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model.

    Attributes:
      name: how it is called everywhere.
      memory: its memory with the default choices.
      layer: the layer's options.
      architecture, bias, retention, algorithm: the four choices in words, for the table.
      source: paper and equation.
    """

    name: str
    memory: Memory | Attention
    layer: LayerOptions = LayerOptions()
    architecture: str
    bias: str
    retention: str
    algorithm: str
    source: str

    @property
    def gates(self) -> str:
        """The names of the gates that the memory needs, for the table."""
        return ", ".join(self.memory.gates) or "none"

    @property
    def forms(self) -> str:
        """The names of the forms in which it runs, for the table."""
        return ", ".join(self.memory.forms)
