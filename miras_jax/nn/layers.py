"""The small layers: causal convolution, token shift, rotary positions, gates, SwiGLU."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from miras_jax.nn import partition
from miras_jax.zoo import Stream


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: jnp.dtype, scale: float = 1.0):
    """A projection without bias: float32 kernel `[inputs, outputs]` of variance scale^2 / inputs,
    computed in `dtype`."""
    init = nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)


ACTIVATIONS = {
    "identity": lambda x: x,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


def lagged(
    x: jax.Array,
    before: jax.Array | None,
    document: jax.Array | None,
    past: int,
    channels: str | None = None,
) -> tuple[list[jax.Array], jax.Array]:
    """What each token sees of the `past` tokens before it.

    Args:
      x: the tokens `[B, T, channels]`.
      before: the `past` tokens before them `[B, past, channels]`; None for zeros.
      document: int `[B, T]`, counted up from 0, the document of `before`; a token sees only its own
        document, and zeros beyond. None is one document.
      past: how far back.
      channels: the mesh axis over which the channels lie, if any.

    Returns:
      x as it was 0, 1 .. `past` tokens earlier, and the tokens that the next call needs before its
      own.
    """
    total = x.shape[1]
    if before is None:
        before = jnp.zeros((x.shape[0], past, x.shape[2]), x.dtype)
    same = None
    if document is not None:
        document = jnp.pad(document, ((0, 0), (past, 0)))
        there = [document[:, past - lag : past - lag + total] for lag in range(past + 1)]
        same = [lagging == document[:, past:] for lagging in there]
    seen, after = _views(x, before.astype(x.dtype), same, past, channels)
    if document is not None:
        after = jnp.where((document[:, total:] == document[:, -1:])[..., None], after, 0)
    return seen, after


def _views(x, before, same, past, channels):
    """`lagged` with what each view keeps already told. Where the tokens lie over several devices,
    each gets the last `past` of the device before it."""

    def views(x, before, same):
        total = x.shape[1]
        padded = jnp.concatenate([before, x], axis=1)
        seen = [padded[:, past - lag : past - lag + total] for lag in range(past + 1)]
        if same is not None:
            pairs = zip(seen, same, strict=True)
            seen = [jnp.where(keep[..., None], view, 0) for view, keep in pairs]
        return seen, padded[:, total:]

    axis = partition.sequence(x.shape[1])
    if axis is None:
        return views(x, before, same)
    parts = partition.axis_size(axis)
    if x.shape[2] % partition.axis_size(channels or ""):
        channels = None
    if x.shape[1] // parts < past:
        # The tokens would come from further than the next device: so few are gathered.
        return views(partition.constrain(x, partition.BATCH, None, channels), before, same)

    def part(x, before, same):
        index, tail = jax.lax.axis_index(axis), x[:, -past:]
        previous = jax.lax.ppermute(tail, axis, [(i, i + 1) for i in range(parts - 1)])
        seen, _ = views(x, jnp.where(index == 0, before, previous), same)
        return seen, jax.lax.psum(jnp.where(index == parts - 1, tail, 0), axis)

    tokens = P(partition.BATCH, axis, channels)
    last = P(partition.BATCH, None, channels)
    specs = (tokens, last, P(partition.BATCH, axis))
    return jax.shard_map(part, in_specs=specs, out_specs=(tokens, last), check_vma=False)(
        x, before, same
    )


class ShortConvolution(nnx.Module):
    """Depthwise causal convolution over the last `width` tokens, then an activation."""

    def __init__(self, channels: int, *, width: int = 4, activation: str = "silu", rngs: nnx.Rngs):
        self.width, self.activation = width, activation
        bound = width**-0.5
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (width, channels), minval=-bound, maxval=bound)
        )

    def __call__(
        self, x: jax.Array, before: jax.Array | None, document: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Convolves x `[B, T, channels]`; the arguments and the second result as in `lagged`."""
        kernel = self.kernel[...].astype(x.dtype)
        seen, after = lagged(x, before, document, self.width - 1, "tensor")
        y = sum(view * weights for view, weights in zip(seen, kernel[::-1], strict=True))
        return ACTIVATIONS[self.activation](y), after


