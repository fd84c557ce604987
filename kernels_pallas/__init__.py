"""Fused kernels for TPU and GPU behind `memorize(form=...)`: a chunk function and its drivers.

A *step* (`step.py`) is the chunk function of one head: `linear.py` for matrix memories, `deep.py`
for the library's own `chunk_step`, `token.py` for decoding. A *driver* (`tpu.py`, `gpu.py`) loops a
step over the chunks of a row with its state on chip, forward and backward. `dispatch.py` says which
memory runs where, and on what proof.
"""

from kernels_pallas.dispatch import override

__all__ = ["override"]
