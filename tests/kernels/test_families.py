"""Every family's kernels against the recurrent form in float64, values and every gradient.

They run by the TPU's interpreter: parallel axes in random order, scratch that begins as NaN, blocks
outside an array refused, races watched. Packed rows whose length is no multiple of the chunk, begun
inside a chunk.
"""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

import kernels_pallas
import miras_jax as mj
from kernels_pallas import dispatch, read
from tests.cases import apply, case, close, memory_of, weigh

FAMILIES = {
    "gated linear attention": "linear_attention retnet lightning_attention gla mamba2 hgrn2",
    "delta rule": "deltanet gated_deltanet kda comba gdn2 rwkv7",
    "deep memory": "ttt_mlp titans moneta yaad memora",
}
ROWS = [(family, name) for family, names in FAMILIES.items() for name in names.split()]
SINGLE = 2e-5
"""float32 sums of a few tens of terms, through the inner gradients, relative to the largest entry.
Under float64 the forms agree to 1e-11 (test_contract), so what is left is rounding."""
AMPLIFIED = {"memora": 5e-4}
"""Where a softmax of logits amplifies it: the recurrent form in float32 is off by 2.6e-4 here."""
RACES = pltpu.InterpretParams(detect_races=True)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(read, "LINEAR_CHUNK", {"tpu": 16, "gpu": 16})


def pulled(memory, form, inputs, params, state, segment_ids):
    """What a read gives, and the gradients of its weighed sum by all that is float."""

    def run(inputs, params, state):
        out = apply(memory, params, inputs, state=state, segment_ids=segment_ids, form=form)
        return weigh(out), out

    gradient = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    (_, out), gradients = gradient(inputs, params, state)

    def only_floats(tree):
        return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]

    return only_floats(out), only_floats(gradients)


@pytest.mark.parametrize(("family", "name"), ROWS, ids=[name for _, name in ROWS])
def test_kernel_equals_recurrent(family, name):
    memory = memory_of(name)
    assert dispatch.family(memory) == family
    tokens = 21
    phase = {} if memory.exact else {"phase": 2}
    ids = jnp.asarray(np.array(([3] * 5 + [4] + [6] * 15, [0] * 10 + [1] * 11)))
    with jax.enable_x64(True):
        drawn = case(memory, tokens=tokens)
        begun = drawn.state(**phase, dtype=jnp.float64)
        # A state in use: no zeros.
        begun = jax.tree.map(
            lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
            if jnp.issubdtype(x.dtype, jnp.floating) else x, begun,
        )  # fmt: skip
        arguments = drawn.inputs, drawn.params, begun
        expected = pulled(memory, "recurrent", *arguments, ids)
        expected = jax.tree.map(np.asarray, expected)
        arguments = jax.tree.map(np.asarray, arguments)
    arguments = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else jnp.int32), arguments
    )
    with kernels_pallas.override(interpret=RACES):
        found = pulled(memory, "pallas_tpu", *arguments, ids.astype(jnp.int32))
    assert not interpret_pallas_call.races.races_found
    close(found, expected, rtol=AMPLIFIED.get(name, SINGLE))


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda"])
def test_delta_kernels_with_keys_that_resemble_each_other(name, cosine):
    """Steps up to 2: inverses by Newton's or Neumann's series are off by 1e2 and more here."""
    memory = memory_of(name)
    with jax.enable_x64(True):
        drawn = case(memory, tokens=32)
        inputs = dict(drawn.inputs)
        common = jnp.zeros_like(inputs["k"]).at[..., 0].set(1.0)
        k = jnp.sqrt(1 - cosine) * inputs["k"] + jnp.sqrt(cosine) * common
        inputs["k"] = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
        inputs["step"] = 2 * inputs["step"]
        expected = pulled(memory, "recurrent", inputs, drawn.params, drawn.state(), None)
        inputs, expected = jax.tree.map(np.asarray, (inputs, expected))
    inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), inputs)
    with kernels_pallas.override(interpret=True):
        found = pulled(memory, "pallas_tpu", inputs, drawn.params, drawn.state(), None)
    close(found, expected, rtol=SINGLE)


