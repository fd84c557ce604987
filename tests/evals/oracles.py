"""Models whose scores are known: what the evaluators are tested with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


class Uniform:
    """Every token is as likely as any other; no pytree."""

    def __init__(self, vocab_size: int = 257):
        self.vocab_size = vocab_size

    def init_state(self, batch, capacity=None):
        return ()

    def __call__(self, tokens, state=None, segment_ids=None):
        return jnp.zeros((*tokens.shape, self.vocab_size)), state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Order0:
    """Each token as likely as it is frequent; a pytree."""

    logits: jax.Array

    @classmethod
    def of(cls, ids: np.ndarray, vocab_size: int = 257) -> "Order0":
        counts = np.bincount(ids, minlength=vocab_size)
        return cls(jnp.log(jnp.asarray(counts / counts.sum())))

    def init_state(self, batch, capacity=None):
        return ()

    def __call__(self, tokens, state=None, segment_ids=None):
        return jnp.broadcast_to(self.logits, (*tokens.shape, len(self.logits))), state


class Copy:
    """Says the token that came `period` tokens before; uniform at the first `period` places of a
    document after its first token, which may be a separator."""

    def __init__(self, period: int, vocab_size: int = 257):
        self.period, self.vocab_size = period, vocab_size

    def init_state(self, batch, capacity=None):
        """The last tokens, tokens read of the document, the document; -1 before any."""
        shape = (batch, self.period)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(batch, jnp.int32), -jnp.ones(batch, jnp.int32)

    def __call__(self, tokens, state=None, segment_ids=None):
        batch, total = tokens.shape
        last, read, segment = self.init_state(batch) if state is None else state
        index = jnp.arange(total)
        position = jnp.broadcast_to(read[:, None] + index, tokens.shape)
        if segment_ids is not None:
            previous = jnp.concatenate([segment[:, None], segment_ids[:, :-1]], axis=1)
            resets = (previous != segment_ids) & (previous >= 0)
            first = jax.lax.cummax(jnp.where(resets, index, -1), axis=1)
            position = jnp.where(first < 0, position, index - first)
            segment = segment_ids[:, -1]
        seen = jnp.concatenate([last, tokens], axis=1)
        said = jax.nn.one_hot(seen[:, 1 : total + 1], self.vocab_size)
        # exp(-100) for each of the others is nothing in float32.
        logits = jnp.where((position >= self.period)[..., None], 100 * said, 0.0)
        return logits, (seen[:, total:], position[:, -1] + 1, segment)
