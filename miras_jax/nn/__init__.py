"""Flax NNX models whose sequence mixing is a memory of the zoo."""

from miras_jax.nn import partition, sizes
from miras_jax.nn.config import ModelConfig
from miras_jax.nn.generation import generate
from miras_jax.nn.memory_layer import MemoryLayer
from miras_jax.nn.model import LanguageModel, ModelState, reconfigured

__all__ = [
    "LanguageModel",
    "MemoryLayer",
    "ModelConfig",
    "ModelState",
    "generate",
    "partition",
    "reconfigured",
    "sizes",
]
