"""Models with sliding-window attention: hybrids and Titans' three ways to join it to a memory.

The window, the segments and the memory's chunks are all shorter than the texts, and of lengths
that do not divide each other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import zoo
from miras_jax.nn import LanguageModel, ModelConfig, generate
from tests.meshes import gradient_on, loss, two_by_two_by_two

MODELS = {
    "window": {"memory": "sliding_window_attention"},
    "hybrid": {"memory": "gated_deltanet", "hybrid": True},
    "mag": {"memory": "titans_mag"},
    "mal": {"memory": "titans_mal"},
    "mac": {"memory": "titans_mac"},
}
# Hybrids of memories with layers of their own, read in any way like the others.
HYBRIDS = {
    "moneta_h": {"memory": "moneta_h"},
    **{f"{n}-hybrid": {"memory": n, "hybrid": True} for n in ("hgrn2", "ttt_linear", "rwkv7")},
}
SMALL = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32, remat=False)
WINDOW, SEGMENT = 5, 6
# Logits of a float32 model are sums of some hundred terms of size 1: a few 1e-6 of rounding.
FLOAT32 = 2e-5
# Titans as context reads its memory twice, and its normalised steps amplify rounding: 3e-6 to 2e-5
# over eight texts, in whatever order the memory's sums are taken.
AMPLIFIED = {"mac": 4e-5}


def model_of(name: str, **changes) -> LanguageModel:
    small = {"segment": SEGMENT} if name == "mac" else {"window": WINDOW}
    changes = {**small, **(MODELS | HYBRIDS)[name], **changes}
    config = dataclasses.replace(SMALL, chunk_size=4, **changes)
    model = LanguageModel(config, rngs=nnx.Rngs(jax.random.key(0)))
    # Away from the starts where gates are constant and logits tiny.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(model))))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), model)


def tokens_of(batch: int, total: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 32, (batch, total)))


read = jax.jit(lambda model, *args: model(*args))


@pytest.mark.parametrize("name", [*MODELS, *HYBRIDS])
def test_one_text_read_in_any_way(name):
    """Causal; in pieces and token by token as at once; the state of constant size."""
    model, tokens = model_of(name), tokens_of(2, 24)
    expected, _ = read(model, tokens)
    changed, _ = read(model, tokens.at[:, 13].add(1) % 32)
    assert jnp.array_equal(expected[:, :13], changed[:, :13])
    assert not jnp.array_equal(expected[:, 14:], changed[:, 14:])
    # Two layers of windowed attention reach 2 * 4 tokens back; a memory reaches further.
    changed, _ = read(model, tokens.at[:, 2].add(1) % 32)
    same = jnp.array_equal(expected[:, 11:], changed[:, 11:])
    assert same == (name == "window")

    state = model.init_state(2, capacity=24)
    shapes = jax.tree.map(jnp.shape, state)
    pieces = []
    # 12 tokens on the grid of segments, 8 off it, and single ones.
    for begin, end in ((0, 12), (12, 13), (13, 21), (21, 22), (22, 23), (23, 24)):
        logits, state = read(model, tokens[:, begin:end], state)
        assert jax.tree.map(jnp.shape, state) == shapes
        pieces.append(logits)
    error = jnp.max(jnp.abs(jnp.concatenate(pieces, 1) - expected))
    assert error < AMPLIFIED.get(name, FLOAT32)


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_equal_themselves_alone(name):
    model, tokens = model_of(name), tokens_of(2, 24)
    # On the grid of chunks and segments, where a document alone begins too.
    packed, _ = read(model, tokens, None, jnp.asarray([[0] * 12 + [4] * 12] * 2))
    alone = [read(model, tokens[:, begin : begin + 12])[0] for begin in (0, 12)]
    assert jnp.max(jnp.abs(packed - jnp.concatenate(alone, 1))) < FLOAT32
    # Elsewhere they still do not see each other.
    ids = jnp.asarray([[0] * 8 + [1] + [3] * 15] * 2)
    packed, _ = read(model, tokens, None, ids)
    changed, _ = read(model, tokens.at[:, 3].add(1) % 32, None, ids)
    assert jnp.array_equal(packed[:, 8:], changed[:, 8:])
    assert not jnp.array_equal(packed[:, 7], changed[:, 7])
    # Cut in the segment in which a document began.
    a, carried = read(model, tokens[:, :10], None, ids[:, :10])
    b, _ = read(model, tokens[:, 10:], carried, ids[:, 10:])
    assert jnp.max(jnp.abs(packed - jnp.concatenate([a, b], 1))) < FLOAT32


def test_generates_what_it_predicts():
    """From a prompt that ends inside a segment."""
    model = model_of("mac")
    prompt = np.arange(9) % 32
    greedy = list(generate(model, prompt, steps=6, key=jax.random.key(0), temperature=0.0))
    logits, _ = read(model, jnp.asarray([*prompt, *greedy])[None])
    assert greedy == jnp.argmax(logits[0, 8:-1], -1).tolist()


@pytest.mark.parametrize("name", ["hybrid", "mag", "mac"])
def test_every_parameter_is_learned_and_a_mesh_changes_nothing(name):
    """Loss and gradients, with windows and segments shorter than the text."""
    segment = {"segment": 4} if name == "mac" else {}
    model, tokens = model_of(name, remat=True, **segment), tokens_of(4, 13)
    expected = jax.jit(jax.value_and_grad(loss))(model, tokens)
    mesh = two_by_two_by_two()
    with jax.set_mesh(mesh):
        got = gradient_on(mesh, model, tokens)
    assert abs(got[0] - expected[0]) <= 1e-5 * abs(expected[0])
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(expected[1]), jax.tree.leaves(got[1]), strict=True
    )
    for (path, x), y in pairs:
        x, y = np.asarray(x), np.asarray(y)
        assert np.isfinite(x).all(), jax.tree_util.keystr(path)
        assert np.any(x != 0), jax.tree_util.keystr(path)
        # float32 sums in another order; a wrong partition is off by 1e-1.
        assert np.abs(x - y).max() <= 1e-4 * np.abs(x).max(), jax.tree_util.keystr(path)


def test_any_memory_can_alternate_with_attention():
    """`hybrid` changes the blocks, not the memory; the zoo's hybrids are the same with it set."""
    plain = dataclasses.replace(SMALL, memory="gated_deltanet")
    hybrid = dataclasses.replace(plain, hybrid=True, window=WINDOW)
    assert hybrid.build_memory() == plain.build_memory()
    assert hybrid.attention.build_memory().window == WINDOW
    assert dataclasses.replace(SMALL, memory="yaad_h").attention.build_memory().window == 2048
    assert dataclasses.replace(SMALL, memory="yaad_h", hybrid=False).block == "memory"
    assert dataclasses.replace(SMALL, memory="titans_mal", hybrid=False).block == "mal"
    assert dataclasses.replace(SMALL, memory="yaad", hybrid=True).block == "hybrid"
    assert dataclasses.replace(SMALL, memory="yaad_h").block == "hybrid"
    model = LanguageModel(hybrid, rngs=nnx.Rngs(0))
    assert model.blocks.memory.memory_norm.scale.shape == (SMALL.depth // 2, SMALL.dim)
    assert model(tokens_of(1, 3))[0].shape == (1, 3, SMALL.vocab_size)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("linear_attention", i) for i in range(4)]),
        (
            {"hybrid": True},
            [
                ("linear_attention", 0),
                ("sliding_window_attention", 1),
                ("linear_attention", 2),
                ("sliding_window_attention", 3),
            ],
        ),
        (
            {"memory": "titans_mal"},
            [(n, i) for i in range(4) for n in ("titans_mal", "sliding_window_attention")],
        ),
    ],
)
def test_layers_know_their_index(changes, expected, monkeypatch):
    """What `Facts.layer` gives to a row's `prepare`: of a hybrid's blocks every one has its own."""
    seen = []

    def prepare(name, inputs, facts):
        jax.debug.callback(lambda layer: seen.append((name, int(layer))), facts.layer)
        return inputs

    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    for name in {name for name, _ in expected}:
        layer = dataclasses.replace(zoo.row(name).layer, prepare=functools.partial(prepare, name))
        zoo.ROWS[name] = dataclasses.replace(zoo.row(name), layer=layer)
    config = dataclasses.replace(SMALL, **{"memory": "linear_attention", "depth": 4, **changes})
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    jax.block_until_ready(read(model, tokens_of(1, 3)))
    jax.effects_barrier()
    assert sorted(seen) == sorted(expected)  # callbacks may come in any order


