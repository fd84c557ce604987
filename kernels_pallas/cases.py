"""What is proved: the memories, sizes, types and chips that kernels are compiled for.

Data alone. `experiments/kernel_cases.py` makes the function of a case; `make prove-tpu` and
`make prove-gpu` compile them, `experiments/prove_kernels.py` writes the figures down.
"""

from typing import Literal, NamedTuple

LINEAR = (
    "linear_attention retnet lightning_attention gla mamba2 hgrn2 deltanet gated_deltanet kda "
    "comba gdn2 rwkv7"
).split()
DEEP = "ttt_mlp titans moneta yaad memora".split()
ALIKE = ("lightning_attention", "mamba2", "hgrn2")
"""Rows whose kernels are those of an earlier row, retnet and gla, with the same inputs."""
PASSES = ("forward", "backward", "decode")


class Case(NamedTuple):
    """A program that must compile.

    Attributes:
      row: of the zoo.
      what: "forward", "backward" (the gradient by parameters and inputs, forward pass included) or
        "decode" (one token, the state in place).
      backend: "tpu" or "gpu".
      chips: keys of `aot_tpu.TOPOLOGIES` or `aot_gpu.DEVICES`.
      width: key_dim and value_dim.
      chunk_size: tokens whose gradients are taken at one memory; of no meaning for rows that are
        the same function at every chunk size.
      dtype: of q, k and v; gates are float32.
      packed: continues a given state, with documents that begin anywhere.
      every_time: part of the tests that run at every change.
    """

    row: str
    what: Literal["forward", "backward", "decode"]
    backend: Literal["tpu", "gpu"]
    chips: tuple[str, ...]
    width: int = 64
    chunk_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    packed: bool = False
    every_time: bool = True

    @property
    def name(self) -> str:
        """The case in words; cases that differ in their chips alone share it."""
        packed = " packed" if self.packed else ""
        sizes = f"width={self.width} chunk={self.chunk_size}"
        return f"{self.backend} {self.row} {self.what} {sizes} {self.dtype}{packed}"

    @property
    def jobs(self) -> list[str]:
        """What `aot.prove` takes: the case on each of its chips."""
        return [f"{self.name}@{chip}" for chip in self.chips]


def _tpu(row: str) -> list[Case]:
    cases = []
    for what in PASSES:
        cases += [
            Case(row, what, "tpu", ("v5e", "v5p", "v6e")),
            Case(row, what, "tpu", ("v5e",), width=128, every_time=row in DEEP),
            Case(row, what, "tpu", ("v5p", "v6e"), width=128, every_time=False),
            Case(row, what, "tpu", ("v5e",), dtype="float32"),
            Case(row, what, "tpu", ("v5e", "v6e"), width=128, dtype="float32", every_time=False),
            Case(row, what, "tpu", ("v5e",), packed=True, every_time=what == "backward"),
        ]
    if row in DEEP:  # the zoo's own chunk
        cases += [Case(row, "backward", "tpu", ("v5e", "v5p", "v6e"), chunk_size=16)]
    return cases


def _gpu(row: str) -> list[Case]:
    cases = []
    for what in PASSES:
        # Assembling what spills takes minutes: most backward passes wait for the night.
        quick = row in ("linear_attention", "retnet") if what == "backward" else row in LINEAR
        cases += [
            Case(
                row, what, "gpu", ("h200",), every_time=quick or (row, what) == ("yaad", "decode")
            ),
            Case(row, what, "gpu", ("h200",), width=128, every_time=False),
            Case(row, what, "gpu", ("h200",), packed=True, every_time=False),
        ]
    return cases


CASES = tuple(
    case._replace(every_time=case.every_time and case.row not in ALIKE)
    for row in (*LINEAR, *DEEP)
    for case in (*_tpu(row), *_gpu(row))
)


def select(backend: str, every_time: bool | None = None, rows: tuple[str, ...] = ()) -> list[Case]:
    """The cases of a back end; only those of the tests at every change if `every_time`, of the
    given rows if there are any."""
    return [
        case
        for case in CASES
        if case.backend == backend
        and (not every_time or case.every_time)
        and (not rows or case.row in rows)
    ]


def find(name: str) -> Case:
    """The case of a name."""
    return {case.name: case for case in CASES}[name]
