"""One training step and one evaluation step as pure functions of arrays."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from miras_jax.nn import LanguageModel
from miras_jax.nn.partition import BATCH, constrain
from miras_jax.training.config import TrainableConfig
from miras_jax.training.nonfinite import keep_finite
from miras_jax.training.state import State
from miras_jax.training.trainable import EVERYTHING, combine, split

Batch = dict[str, jax.Array]

# The groups of parameters whose norms are recorded, by path; the first match decides.
GROUPS: tuple[tuple[str, str], ...] = (
    ("lora", r"\blora_[ab]\b"),
    ("embeddings", r"embedding"),
    ("head", r"\bhead\b"),
    ("convolutions", r"convolution"),
    ("gates", r"\bgates\b"),
    ("starts", r"\bstart\b"),  # what a memory begins with, and persistent tokens
    ("norms", r"norm\b.*(scale|bias)"),
    ("coefficients", r"\b(learned|shift)\b"),  # learned numbers of the memories beside the gates
    ("projections", r"kernel"),
    ("others", r""),
)


def nats(params: LanguageModel, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sums the cross-entropy of every next token over a batch.

    Args:
      params: the model.
      batch: `tokens` int32 [B, T + 1] and, optionally, `mask` float32 [B, T], the weight of each
        target (default 1), `targets` int32 [B, T] where they are not `tokens[:, 1:]`, and
        `segment_ids` int32 [B, T], the documents of a packed row.

    Returns:
      The weighted sum in nats and the sum of the weights, both float32 [].
    """
    tokens = batch["tokens"]
    targets = batch.get("targets", tokens[:, 1:])
    weights = batch["mask"] if "mask" in batch else jnp.ones(targets.shape, jnp.float32)
    logits, _ = params(tokens[:, :-1], segment_ids=batch.get("segment_ids"))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    return jnp.sum(losses * weights), jnp.sum(weights)


def microbatches(batch: Batch, count: int) -> Batch:
    """Cuts [B, ...] into [count, B / count, ...].

    Every count-th row goes to the same microbatch, so that all rows stay on their device.
    """

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, BATCH)

    return jax.tree.map(cut, batch)


def group_norms(tree: Any) -> dict[str, jax.Array]:
    """Returns the l2 norm, float32 [], of each of the `GROUPS` that has leaves in `tree`, which is
    shaped like the parameters."""
    leaves: dict[str, list[jax.Array]] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        group = next(group for group, pattern in GROUPS if re.search(pattern, name))
        leaves.setdefault(group, []).append(x)
    return {group: optax.tree.norm(leaves[group]) for group, _ in GROUPS if group in leaves}


def train_step(
    state: State,
    batch: Batch,
    *,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int = 1,
    shardings: Any = None,
    skip_nonfinite: bool = False,
    trainable: TrainableConfig = EVERYTHING,
) -> tuple[State, dict[str, jax.Array]]:
    """Makes one update from one batch.

    Losses, weights and gradients are summed over the microbatches and divided once, so that cutting
    a batch, evenly weighted or not, changes nothing but rounding.

    Args:
      state: the state before; donate it.
      batch: see `nats`; B must be a multiple of `accumulation`.
      optimizer: the update rule.
      schedule: updates done -> learning rate, for the record only.
      accumulation: number of microbatches.
      shardings: of `state.params`, to keep summed gradients where their parameters live; None
        without a mesh.
      skip_nonfinite: return the state before where the loss or a whole norm is not finite.
      trainable: which parameters are updated; the others get no gradient at all.

    Returns:
      The state after and float32 scalars: `train/loss` (nats per token), `train/grad_norm` (before
      clipping), `train/update_norm`, `train/learning_rate`, and both norms by group of parameters
      as `train/grad_norm/GROUP` and `train/update_norm/GROUP`, see `GROUPS`.
    """
    trained, frozen = split(state.params, trainable)
    places = split(shardings, trainable)[0]

    def weighted_loss(trained, microbatch):
        return nats(combine(trained, frozen), microbatch)

    def gather(total, microbatch):
        (loss, weight), grads = jax.value_and_grad(weighted_loss, has_aux=True)(trained, microbatch)
        total = jax.tree.map(jnp.add, total, (loss, weight, grads))
        return (*total[:2], place(total[2])), None

    def place(grads):
        return grads if shardings is None else jax.lax.with_sharding_constraint(grads, places)

    zero = (jnp.zeros(()), jnp.zeros(()), place(jax.tree.map(jnp.zeros_like, trained)))
    (loss, weight, grads), _ = jax.lax.scan(gather, zero, microbatches(batch, accumulation))
    loss, grads = loss / weight, jax.tree.map(lambda g: g / weight, grads)

    updates, opt = optimizer.update(grads, state.opt, trained)
    metrics = {
        "train/loss": loss,
        "train/grad_norm": optax.tree.norm(grads),
        "train/update_norm": optax.tree.norm(updates),
        "train/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    for name, tree in (("train/grad_norm", grads), ("train/update_norm", updates)):
        metrics |= {f"{name}/{group}": norm for group, norm in group_norms(tree).items()}
    params = combine(optax.apply_updates(trained, updates), frozen)
    after = State(step=state.step + 1, params=params, opt=opt)
    return keep_finite(state, after, metrics) if skip_nonfinite else after, metrics


def evaluation_step(
    params: LanguageModel, batch: Batch, *, accumulation: int = 1
) -> dict[str, jax.Array]:
    """Sums up one held-out batch, see `nats`, one microbatch after the other, so that it takes no
    more memory than training.

    Returns:
      float32 []: `nats` and `tokens` (targets).
    """

    def gather(total, microbatch):
        return jax.tree.map(jnp.add, total, nats(params, microbatch)), None

    zero = jnp.zeros(()), jnp.zeros(())
    (loss, tokens), _ = jax.lax.scan(gather, zero, microbatches(batch, accumulation))
    return {"nats": loss, "tokens": tokens}
