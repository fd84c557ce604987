"""The one configuration of a language model."""

import dataclasses
from typing import Literal

from miras_jax import zoo
from miras_jax.memory import SlidingWindowAttention, flops
from miras_jax.zoo import LayerOptions, Stream
from miras_jax.zoo.row import BlockKind

PERSISTENT_TOKENS = 16
"""Persistent tokens of the blocks of Titans, which do not state their number."""


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
    """Number of blocks, each with its SwiGLU; a hybrid's are of memory and of attention in turn, so
    that their number must be even."""
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
    hybrid: bool | None = None
    """Alternates blocks of the memory with blocks of sliding-window attention; None takes the
    zoo's."""
    window: int = 2048
    """Tokens that sliding-window attention sees."""
    segment: int = 256
    """Tokens a segment of `titans_mac`: what attention sees, and between two recalls."""
    persistent_tokens: int | None = None
    """Learned pairs that sliding-window attention always sees; None takes 16 in Titans' blocks and
    none elsewhere."""
    tie_embeddings: bool = True
    """Uses the embedding as the output layer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of projections and residual stream; parameters and memories stay float32."""
    remat: bool = True
    """Recomputes each block in the backward pass instead of storing its activations."""

    def __post_init__(self):
        zoo.row(self.memory)
        counts = ("vocab_size", "dim", "depth", "heads", "gate_rank", "ff_dim", "window", "segment")
        for name in counts:
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"model.{name} must be at least 1, got {count}.")
        if not self.rotary_base > 0:
            raise ValueError(f"model.rotary_base must be positive, got {self.rotary_base}.")
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}.")
        self._check_widths()
        self._check_blocks()
        self.build_memory()

    def _check_widths(self):
        options = self.layer
        for name in ("key_expansion", "value_expansion"):
            width = self.head_dim * getattr(options, name)
            if width < 1 or width % 1:
                raise ValueError(
                    f"{self.memory} has {getattr(options, name)} channels ({name}) for each of the "
                    f"model.dim / model.heads = {self.head_dim} of a head, which must make a whole "
                    f"number, got {width}: choose other heads or another width."
                )
        if self.heads % self.key_heads:
            raise ValueError(
                f"{self.memory} repeats {self.key_heads} heads of q and k to all heads, which must "
                f"divide model.heads, got {self.heads}."
            )
        if options.rotary and self.key_dim % 2:
            raise ValueError(f"Rotary positions need an even head width, got {self.key_dim}.")

    def _check_blocks(self):
        kind = zoo.row(self.memory).block
        if self.hybrid is not None and kind in ("mac", "mag", "mal"):
            raise ValueError(
                f"model.hybrid={self.hybrid} is for rows of a memory alone, but {self.memory} has "
                "attention in every block: leave it out."
            )
        if self.block == "hybrid" and self.depth % 2:
            raise ValueError(
                "A hybrid has as many blocks of attention as of memory, so model.depth must be "
                f"even, got {self.depth}."
            )
        if (self.persistent_tokens or 0) < 0:
            raise ValueError(
                f"model.persistent_tokens must be at least 0, got {self.persistent_tokens}."
            )
        if self.block == "memory" and not self._windowed and self.persistent_tokens:
            raise ValueError(
                "model.persistent_tokens are of sliding-window attention, which "
                f"{self.memory} does not have: leave it out, or set model.hybrid=True."
            )
        if self.block != "memory":
            _ = self.attention  # checks it

    @property
    def head_dim(self) -> int:
        """Channels of the residual stream for each head."""
        return self.dim // self.heads

    @property
    def key_dim(self) -> int:
        """K, channels of a head's keys and queries."""
        return int(self.head_dim * self.layer.key_expansion)

    @property
    def value_dim(self) -> int:
        """V, channels of a head's values."""
        return int(self.head_dim * self.layer.value_expansion)

    @property
    def key_heads(self) -> int:
        """Distinct heads of q and k."""
        return self.layer.key_heads or self.heads

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What the layer makes of each token besides q, k and v."""
        return zoo.row(self.memory).streams

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the SwiGLU."""
        return -(-8 * self.dim // (3 * 64)) * 64 if self.ff_dim is None else self.ff_dim

    @property
    def layer(self) -> LayerOptions:
        """The layer's options: the zoo's, with this configuration's changes."""
        options = zoo.row(self.memory).layer
        return options if self.rotary is None else dataclasses.replace(options, rotary=self.rotary)

    @property
    def block(self) -> BlockKind:
        """What mixes the sequence in a block."""
        if self.hybrid is None:
            return zoo.row(self.memory).block
        return "hybrid" if self.hybrid else "memory"

    @property
    def attention(self) -> "ModelConfig":
        """The configuration of the sliding-window attention that stands beside the memory."""
        count = self.persistent_tokens
        if count is None:
            count = PERSISTENT_TOKENS if self.block in ("mac", "mag", "mal") else 0
        return dataclasses.replace(
            self,
            memory="sliding_window_attention",
            hybrid=False,
            chunk_size=None,
            rotary=None,
            # [recalled, token] for every token of a segment.
            window=2 * self.segment if self.block == "mac" else self.window,
            persistent_tokens=count,
        )

    @property
    def _windowed(self) -> bool:
        return isinstance(zoo.row(self.memory).memory, SlidingWindowAttention)

    def build_memory(self):
        """The memory of every block."""
        choices = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        if self._windowed:
            choices |= {"window": self.window, "persistent": self.persistent_tokens or 0}
        return zoo.get(self.memory, **choices)

    def flops_per_token(self, window: int) -> float:
        """Forward FLOPs a token, averaged over a window of that many tokens; a training step
        costs three times as much. Counts matrix products only, recomputation not."""
        mixing = self._mixing_flops(window)
        if self.block == "hybrid":
            mixing = (mixing + self.attention._mixing_flops(window)) / 2
        elif self.block in ("mag", "mal"):
            mixing += self.attention._mixing_flops(window)
        elif self.block == "mac":
            # Two tokens of attention for each, a recall, its query and its way into the stream.
            mixing += 2 * self.attention._mixing_flops(2 * min(self.segment, window))
            mixing += self._recall_flops()
        block = mixing + 2 * 3 * self.dim * self.hidden_dim
        return self.depth * block + 2 * self.dim * self.vocab_size

    def _mixing_flops(self, window: int) -> float:
        """Of one layer of the memory."""
        options, heads = self.layer, self.heads
        keys, values = self.key_heads * self.key_dim, heads * self.value_dim
        # q and k; v, output and gate.
        outputs = (2 - options.share_query_key) * keys + (2 + options.output_gate) * values
        mixing = 2 * self.dim * outputs + sum(self._stream_flops(stream) for stream in self.streams)
        memory = self.build_memory()
        return mixing + heads * flops.per_token(memory, self.key_dim, self.value_dim, window)

    def _stream_flops(self, stream: Stream) -> float:
        """Of one projection besides q, k and v."""
        channels = {"head": 1, "key": self.key_dim, "value": self.value_dim}[stream.gate.per]
        if stream.is_learned:
            return 0
        if stream.is_low_rank:
            return 2 * self.gate_rank * (self.dim + self.heads * channels)
        return 2 * self.dim * self.heads * channels

    def _recall_flops(self) -> float:
        """Of a read without a write, with its two projections."""
        layers = self.build_memory().layers(self.key_dim, self.value_dim).values()
        read = self.heads * sum(2 * layer.inputs * layer.outputs for layer in layers)
        return 2 * self.dim * self.heads * (self.key_dim + self.value_dim) + read
