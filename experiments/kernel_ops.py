"""What is benchmarked: rows of the zoo at sizes that models have. Data alone."""

from typing import Literal, NamedTuple


class Op(NamedTuple):
    """A read of a memory, timed forward and forward and backward.

    Attributes:
      row: of the zoo.
      group: ops that are shown together.
      batch, tokens, heads: B, T, H.
      width: key and value width.
      dtype: of q, k and v; gates are float32.
      chunk_size: tokens whose gradients are taken at one memory; of no meaning for rows that are
        the same function at every chunk size.
    """

    row: str
    group: Literal["decays by head", "decays by channel", "delta rule", "deep memory"]
    batch: int
    tokens: int
    heads: int
    width: int
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    chunk_size: int = 64

    @property
    def name(self) -> str:
        """The op in words."""
        sizes = f"B={self.batch} T={self.tokens} H={self.heads} D={self.width}"
        return f"{self.row} {sizes} {self.dtype}"


LINEAR = {
    "linear_attention": "decays by head",
    "mamba2": "decays by head",
    "gla": "decays by channel",
    "deltanet": "delta rule",
    "gated_deltanet": "delta rule",
    "kda": "delta rule",
    "rwkv7": "delta rule",
}
DEEP = ("ttt_mlp", "titans", "moneta", "yaad", "memora")
"""With a hidden layer four times as wide as keys and values."""

LINEAR_SIZES = (
    (1, 8192, 96, 128),
    (2, 16384, 16, 128),
    (4, 2048, 16, 128),
    (4, 4096, 64, 128),
    (8, 1024, 8, 64),
    (4, 4096, 16, 64),
)
DEEP_SIZES = ((4, 4096, 16, 64), (1, 8192, 8, 64))
"""B, T, H and width of a key and a value."""

OPS = (
    *(Op(row, group, *sizes) for row, group in LINEAR.items() for sizes in LINEAR_SIZES),
    *(Op(row, "deep memory", *sizes) for row in DEEP for sizes in DEEP_SIZES),
)
SMALL = (
    *(Op(row, group, 2, 256, 2, 32, "float32", 16) for row, group in LINEAR.items()),
    *(Op(row, "deep memory", 2, 256, 2, 16, "float32", 16) for row in DEEP),
)
"""The same at sizes that any machine runs, to try the benchmark itself."""

CPU_LENGTHS = (1, 16, 64, 256, 1024, 4096)
CPU_SIZES = (2, 4, 64)
"""B, H and width of the forms that are compared on a CPU, in float32."""
