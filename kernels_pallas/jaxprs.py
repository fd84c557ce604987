"""Calls inside traced functions, by the names that the versions of jax give them."""

from typing import Any

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "eval_jaxpr", "remat2", "checkpoint",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Names that a call's function goes by."""


def called(eqn: Any) -> Any | None:
    """The jaxpr, closed or not, that an equation calls once with its arguments; None for others."""
    if eqn.primitive.name not in CALLS:
        return None
    (jaxpr,) = (eqn.params[key] for key in CALLED if key in eqn.params)
    return jaxpr
