"""Sampling: read the prompt in blocks, then one token at a time from the memory's state."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from miras_jax.nn.model import LanguageModel, ModelState

PREFILL = 256
"""Prompt tokens read at once; the rest of a prompt is read in ever halved pieces."""


def generate(
    model: LanguageModel,
    prompt: np.ndarray,
    *,
    steps: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Continues a prompt of any length, longer than the training window too.

    Args:
      model: the model.
      prompt: int `[P]`, P >= 1.
      steps: tokens to sample.
      key: random key; the same key gives the same tokens.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keeps the k likeliest tokens.
      top_p: keeps the likeliest tokens up to that total probability, in (0, 1].
      vocab_size: tokens that there are, where the model's own number is rounded up: no id from
        here on is drawn. None draws any.

    Yields:
      one token id at a time.

    Raises:
      ValueError: an empty prompt, an id outside the vocabulary, or an option out of range.
    """
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 1 or prompt.size == 0:
        raise ValueError(f"The prompt needs at least one token, got shape {prompt.shape}.")
    if prompt.min() < 0 or prompt.max() >= model.config.vocab_size:
        raise ValueError(f"Prompt ids must be in 0 .. {model.config.vocab_size - 1}.")
    if model.config.readout != "token":
        raise ValueError("This model tells the row that it reads, and nothing that follows it.")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}.")
    return _generate(model, prompt, steps, key, temperature, top_k, top_p, vocab_size)


def _generate(model, prompt, steps, key, temperature, top_k, top_p, vocab_size):
    state = model.init_state(1, capacity=prompt.size + steps)
    logits, state = prefill(model, prompt[None], state)
    for step in range(steps):
        known = logits[:, :vocab_size]
        token = sample(jax.random.fold_in(key, step), known, temperature, top_k, top_p)
        yield int(token[0])
        if step + 1 < steps:
            logits, state = _read(model, token[:, None], state)


def prefill(model: LanguageModel, tokens: np.ndarray, state: ModelState):
    """Reads tokens `[B, P]` and returns the last logits `[B, vocab]` and the state.

    Pieces have power-of-two lengths up to `PREFILL`, so that prompts of all lengths share a
    handful of compiled functions.
    """
    done, size = 0, PREFILL
    while done < tokens.shape[1]:
        while size > tokens.shape[1] - done:
            size //= 2
        logits, state = _read(model, jnp.asarray(tokens[:, done : done + size]), state)
        done += size
    return logits, state


@partial(jax.jit, donate_argnums=2)
def _read(model, tokens, state):
    logits, state = model(tokens, state)
    return logits[:, -1], state


@partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def sample(
    key: jax.Array,
    logits: jax.Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> jax.Array:
    """Draws token ids `[B]` from logits `[B, vocab]`; the options as in `generate`."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered), axis=-1) - jax.nn.softmax(ordered)
        least = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits)
