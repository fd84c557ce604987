"""Fused kernels for TPU and GPU behind `memorize(form=...)`.

There are none yet: every memory runs in pure JAX, and `form="pallas_tpu"` or `form="pallas_gpu"`
says so.
"""
