"""Memories that are trained at test time, as pure functions over arrays (jax and optax only)."""

from miras_jax.memory.algorithm import (
    Decoupled,
    GradientDescent,
    Implicit,
    Momentum,
    Removal,
    SeveralSteps,
)
from miras_jax.memory.architecture import (
    MLP,
    Architecture,
    Entries,
    Matrix,
    NormalEquations,
    SwiGLU,
    Vector,
)
from miras_jax.memory.attention import Attention, AttentionState
from miras_jax.memory.bias import L1, L2, Bias, DotProduct, Huber, Lp, Robust
from miras_jax.memory.chunk_algorithm import ChunkDescent, Muon, Optax
from miras_jax.memory.gate import Gate, log_decay
from miras_jax.memory.links import (
    KL,
    Bregman,
    ChiSquared,
    ElasticNet,
    FDivergence,
    KLDivergence,
    Logit,
    Lq,
    Sphere,
)
from miras_jax.memory.memorize import memorize
from miras_jax.memory.memory import Memory, Parameters, State
from miras_jax.memory.recall import recall
from miras_jax.memory.recurrent import Diagnostics
from miras_jax.memory.retention import L2Decay, NoRetention, Retention
from miras_jax.memory.sharded import memorize_on_mesh, memorize_sharded
from miras_jax.memory.window import SlidingWindowAttention, WindowState

__all__ = [
    "KL",
    "L1",
    "L2",
    "MLP",
    "Architecture",
    "Attention",
    "AttentionState",
    "Bias",
    "Bregman",
    "ChiSquared",
    "ChunkDescent",
    "Decoupled",
    "Diagnostics",
    "DotProduct",
    "ElasticNet",
    "Entries",
    "FDivergence",
    "Gate",
    "GradientDescent",
    "Huber",
    "Implicit",
    "KLDivergence",
    "L2Decay",
    "Logit",
    "Lp",
    "Lq",
    "Matrix",
    "Memory",
    "Momentum",
    "Muon",
    "NoRetention",
    "NormalEquations",
    "Optax",
    "Parameters",
    "Removal",
    "Retention",
    "Robust",
    "SeveralSteps",
    "SlidingWindowAttention",
    "Sphere",
    "State",
    "SwiGLU",
    "Vector",
    "WindowState",
    "log_decay",
    "memorize",
    "memorize_on_mesh",
    "memorize_sharded",
    "recall",
]