class TokenShift(nnx.Module):
    """Mixes each token with the one before it, in a learned proportion per channel for each reader
    (Peng et al., arXiv 2503.14456, Eq. 3)."""

    def __init__(self, readers: Iterable[str], dim: int):
        # From all of the token before to none of it, so that the channels differ from the start.
        self.mix = nnx.Dict({name: nnx.Param(1 - jnp.arange(dim) / dim) for name in readers})

    def __call__(
        self, x: jax.Array, before: jax.Array | None, document: jax.Array | None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """What each reader gets of x `[B, T, dim]`, and the last token as `[B, 1, dim]`; the
        arguments as in `lagged`."""
        (_, previous), after = lagged(x, before, document, 1)
        change = previous - x
        mixed = {name: x + change * mix[...].astype(x.dtype) for name, mix in self.mix.items()}
        return mixed, after


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions (Su et al., arXiv 2104.09864): turns each pair (i, i + K/2) of x
    `[B, T, H, K]` by `positions [B, T]` times base^(-2i/K)."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class GateProjection(nnx.Module):
    """A gate from the token, in float32: linear per head, through a low rank per channel.

    The last kernel of a gate with a range starts at zero, so that it starts at its initial value.
    """

    def __init__(
        self, stream: Stream, dim: int, heads: int, channels: int, rank: int, rngs: nnx.Rngs
    ):
        gate = stream.gate
        self.gate, self.heads, self.hidden = gate, heads, stream.hidden or "identity"
        self.low_rank = stream.is_low_rank
        if self.low_rank:
            self.reduce = linear(dim, rank, rngs, jnp.float32)
        count = 1 if gate.per == "head" else channels
        zeros, normal = nnx.initializers.zeros, nnx.initializers.lecun_normal()
        self.expand = nnx.Linear(
            rank if self.low_rank else dim,
            heads * count,
            kernel_init=normal if gate.is_input else zeros,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.expand.bias[...] = jnp.repeat(
            jnp.asarray(gate.initial_logits(heads), jnp.float32), count
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Values `[B, T, H]` or `[B, T, H, channels]` for x `[B, T, dim]`."""
        x = x.astype(jnp.float32)
        if self.low_rank:
            x = ACTIVATIONS[self.hidden](self.reduce(x))
        logits = self.expand(x)
        if self.gate.per != "head":
            logits = logits.reshape(*x.shape[:2], self.heads, -1)
        return self.gate.activate(logits)


class Constant(nnx.Module):
    """A gate that is learned instead of computed: one per head or channel, for each place in a
    chunk if asked."""

    def __init__(self, stream: Stream, heads: int, channels: int, chunk_size: int):
        self.gate, self.of_chunk = stream.gate, stream.of_chunk
        logits = jnp.asarray(stream.gate.initial_logits(heads), jnp.float32)
        if stream.gate.per != "head":
            logits = jnp.repeat(logits[:, None], channels, axis=1)
        if stream.of_chunk:
            logits = jnp.repeat(logits[None], chunk_size, axis=0)
        self.logits = nnx.Param(logits)

    def __call__(self, place: jax.Array) -> jax.Array:
        """Values `[B, T, H]` or `[B, T, H, channels]` for places in the chunk `[B, T]`."""
        values = self.gate.activate(self.logits[...])
        if self.of_chunk:
            return values[place]
        return jnp.broadcast_to(values, (*place.shape, *values.shape))


class SwiGLU(nnx.Module):
    """`down(silu(gate_up(x)) * up(x))` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, *, depth: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gate_up = linear(dim, hidden, rngs, dtype)
        self.up = linear(dim, hidden, rngs, dtype)
        self.down = linear(hidden, dim, rngs, dtype, scale=(2 * depth) ** -0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(self.gate_up(x)) * self.up(x)
        axis = partition.sequence(x.shape[1])
        return self.down(partition.constrain(hidden, partition.BATCH, axis, "tensor"))
