"""What a run has been trained on so far: a checksum of all batches, and which were left out.

It is kept beside every checkpoint. Two runs whose records agree in `data/batches_crc32` at a step
have read the same windows in the same batches up to there, however often they were restarted: none
twice, none left out.
"""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass
class Ledger:
    """The account of a run.

    Attributes:
      checksum: CRC-32 of the windows of all batches since the first step.
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
        """Enters a batch, the numbers int64 [rows] of its windows, of all processes, and returns
        its figures for the record."""
        content = np.ascontiguousarray(windows, np.int64).tobytes()
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