def test_decoding_token_by_token_equals_the_recurrent_form():
    """Twice through every kind of state; in place."""
    for name in ("gated_deltanet", "rwkv7", "titans", "ttt_mlp"):
        memory = memory_of(name)
        drawn = case(memory, tokens=6, dtype=jnp.float32)
        expected = apply(memory, drawn.params, drawn.inputs, form="recurrent")
        state, rows = None, []
        for t in range(6):
            with kernels_pallas.override(form="pallas_tpu", interpret=True):
                y, state = apply(memory, drawn.params, drawn.slice(t, t + 1), state=state)
            rows.append(y)
        # The same operations on the same numbers, compiled apart.
        close((jnp.concatenate(rows, axis=1), state), expected, rtol=2e-6)


def test_refusals_say_why():
    drawn = case(memory_of("yaad"), dtype=jnp.float32)

    def refused(name, form="pallas_tpu", dtype=jnp.float32, **settings):
        c = case(memory_of(name), dtype=dtype)
        with kernels_pallas.override(**settings), pytest.raises(NotImplementedError) as error:
            apply(c.memory, c.params, c.inputs, form=form)
        return str(error.value)

    assert "needs a TPU, this machine has a CPU" in refused("yaad")
    assert "needs a GPU, this machine has a TPU" in refused("gla", "pallas_gpu", platform="tpu")
    assert "LaCT" in refused("lact", interpret=True) or "Muon" in refused("lact", interpret=True)
    assert "decay per value channel" in refused("dfw", interpret=True)
    assert "Attention has no kernel" in refused("transformer", interpret=True)
    with jax.enable_x64(True):
        message = refused("yaad", dtype=jnp.float64, interpret=True)
    assert "float32 or bfloat16, got float64" in message
    with kernels_pallas.override(form="nothing"), pytest.raises(ValueError, match="must be one of"):
        apply(drawn.memory, drawn.params, drawn.inputs)


def test_auto_takes_what_is_proved_and_can_be_overruled(monkeypatch):
    memory = memory_of("gated_deltanet")
    width = 64

    def taken(dtype=jnp.float32, width=width, memory=memory):
        return dispatch.automatic(memory, dtype, 64, width)

    assert taken() is None  # a CPU
    with kernels_pallas.override(platform="tpu"):
        assert taken() == "pallas_tpu"
        assert taken(width=48) is None
        assert taken(jnp.float64) is None
        assert taken(memory=memory_of("lact")) is None
        for _, name in ROWS:
            assert taken(memory=mj.zoo.get(name)) == "pallas_tpu", name
        # Of the same family, but never compiled.
        assert taken(memory=mj.zoo.get("ttt_linear")) is None
        assert taken(memory=mj.zoo.get("yaad", chunk_size=20)) is None
    sizes = {"heads": 2, "key_dim": 64, "value_dim": 128}
    params = memory.init(jax.random.key(0), **sizes)
    inputs = {"q": jnp.ones((1, 8, 2, 64)), "k": jnp.ones((1, 8, 2, 64))}
    inputs |= {"v": jnp.ones((1, 8, 2, 128)), "log_decay": jnp.zeros((1, 8, 2))}
    inputs["step"] = jnp.ones((1, 8, 2))

    def jaxpr(**options):
        return str(jax.make_jaxpr(lambda x: apply(memory, params, x, **options))(inputs))

    with kernels_pallas.override(platform="tpu"):
        assert "pallas_call" in jaxpr()
        assert "pallas_call" not in jaxpr(form="chunked")
        with kernels_pallas.override(form="recurrent"):
            assert "pallas_call" not in jaxpr()
        monkeypatch.setenv("MIRAS_FORM", "chunked")
        assert "pallas_call" not in jaxpr()
    with kernels_pallas.override(form="pallas_tpu", interpret=True):
        assert "pallas_call" in jaxpr()


@pytest.mark.parametrize("name", ["gla", "deltanet"])
def test_a_users_precision_does_not_reach_bfloat16_products(name):
    """A TPU's compiler refuses bfloat16 operands at Precision.HIGHEST."""
    memory = mj.zoo.get(name)
    drawn = case(memory, dtype=jnp.bfloat16)

    def loss(inputs):
        y, _ = apply(memory, drawn.params, inputs, form="pallas_tpu")
        return jnp.sum(y.astype(jnp.float32))

    with kernels_pallas.override(platform="tpu"), jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(jax.grad(loss))(drawn.inputs)

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive is jax.lax.dot_general_p:
                yield eqn
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from products(inner)

    narrow = [e for e in products(program.jaxpr) if e.invars[0].aval.dtype == jnp.bfloat16]
    assert narrow
    assert all(e.params["precision"] == (jax.lax.Precision.DEFAULT,) * 2 for e in narrow)
