"""Memories that are trained at test time, as pure functions over arrays (jax only)."""

from miras_jax.memory.algorithm import GradientDescent, Momentum
from miras_jax.memory.architecture import MLP, Matrix
from miras_jax.memory.attention import Attention, AttentionState
from miras_jax.memory.bias import L1, L2, DotProduct, Huber, Lp
from miras_jax.memory.gate import Gate, log_decay
from miras_jax.memory.memorize import memorize
from miras_jax.memory.memory import Memory, Parameters, State
from miras_jax.memory.retention import KL, L2Decay, Lq, NoRetention, Retention

__all__ = [
    "KL",
    "L1",
    "L2",
    "MLP",
    "Attention",
    "AttentionState",
    "DotProduct",
    "Gate",
    "GradientDescent",
    "Huber",
    "L2Decay",
    "Lp",
    "Lq",
    "Matrix",
    "Memory",
    "Momentum",
    "NoRetention",
    "Parameters",
    "Retention",
    "State",
    "log_decay",
    "memorize",
]
