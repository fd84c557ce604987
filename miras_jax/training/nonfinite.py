"""A step whose loss, gradient or update is not finite can be left out, inside the compiled step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# What must be finite: a norm is, if and only if all it is made of is, and does not overflow.
WATCHED = ("train/loss", "train/grad_norm", "train/update_norm")


def keep_finite(before: Any, after: Any, metrics: Mapping[str, jax.Array]) -> Any:
    """Returns the state `after` a step, or the one `before`, bit for bit, where a figure of
    `WATCHED` is not finite. A choice by one scalar, on the device: the host need not wait."""
    finite = jnp.all(jnp.isfinite(jnp.stack([metrics[name] for name in WATCHED])))
    return jax.tree.map(lambda old, new: jnp.where(finite, new, old), before, after)
