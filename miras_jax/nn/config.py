"""The one configuration of a language model."""

import dataclasses
from typing import Literal

from miras_jax import zoo
from miras_jax.memory import Memory, SlidingWindowAttention, flops
from miras_jax.nn.controls import Control, check_control, controlled_memory
from miras_jax.zoo import LayerOptions, Stream
from miras_jax.zoo.row import BlockKind

WINDOW = 2048
"""Tokens that sliding-window attention sees, as in Samba (arXiv 2406.07522)."""
SEGMENT = 256
"""Tokens a segment of Titans' memory as context."""
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
    """Tokens a chunk of the memory, of any model but `transformer`; None takes the zoo's. Train and
    serve at the same size, which counts where `miras zoo NAME` says that the memory is not exact.
    """
    rotary: bool | None = None
    """Rotary positions on q and k, of any model without further keys (as `delta_product` has); None
    takes the zoo's."""
    rotary_base: float = 10_000.0
    """Longest wavelength of the rotary positions, in tokens over 2 pi."""
    gate_rank: int = 32
    """Rank of the projections of gates per channel, of models that have such (`gla`, `rwkv7`)."""
    hybrid: bool | None = None
    """Alternates blocks of the memory with blocks of sliding-window attention; None takes the
    zoo's."""
    window: int | None = None
    """Tokens that sliding-window attention sees, in hybrids, `titans_mag`, `titans_mal` and
    `sliding_window_attention`; None takes 2,048."""
    segment: int | None = None
    """Tokens a segment of `titans_mac`, what its attention sees and between two recalls; None takes
    256."""
    persistent_tokens: int | None = None
    """Learned pairs that attention always sees, in hybrids, `titans_mac`, `titans_mag`,
    `titans_mal` and `sliding_window_attention`; None takes 16 in Titans' blocks and none
    elsewhere."""
    control: Control | None = None
    """Breaks one thing of what the memory does, to see whether it counts: `ascent` steps up the
    gradient, `frozen` never writes, `keys_as_queries` reads what it has just written,
    `shuffled_values` learns values of other tokens, `chunk_start_reads` reads the chunk's start."""
    tie_embeddings: bool = True
    """Uses the embedding as the output layer."""
    readout: Literal["token", "last"] = "token"
    """What predicts: each token what follows it, or the row's last token all tokens of the row, for
    the task of compression."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of projections and residual stream; parameters and memories stay float32."""
    remat: bool = True
    """Recomputes each block in the backward pass instead of storing its activations."""

    def __post_init__(self):
        check_control(self.control, self.memory, zoo.row(self.memory).memory)
        counts = ("vocab_size", "dim", "depth", "heads", "gate_rank", "ff_dim", "window", "segment")
        for name in counts:
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"model.{name} must be at least 1, got {count}.")
        if self.readout not in ("token", "last"):
            raise ValueError(f"model.readout must be token or last, got {self.readout!r}.")
        if not self.rotary_base > 0:
            raise ValueError(f"model.rotary_base must be positive, got {self.rotary_base}.")
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}.")
        self._check_widths()
        self._check_blocks()
        self._check_layer()

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

    def _check_layer(self):
        """What the layer does round the memory, against what the memory can take."""
        if self.chunk_size is not None and not hasattr(zoo.row(self.memory).memory, "chunk_size"):
            raise ValueError(
                f"model.chunk_size is for memories with chunks, which {self.memory} does not have: "
                "leave it out."
            )
        options, memory = self.layer, self.build_memory()
        further = [n for n, gate in memory.gates.items() if gate.per == "key" and gate.is_input]
        if options.rotary and further:
            raise ValueError(
                f"Rotary positions turn q and k, but {self.memory} has further keys "
                f"({', '.join(further)}), which would stay as they are and no longer meet q and k: "
                "leave model.rotary out."
            )
        of_chunk = [stream.name for stream in self.streams if stream.of_chunk]
        if options.rotary and options.rotary_within == "chunk":
            of_chunk.append("rotary_within='chunk'")
        if of_chunk and memory.exact:
            raise ValueError(
                f"The layer of {self.memory} needs each token's place in its chunk "
                f"({', '.join(of_chunk)}), but its memory is exact and keeps no grid of chunks: "
                "count from the document, or choose a memory whose chunk_size counts."
            )
        convolved = ["query", "key", "value", *(s.name for s in self.streams if s.is_input)]
        if unknown := sorted(set(options.not_convolved) - set(convolved)):
            raise ValueError(
                f"The layer of {self.memory} leaves {', '.join(unknown)} without a convolution "
                f"(not_convolved), but makes only {', '.join(convolved)}."
            )

    def _check_blocks(self):
        row = zoo.row(self.memory)
        if self.hybrid and row.block in ("mac", "mag", "mal"):
            raise ValueError(
                f"model.hybrid=True is for rows of a memory alone, but {self.memory} has attention "
                "in every block: leave it out."
            )
        if self.block == "hybrid" and self.depth % 2:
            raise ValueError(
                "A hybrid has as many blocks of attention as of memory, so model.depth must be "
                f"even, got {self.depth}."
            )
        recalls = isinstance(row.memory, Memory) and not row.memory.architecture.gates
        if self.block == "mac" and not recalls:
            raise ValueError(
                f"{self.memory} is of the block 'mac', which reads its memory between two tokens; "
                "that takes a memory that learns and whose architecture reads without gates."
            )
        if (self.persistent_tokens or 0) < 0:
            raise ValueError(
                f"model.persistent_tokens must be at least 0, got {self.persistent_tokens}."
            )
        attends = self._windowed or self.block != "memory"
        used = {
            "window": ("a sliding window", attends and self.block != "mac"),
            "segment": ("segments, as in titans_mac", self.block == "mac"),
            "persistent_tokens": ("attention with persistent tokens", attends),
        }
        hint = "leave it out, or set model.hybrid=True."
        for name, (owner, here) in used.items():
            if getattr(self, name) is not None and not here:
                raise ValueError(
                    f"model.{name} is for models with {owner}, which {self.memory} does not have: "
                    + ("leave it out." if attends or name == "segment" else hint)
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
        kind = zoo.row(self.memory).block
        if self.hybrid is None or kind in ("mac", "mag", "mal"):
            return kind
        return "hybrid" if self.hybrid else "memory"

    @property
    def window_size(self) -> int:
        """Tokens that sliding-window attention sees."""
        return WINDOW if self.window is None else self.window

    @property
    def segment_size(self) -> int:
        """Tokens a segment of the memory as context."""
        return SEGMENT if self.segment is None else self.segment

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
            control=None,
            chunk_size=None,
            rotary=None,
            # [recalled, token] for every token of a segment.
            window=2 * self.segment_size if self.block == "mac" else self.window_size,
            segment=None,
            persistent_tokens=count,
        )

    @property
    def _windowed(self) -> bool:
        return isinstance(zoo.row(self.memory).memory, SlidingWindowAttention)

    def build_memory(self):
        """The memory of every block."""
        choices = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        if self._windowed:
            choices |= {"window": self.window_size, "persistent": self.persistent_tokens or 0}
        return controlled_memory(self.control, zoo.get(self.memory, **choices))

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
            mixing += 2 * self.attention._mixing_flops(2 * min(self.segment_size, window))
            mixing += self._recall_flops()
        block = mixing + 2 * 3 * self.dim * self.hidden_dim
        readout = 4 * self.dim**2 if self.readout == "last" else 0
        return self.depth * block + readout + 2 * self.dim * self.vocab_size

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