def test_persistent_tokens_are_of_titans_unless_asked_for():
    count = lambda **c: (  # noqa: E731
        dataclasses.replace(SMALL, **c).attention.build_memory().persistent
    )
    assert count(memory="yaad_h") == 0
    assert count(memory="titans_mal") == 16
    assert count(memory="titans_mal", persistent_tokens=0) == 0
    assert count(memory="yaad_h", persistent_tokens=3) == 3


def test_flops_stop_growing_with_the_window():

    def cost(name, total):
        window = {} if name == "yaad" else {"window": 64}
        return ModelConfig(memory=name, **window).flops_per_token(total)

    for name in ("sliding_window_attention", "yaad_h", "titans_mag", "titans_mal"):
        assert cost(name, 16) < cost(name, 4096) < 1.01 * cost(name, 2048)
    # Two blocks of a hybrid lie between two of its parts.
    parts = sorted(cost(name, 512) for name in ("yaad", "sliding_window_attention"))
    assert sum(parts) / 2 == cost("yaad_h", 512)
    # All of the parts of a block, and its SwiGLU once.
    assert max(parts) < cost("titans_mag", 512) == cost("titans_mal", 512) < sum(parts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "yaad_h", "depth": 3}, "even, got 3"),
        ({"memory": "titans_mag", "hybrid": True}, "leave it out"),
        ({"memory": "yaad", "persistent_tokens": 4}, "which yaad does not have.*model.hybrid=True"),
        ({"memory": "yaad", "window": 4}, "model.window .* which yaad does not have"),
        ({"memory": "titans_mac", "window": 4}, "model.window .* titans_mac does not have"),
        ({"memory": "titans_mag", "segment": 4}, "model.segment .* titans_mag does not have"),
        ({"memory": "attention_mac"}, "takes a memory that learns"),
        ({"memory": "mesanet_mac"}, "whose architecture reads without gates"),
        ({"memory": "yaad_h", "persistent_tokens": -1}, "at least 0"),
        ({"window": 0}, "model.window must be at least 1"),
        ({"segment": 0}, "model.segment must be at least 1"),
        ({"memory": "yaad_h", "dim": 6, "heads": 2}, "even head width"),
    ],
)
def test_config_refuses(changes, words, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    for name, like in (("attention_mac", "transformer"), ("mesanet_mac", "mesanet")):
        zoo.register(dataclasses.replace(zoo.row(like), name=name, block="mac"))
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)
