"""What a run has been trained on so far: a checksum of all batches, and which were left out.

It is kept beside every checkpoint. Two runs whose records agree in `data/batches_crc32` at a step
have read the same windows in the same batches up to there, however often they were restarted: none
twice, none left out.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass
class Ledger:
    """The account of a run.

    Attributes:
      checksum: CRC-32 of the windows of all batches since the first step, each batch sorted, so
        that it does not depend on which process read which row.
      skipped: batches whose update was not finite and left out.
      skipped_in_a_row: those of them that came last.
    """

    checksum: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    @classmethod
    def restored(cls, saved: Mapping[str, int]) -> "Ledger":
        """The account that `saved` returned, or a new one of an empty mapping."""
        return cls(**saved)

    def saved(self) -> dict[str, int]:
        """As plain numbers, for the metadata of a checkpoint."""
        return dataclasses.asdict(self)

    def enter(self, windows: np.ndarray) -> dict[str, str]:
        """Enters a batch, int64 [rows] of `windows_of`, and returns its figures for the record."""
        content = windows.tobytes()
        self.checksum = zlib.crc32(content, self.checksum)
        return {
            "data/index_crc32": f"{zlib.crc32(content):08x}",
            "data/batches_crc32": f"{self.checksum:08x}",
        }

    def count(self, skipped: bool) -> int:
        """Counts a step as skipped or not; returns how many have been in a row."""
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return self.skipped_in_a_row


def shared_index(index: np.ndarray, rows: NamedSharding) -> Any:
    """Begins to collect the windows of a batch from all processes, for `windows_of`.

    Args:
      index: int64 [rows of this process].
      rows: how the rows of a batch lie on the mesh.
    """
    if jax.process_count() == 1:
        return index
    words = np.ascontiguousarray(index, np.int64).view(np.uint32).reshape(-1, 2)
    return _on_all(rows.mesh)(jax.make_array_from_process_local_data(rows, words))


def windows_of(index: Any) -> np.ndarray:
    """The windows of a batch, int64 [rows] and sorted, of what `shared_index` returned."""
    index = np.asarray(index)
    if index.dtype == np.uint32:  # jax has no 64 bits unless it is told to
        index = np.ascontiguousarray(index).view(np.int64).reshape(-1)
    return np.sort(np.asarray(index, np.int64))


@functools.cache
def _on_all(mesh: jax.sharding.Mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
