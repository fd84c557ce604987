"""AdamW with a warm-up and a cosine, and the rule that says which parameters decay."""

import re

import jax
import optax

from miras_jax.training.config import TrainConfig

# Weight decay is for the matrices of projections. Norms, biases, convolutions, the embedding and
# the initial memory have a meaning at their own size. Stacked layers carry one more axis, so that
# the number of axes does not tell a matrix from a vector: the names do.
DECAYED = re.compile(r"^(?!.*convolution).*\bkernel\b")


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Returns the map from the number of updates done to the learning rate of the next one."""
    optimizer = config.optimizer
    warmup = optimizer.warmup_steps
    # The last update is made after steps - 1 others: there the cosine must have ended.
    cosine = optax.cosine_decay_schedule(
        optimizer.learning_rate, max(config.steps - warmup - 1, 1), alpha=optimizer.final_fraction
    )
    if not warmup:
        return cosine
    # The first update is one step up from zero, so that none is lost.
    linear = optax.linear_schedule(
        optimizer.learning_rate / warmup, optimizer.learning_rate, max(warmup - 1, 1)
    )
    return optax.join_schedules([linear, cosine], [warmup])


def decay_mask(params):
    """Returns a tree like `params` of bools: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(DECAYED.match(jax.tree_util.keystr(path))), params
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the update rule of the run; gradients are clipped by their global norm first."""
    optimizer = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=optimizer.b1,
            b2=optimizer.b2,
            weight_decay=optimizer.weight_decay,
            mask=decay_mask,
        ),
    )
