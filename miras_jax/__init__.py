"""Sequence models that learn while they read: the Miras framework in JAX.

`memory` and `zoo` need jax and optax alone; the Flax models are in `miras_jax.nn`.
"""

from miras_jax import memory, zoo
from miras_jax.memory import Memory, memorize

__version__ = "0.1.0"

__all__ = ["Memory", "__version__", "memorize", "memory", "zoo"]
