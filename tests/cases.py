"""Small random cases of every model of the zoo, for the batteries of tests."""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import miras_jax as mj

B, T, H, K = 2, 13, 2, 4
CHUNK = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A memory with parameters and inputs; `inputs` holds q, k, v and the gates by name."""

    memory: object
    params: object
    inputs: dict

    @property
    def tokens(self) -> int:
        return self.inputs["q"].shape[1]

    def slice(self, begin: int, end: int) -> dict:
        return {name: x[:, begin:end] for name, x in self.inputs.items()}

    def state(self, **options):
        """The state before the first token; attention gets room for all of them."""
        if isinstance(self.memory, mj.memory.Attention):
            options = {"capacity": self.tokens, **options}
        return self.memory.init_state(self.params, batch=B, **options)


def memory_of(name: str, **choices):
    """A zoo memory with small chunks, so that a short sequence crosses several."""
    small = {"chunk_size": CHUNK, "window": 5}
    fields = {field.name for field in dataclasses.fields(mj.zoo.get(name))}
    choices = {**{n: size for n, size in small.items() if n in fields}, **choices}
    return mj.zoo.get(name, **choices)


def _distinct() -> list[str]:
    """Every memory of the zoo once, by the first model that has it: some models differ in their
    layer or block alone."""
    seen = {}
    for name in mj.zoo.names():
        seen.setdefault(memory_of(name), name)
    return list(seen.values())


NAMES = _distinct()


def case(memory, seed: int = 0, tokens: int = T, dtype=jnp.float64, value_dim: int = K) -> Case:
    """Random unit-norm keys and queries, normal values, gates drawn through their activations."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=(B, tokens, H, *shape))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    inputs = {"q": unit(normal(K)), "k": unit(normal(K)), "v": normal(value_dim)}
    for name, gate in memory.gates.items():
        logits = normal(*gate.shape((), K, value_dim))
        # Further keys have unit norm like the first: longer ones make a memory that explodes.
        further_key = gate.per == "key" and gate.is_input
        inputs[name] = unit(logits) if further_key else gate.activate(jnp.asarray(logits))
    inputs = {name: jnp.asarray(x, dtype) for name, x in inputs.items()}
    params = memory.init(jax.random.key(seed), heads=H, key_dim=K, value_dim=value_dim)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return Case(memory, params, inputs)


def apply(memory, params, inputs: Mapping, **options):
    """`memorize` with the gates taken from the same dict as q, k and v."""
    gates = {name: x for name, x in inputs.items() if name not in "qkv"}
    return mj.memorize(memory, params, inputs["q"], inputs["k"], inputs["v"], gates, **options)


@partial(jax.jit, static_argnames=("memory", "form"))
def read(memory, params, inputs: Mapping, **options):
    """`apply`, compiled."""
    return apply(memory, params, inputs, **options)


def cotangents(tree, seed: int = 7):
    """Random numbers of the shapes of the tree's floating leaves, zeros elsewhere."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (
            jnp.asarray(rng.normal(size=x.shape), x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else jnp.zeros_like(x)
        ),
        tree,
    )


def weigh(tree, seed: int = 7):
    """A number that depends on every floating entry of the tree: its product with `cotangents`."""
    products = jax.tree.map(lambda x, c: jnp.sum(x * c), tree, cotangents(tree, seed))
    return sum(jax.tree.leaves(products))


def close(a, b, rtol: float, atol: float = 0.0):
    """Asserts equality of two pytrees; rtol is relative to the largest entry of each leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        x, y = np.asarray(x), np.asarray(y)
        assert x.shape == y.shape, jax.tree_util.keystr(path)
        scale = max(np.abs(y).max(initial=0.0), np.finfo(np.float32).tiny)
        worst = np.abs(x - y).max(initial=0.0)
        assert worst <= rtol * scale + atol, f"{jax.tree_util.keystr(path)}: {worst} of {scale}"
