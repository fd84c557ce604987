"""Machines by name: `v5e:16x16`, `v5p:4x4x4`, `h100:8`, `cpu:8`."""

import dataclasses
import math
import os
import re

from miras_jax.devices import CHIPS, Chip
from miras_jax.training.errors import UserError

AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "7x": 3}
"""Axes of the torus of each TPU."""
ALIASES = {"tpu7x": "7x", "v7x": "7x"}
LARGEST_2D = 16
"""Chips along an axis of the largest slice of v5e and v6e."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine.

    Attributes:
      kind: a key of `CHIPS`, or "cpu".
      shape: chips along each axis of a torus; of GPUs and emulated devices their number.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As a user writes it."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip | None:
        """The maker's figures; None for emulated devices."""
        return CHIPS.get(self.kind)

    @property
    def platform(self) -> str:
        """Tpu, gpu or cpu, in small letters."""
        return self.chip.platform if self.chip else "cpu"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of devices that jax sees, which the mesh is made of."""
        return self.chips * (self.chip.devices if self.chip else 1)

    @property
    def hosts(self) -> int:
        """Number of hosts, each with a process of the run."""
        if not self.chip:
            return 1
        if self.platform == "tpu":
            return self.chips // math.prod(self.host_bounds)
        return -(-self.chips // self.chip.per_host)

    @property
    def host_bounds(self) -> tuple[int, int, int]:
        """Chips of a TPU host along each axis: 2 x 2, or the slice that is smaller."""
        x, y = (2 if size % 2 == 0 else 1 for size in (*self.shape, 1)[:2])
        return x, y, 1

    @property
    def usable(self) -> float:
        """Bytes that the program may use on each device."""
        if self.chip:
            return self.chip.usable / self.chip.devices
        # Emulated devices share the memory of this machine.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.devices

    def larger(self) -> "Topology | None":
        """The slice of twice as many chips, its shortest axis doubled; None beyond the largest."""
        shape = list(self.shape)
        axis = min(range(len(shape)), key=lambda i: shape[i])
        shape[axis] *= 2
        if AXES.get(self.kind) == 2 and shape[axis] > LARGEST_2D:
            return None
        return dataclasses.replace(self, shape=tuple(shape))


def parse(text: str) -> Topology:
    """Reads a topology.

    Raises:
      UserError: says what is wrong and what would be right.
    """
    kind, colon, sizes = text.lower().partition(":")
    kind = ALIASES.get(kind, kind)
    if kind not in CHIPS and kind != "cpu":
        raise UserError(
            f"--topology {text}: there is no chip {kind!r}; give one of {', '.join(CHIPS)} or cpu,"
            " and how many, as in v5e:16x16, h100:8 or cpu:8"
        )
    axes = AXES.get(kind, 1)
    plural = "axes" if axes > 1 else "axis"
    example = "x".join(["4"] * axes) if axes > 1 else "8"
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise UserError(f"--topology {text}: say how many chips, as in {kind}:{example}")
    shape = tuple(int(size) for size in sizes.split("x"))
    if len(shape) != axes:
        raise UserError(
            f"--topology {text}: {kind} has {axes} {plural}, as in {kind}:{example},"
            f" got {len(shape)}"
        )
    if axes == 2 and max(shape) > LARGEST_2D:
        raise UserError(
            f"--topology {text}: the largest slice of {kind} is {LARGEST_2D}x{LARGEST_2D}"
        )
    return Topology(kind, shape)
