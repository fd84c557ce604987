"""The one configuration of a language model."""

import dataclasses
from typing import Literal

from miras_jax import zoo
from miras_jax.memory import flops
from miras_jax.zoo import LayerOptions


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model whose sequence mixing is a memory of the zoo."""

    memory: str = "yaad"
    """Name of the model in the zoo (`miras zoo` lists them)."""
    vocab_size: int = 257
    """Number of token ids; 256 bytes and the separator."""
    dim: int = 256
    """Width of the residual stream, in channels."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 4
    """Memories per block; each reads dim / heads channels."""
    ff_dim: int | None = None
    """Hidden width of the SwiGLU; None takes 8/3 dim, rounded up to a multiple of 64."""
    chunk_size: int | None = None
    """Tokens a chunk of the memory; None takes the zoo's. Train and serve at the same size."""
    rotary: bool | None = None
    """Rotary positions on q and k; None takes the zoo's."""
    rotary_base: float = 10_000.0
    """Longest wavelength of the rotary positions, in tokens over 2 pi."""
    gate_rank: int = 32
    """Rank of the projections of gates per channel."""
    tie_embeddings: bool = True
    """Uses the embedding as the output layer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of projections and residual stream; parameters and memories stay float32."""
    remat: bool = True
    """Recomputes each block in the backward pass instead of storing its activations."""

    def __post_init__(self):
        zoo.row(self.memory)
        for name in ("vocab_size", "dim", "depth", "heads", "gate_rank", "ff_dim"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"model.{name} must be at least 1, got {count}.")
        if not self.rotary_base > 0:
            raise ValueError(f"model.rotary_base must be positive, got {self.rotary_base}.")
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}.")
        if self.layer.rotary and self.head_dim % 2:
            raise ValueError(f"Rotary positions need an even head width, got {self.head_dim}.")
        self.build_memory()

    @property
    def head_dim(self) -> int:
        """Channels a head, K = V."""
        return self.dim // self.heads

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the SwiGLU."""
        return -(-8 * self.dim // (3 * 64)) * 64 if self.ff_dim is None else self.ff_dim

    @property
    def layer(self) -> LayerOptions:
        """The layer's options: the zoo's, with this configuration's changes."""
        options = zoo.row(self.memory).layer
        return options if self.rotary is None else dataclasses.replace(options, rotary=self.rotary)

    def build_memory(self):
        """The memory of every block."""
        choices = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        return zoo.get(self.memory, **choices)

    def flops_per_token(self, window: int) -> float:
        """Forward FLOPs a token, averaged over a window of that many tokens; a training step
        costs three times as much. Counts matrix products only, recomputation not."""
        d, options, memory = self.dim, self.layer, self.build_memory()
        projections = 4 + options.output_gate
        gates = sum(
            2 * d * self.heads if gate.per == "head" else 2 * self.gate_rank * (d + d)
            for gate in memory.gates.values()
        )
        mixing = 2 * projections * d * d + gates
        mixing += self.heads * flops.per_token(memory, self.head_dim, self.head_dim, window)
        block = mixing + 2 * 3 * d * self.hidden_dim
        return self.depth * block + 2 * d * self.vocab_size
