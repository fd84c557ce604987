"""The language model: one text read in any way gives the same logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import miras_jax as mj
from miras_jax.nn import LanguageModel, ModelConfig, generate
from miras_jax.nn.generation import prefill, sample
from tests.nights import FEW, OF_A_KIND, nightly_but

# The models that mix by attention too have tests of their own.
NAMES = [row.name for row in mj.zoo.table() if row.block == "memory"]
SMALL = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32, remat=False)
# Logits of a float32 model are sums of some hundred terms of size 1: a few 1e-6 of rounding.
FLOAT32 = 2e-5
# Newton-Schulz multiplies what is small beside the largest singular value five hundredfold, here
# the rounding in directions that four tokens do not write (seen: 1.4e-2); in float64 the memory
# keeps the contract to 1e-11.
ROUNDING = {"lact": 5e-2}


def model_of(name: str, **changes) -> LanguageModel:
    if name != "transformer":
        changes = {"chunk_size": 4, **changes}
    config = dataclasses.replace(SMALL, memory=name, **changes)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    # Away from the starts where gates are constant and logits tiny.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(model))))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), model)


def tokens_of(batch: int, total: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 32, (batch, total)))


read = jax.jit(lambda model, *args: model(*args))


@pytest.mark.parametrize("name", nightly_but(NAMES, OF_A_KIND))
def test_prefill_and_decode_give_the_logits_of_the_whole_text(name):
    """A text far longer than a chunk, in pieces and by the token; no token sees a later one."""
    model, tokens = model_of(name), tokens_of(2, 24)
    rounding = ROUNDING.get(name, FLOAT32)
    expected, _ = read(model, tokens)
    changed, _ = read(model, tokens.at[:, 11].add(1) % 32)
    assert jnp.array_equal(expected[:, :11], changed[:, :11])
    assert not jnp.array_equal(expected[:, 12:], changed[:, 12:])
    state = model.init_state(2, capacity=24)
    pieces = []
    for begin, end in ((0, 7), (7, 8), (8, 15), (15, 22), (22, 23), (23, 24)):
        logits, state = read(model, tokens[:, begin:end], state)
        pieces.append(logits)
    assert jnp.max(jnp.abs(jnp.concatenate(pieces, 1) - expected)) < rounding
    if name in ("yaad", "transformer"):
        last, _ = prefill(model, np.asarray(tokens), model.init_state(2, capacity=24))
        assert jnp.max(jnp.abs(last - expected[:, -1])) < rounding


@pytest.mark.parametrize(
    ("name", "rotary"),
    [
        *nightly_but([(name, None) for name in NAMES], [(name, None) for name in FEW]),
        ("yaad", True),
        ("transformer", False),
    ],
)
def test_packed_documents_equal_themselves_alone(name, rotary):
    """Memory, convolution and positions begin afresh; documents lie on the chunk grid here."""
    model, tokens = model_of(name, rotary=rotary), tokens_of(1, 16)
    rounding = ROUNDING.get(name, FLOAT32)
    ids = jnp.asarray([[0] * 4 + [1] * 8 + [3] * 4])
    packed, state = read(model, tokens, None, ids)
    alone = [read(model, tokens[:, begin:end])[0] for begin, end in ((0, 4), (4, 12), (12, 16))]
    assert jnp.max(jnp.abs(packed - jnp.concatenate(alone, 1))) < rounding
    assert int(state.position[0]) == 4
    # The same through a cut inside the second document.
    a, carried = read(model, tokens[:, :9], None, ids[:, :9])
    b, _ = read(model, tokens[:, 9:], carried, ids[:, 9:])
    assert jnp.max(jnp.abs(packed - jnp.concatenate([a, b], 1))) < rounding


@pytest.mark.parametrize("name", ["yaad", "transformer"])
def test_options_change_no_meaning(name):
    """Remat changes nothing; bfloat16 is close; untied embeddings and rotary positions matter."""
    tokens = tokens_of(2, 9)
    model = model_of(name)
    logits, _ = read(model, tokens)
    remat = model_of(name, remat=True)
    assert jnp.max(jnp.abs(read(remat, tokens)[0] - logits)) < FLOAT32
    low, _ = read(model_of(name, dtype="bfloat16"), tokens)
    assert low.dtype == jnp.float32
    # Two blocks of bfloat16 (2^-8 a rounding) on logits of size 3.
    assert jnp.max(jnp.abs(low - logits)) < 0.3
    rotary = model.config.layer.rotary
    assert not jnp.allclose(read(model_of(name, rotary=not rotary), tokens)[0], logits)
    untied = model_of(name, tie_embeddings=False)
    assert untied(tokens)[0].shape == logits.shape
    assert len(jax.tree.leaves(untied)) == len(jax.tree.leaves(model)) + 1


@pytest.mark.parametrize("name", nightly_but(NAMES, OF_A_KIND))
def test_every_parameter_is_learned(name):
    """No parameter without a gradient; every leaf a float32 `nnx.Param`."""
    model, tokens = model_of(name), tokens_of(2, 18)

    def loss(model):
        logits, _ = model(tokens)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1))

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(model)):
        assert gradient.dtype == jnp.float32
        assert jnp.any(gradient != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["moneta", "yaad", "memora"])
@pytest.mark.parametrize(
    ("size", "millions"), [("170m", 170), ("340m", 340), ("780m", 780), ("1300m", 1300)]
)
def test_sizes_of_the_paper(name, size, millions):
    """Miras Table 5 (and 1.3B, which it leaves out): within 3% of the count in the name."""
    config = mj.nn.sizes.SIZES[size](name)
    shapes = jax.eval_shape(
        lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0)
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count == pytest.approx(millions * 1e6, rel=0.03)


def test_sizes_fit_every_model():
    """The paper's models have rotary positions, the others the zoo's."""
    for name in mj.zoo.names():
        config = mj.nn.sizes.SIZES["170m"](name)
        assert config.layer.rotary == (
            name.removesuffix("_h") in ("moneta", "yaad", "memora") or mj.zoo.row(name).layer.rotary
        )


def test_generate_is_repeatable_and_follows_its_options():
    model = model_of("yaad")
    prompt = np.arange(30) % 32
    key = jax.random.key(3)
    once = list(generate(model, prompt, steps=12, key=key))
    assert once == list(generate(model, prompt, steps=12, key=key))
    assert once != list(generate(model, prompt, steps=12, key=jax.random.key(4)))
    greedy = list(generate(model, prompt, steps=12, key=key, temperature=0.0))
    assert greedy == list(generate(model, prompt, steps=12, key=key, top_k=1))
    assert greedy == list(generate(model, prompt, steps=12, key=key, top_p=1e-6))
    assert max(once) >= 8 > max(generate(model, prompt, steps=12, key=key, vocab_size=8))
    # What it picks greedily is what the forward pass over the whole text says.
    text = jnp.asarray([*prompt, *greedy])[None]
    logits, _ = read(model, text)
    assert greedy == jnp.argmax(logits[0, 29:-1], -1).tolist()


def test_sampling_keeps_what_its_options_keep():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.15, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 400)
    draw = lambda **options: {  # noqa: E731
        int(i) for i in jax.vmap(lambda key: sample(key, logits, **options))(keys)[:, 0]
    }
    assert draw() == {0, 1, 2, 3}
    assert draw(top_k=2) == {0, 1}
    assert draw(top_p=0.7) == {0, 1}
    assert draw(top_p=0.76) == {0, 1, 2}
    assert draw(temperature=0.0) == {0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt": np.array([], np.int32)}, "at least one token"),
        ({"prompt": np.array([32])}, "must be in 0 .. 31"),
    ],
)
def test_generate_refuses(options, words):
    options = {"prompt": np.array([1]), **options}
    with pytest.raises(ValueError, match=words):
        generate(model_of("yaad"), options.pop("prompt"), steps=1, key=jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "gpt"}, "no model 'gpt'"),
        ({"heads": 3}, "must divide"),
        ({"depth": 0}, "model.depth must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"dim": 6, "heads": 2, "rotary": True}, "even head width"),
        (
            {"memory": "transformer", "chunk_size": 8},
            "chunk_size is for memories with chunks",
        ),
        (
            {"memory": "delta_product", "rotary": True},
            r"further keys \(key_2\), .* leave model.rotary",
        ),
        ({"memory": "rwkv7", "rotary": True}, r"further keys \(removal, replacement\)"),
    ],
)
def test_config_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)
