"""The parts of the memory layer that a row of the zoo may ask for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from miras_jax import zoo
from miras_jax.memory import Gate, flops
from miras_jax.nn import LanguageModel, MemoryLayer, ModelConfig, parallel, partition
from miras_jax.nn.layers import Constant, GateProjection, ShortConvolution, TokenShift
from miras_jax.nn.memory_layer import Context
from miras_jax.zoo import LayerOptions, Stream

CONFIG = ModelConfig(dim=16, depth=2, heads=2, vocab_size=32, ff_dim=32, gate_rank=3)
PLACED = Stream("offset", Gate(activation="identity", source="learned"), of_chunk=True)
NAMES = [row.name for row in zoo.table() if row.block == "memory"]


def config_of(name: str) -> ModelConfig:
    chunk = {"chunk_size": 4} if hasattr(zoo.row(name).memory, "chunk_size") else {}
    return dataclasses.replace(CONFIG, memory=name, **chunk)


def shapes_of(config: ModelConfig):
    return jax.eval_shape(lambda key: LanguageModel(config, rngs=nnx.Rngs(key)), jax.random.key(0))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_token_shift_mixes_with_the_token_before_in_the_same_document():
    shift = TokenShift(("query", "key"), 3)
    assert jnp.allclose(shift.mix["query"][...], jnp.asarray([1.0, 2 / 3, 1 / 3]))
    shift.mix["key"][...] = jnp.zeros(3)
    x, before = draw(1, 4, 3), draw(1, 1, 3, seed=1)
    document = jnp.asarray([[0, 0, 1, 1]])
    mixed, after = shift(x, before, document)
    assert jnp.array_equal(mixed["key"], x)
    previous = jnp.stack([before[0, 0], x[0, 0], jnp.zeros(3), x[0, 2]])
    expected = x[0] + (previous - x[0]) * jnp.asarray([1.0, 2 / 3, 1 / 3])
    # One rounding of numbers of size 1.
    assert jnp.max(jnp.abs(mixed["query"][0] - expected)) < 1e-6
    assert jnp.array_equal(after, x[:, -1:])


@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_convolution_sees_its_own_document_through_a_cut(activation):
    convolution = ShortConvolution(3, activation=activation, rngs=nnx.Rngs(0))
    x, document = draw(2, 7, 3), jnp.asarray([[0, 0, 0, 1, 1, 1, 1]] * 2)
    kernel = np.asarray(convolution.kernel[...])
    expected = np.zeros(x.shape, np.float32)
    for t in range(7):
        for lag in range(min(4, t - (0 if t < 3 else 3) + 1)):
            expected[:, t] += np.asarray(x)[:, t - lag] * kernel[3 - lag]
    if activation == "silu":
        expected = expected / (1 + np.exp(-expected))
    whole, _ = convolution(x, None, document)
    a, before = convolution(x[:, :2], None, document[:, :2])
    b, before = convolution(x[:, 2:5], before, document[:, 2:5])
    # Numbered from the state's document, as the model numbers them.
    c, _ = convolution(x[:, 5:], before, document[:, 5:] - 1)
    # Sums of four float32 products.
    assert np.abs(np.asarray(whole) - expected).max() < 1e-6
    assert np.abs(np.concatenate([a, b, c], axis=1) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("stream", "shape", "low_rank"),
    [
        (Stream("g", Gate()), (2, 5, 2), False),
        (Stream("g", Gate(per="key")), (2, 5, 2, 4), True),
        (Stream("g", Gate(per="key"), full=True), (2, 5, 2, 4), False),
        (Stream("g", Gate(per="key", activation="identity"), hidden="sigmoid"), (2, 5, 2, 4), True),
    ],
)
def test_gate_projections_start_at_the_initial_value_or_at_random(stream, shape, low_rank):
    projection = GateProjection(stream, 6, 2, 4, rank=3, rngs=nnx.Rngs(0))
    y = projection(draw(2, 5, 6))
    assert y.shape == shape
    assert hasattr(projection, "reduce") == low_rank == stream.is_low_rank
    if stream.gate.is_input:
        # From zero it would learn nothing through a product with what it gates.
        assert jnp.std(y) > 0.1
    else:
        assert jnp.allclose(y, 0.5)


def test_hidden_activation_of_a_low_rank():
    stream = Stream("g", Gate(per="key", activation="identity"), hidden="sigmoid")
    projection = GateProjection(stream, 6, 2, 4, rank=3, rngs=nnx.Rngs(0))
    x = draw(1, 5, 6)
    inner = jax.nn.sigmoid(x @ projection.reduce.kernel[...])
    expected = inner @ projection.expand.kernel[...] + projection.expand.bias[...]
    # The layer's product and this one may differ by float32 rounding.
    assert jnp.allclose(projection(x).reshape(expected.shape), expected, atol=1e-6)


def test_constants_per_head_channel_and_place():
    place = jnp.asarray([[2, 3, 0, 1, 2]])
    gate = Gate(activation="softplus", initial=(0.1, 1.0), source="learned")
    head = Constant(Stream("c", gate), heads=2, channels=1, chunk_size=4)(place)
    assert head.shape == (1, 5, 2)
    assert jnp.allclose(head, jnp.asarray([0.1, 1.0]))
    gate = dataclasses.replace(gate, per="key")
    key = Constant(Stream("c", gate), heads=2, channels=3, chunk_size=4)(place)
    assert key.shape == (1, 5, 2, 3)
    assert jnp.allclose(key, jnp.asarray([0.1, 1.0])[:, None])
    gate = Gate(activation="identity", source="learned")
    constant = Constant(Stream("c", gate, of_chunk=True), heads=2, channels=1, chunk_size=4)
    constant.logits[...] = jnp.arange(8.0).reshape(4, 2)
    assert jnp.array_equal(constant(place)[0, :, 0], 2.0 * place[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "mamba2_odd", "heads": 2, "dim": 6}, r"key_expansion.* got 4.5"),
        ({"memory": "mamba2_odd", "heads": 3, "dim": 12}, "must divide model.heads, got 3"),
        ({"memory": "gla", "heads": 4, "dim": 4}, r"key_expansion.* got 0.5"),
        ({"memory": "retnet", "heads": 2, "dim": 6}, "even head width, got 3"),
    ],
)
def test_config_refuses_widths_that_do_not_fit(changes, words, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    layer = dataclasses.replace(zoo.row("mamba2").layer, key_expansion=1.5, key_heads=2)
    zoo.register(dataclasses.replace(zoo.row("mamba2"), name="mamba2_odd", layer=layer))
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_flops_count_every_matrix_of_the_layer(name):
    """Two a weight and token for every projection, and the memory's own."""
    config = config_of(name)
    shapes = shapes_of(config).blocks.memory
    matrices = sum(
        x.size // config.depth
        for path, x in jax.tree_util.tree_leaves_with_path(shapes)
        if "kernel" in (p := jax.tree_util.keystr(path)) and "convolution" not in p
    )
    memory = flops.per_token(config.build_memory(), config.key_dim, config.value_dim, 64)
    swiglu = 2 * 3 * config.dim * config.hidden_dim
    expected = config.depth * (2 * matrices + config.heads * memory + swiglu)
    assert config.flops_per_token(64) == expected + 2 * config.dim * config.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_rule(name):
    """Projections and initial memories are split over fsdp and tensor, what is small is not."""
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 2), partition.AXES)
    for path, x in jax.tree_util.tree_leaves_with_path(shapes_of(config_of(name)).blocks.memory):
        key = jax.tree_util.keystr(path)
        axes = {axis for axis in partition.spec_of(key, x.shape, mesh) if axis}
        if "start" in key:
            assert axes == {"fsdp", "tensor"}
        elif ".kernel" not in key or "convolution" in key:
            assert axes <= {"tensor"}
        elif "gates" not in key:
            assert axes == {"fsdp", "tensor"}


@pytest.mark.parametrize(
    ("like", "changes", "words"),
    [
        (
            "deltanet",
            {"rotary": True, "rotary_within": "chunk"},
            "is exact and keeps no grid",
        ),
        ("deltanet", {"streams": (PLACED,)}, r"place in its chunk \(offset\)"),
        ("mesanet", {"not_convolved": ("value", "values")}, "leaves values without a conv"),
    ],
)
def test_config_refuses_layers_that_do_not_fit_the_memory(like, changes, words, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    layer = dataclasses.replace(zoo.row(like).layer, **changes)
    zoo.register(dataclasses.replace(zoo.row(like), name="odd", layer=layer))
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, memory="odd")


def test_every_projection_reads_the_shifted_token(monkeypatch):
    """With mixtures that take the token before and nothing else, no token sees itself."""
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    options = LayerOptions(shift=True, convolution=False)
    zoo.register(dataclasses.replace(zoo.row("gated_deltanet"), name="shifted", layer=options))
    layer = MemoryLayer(config_of("shifted"), rngs=nnx.Rngs(0))
    assert {"query", "key", "value", "gate", *layer.gates} == set(layer.shift.mix)
    for mix in layer.shift.mix.values():
        mix[...] = jnp.ones_like(mix[...])
    x = draw(1, 5, 16)
    read = jax.jit(lambda x: layer(x, None, Context(jnp.arange(5)[None], None, None))[0])
    changed = read(x.at[:, 2].add(1.0))
    difference = jnp.max(jnp.abs(changed - read(x)), axis=(0, 2))
    # x + (previous - x) rounds numbers of size 1.
    assert jnp.all(difference[:3] < 1e-5)
    assert difference[3] > 1e-2


@pytest.mark.parametrize("normalized", [True, False])
def test_memory_gets_values_of_unit_size(normalized, monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    options = LayerOptions(normalize_values=normalized)
    zoo.register(dataclasses.replace(zoo.row("yaad"), name="sized", layer=options))
    layer, given, read = MemoryLayer(config_of("sized"), rngs=nnx.Rngs(0)), [], parallel.read

    def look(memory, parameters, q, k, v, *others, **options):
        given.append(v)
        return read(memory, parameters, q, k, v, *others, **options)

    monkeypatch.setattr(parallel, "read", look)
    layer(draw(1, 5, 16), None, Context(jnp.arange(5)[None], None, None))
    sizes = jnp.sqrt(jnp.mean(given[0] ** 2, axis=-1))
    # 1e-6 under the root, beside values of size 0.1.
    assert bool(jnp.all(jnp.abs(sizes - 1) < 1e-3)) == normalized


def test_names_of_streams_do_not_clash():
    """q, k, v and the output gate have names of their own in what `prepare` gets."""
    for row in zoo.table():
        taken = {"q", "k", "v", "query", "key", "value", "shift"}
        taken |= {"gate"} if row.layer.output_gate else set()
        names = [stream.name for stream in row.streams]
        assert not taken & set(names), row.name
        assert len(set(names)) == len(names), row.name


def test_a_row_without_functions_gets_its_gates_from_the_memory():
    row = zoo.row("titans")
    assert [s.name for s in row.streams] == list(row.memory.gates)
    assert dataclasses.replace(row, layer=LayerOptions(streams=())).streams == ()


def test_equations_of_a_header():
    assert (
        zoo.equations("Title.\n\n    a = b\n      c\n    d\n\nText.\n\n    e\n") == "a = b\n  c\nd"
    )
    for row in zoo.table():
        assert row.recurrence, row.name


def test_a_row_that_leaves_out_a_gate_is_told(monkeypatch):
    monkeypatch.setattr(zoo, "ROWS", dict(zoo.ROWS))
    row = dataclasses.replace(zoo.row("yaad"), name="yaad_bare", layer=LayerOptions(streams=()))
    zoo.register(row)
    layer = MemoryLayer(dataclasses.replace(CONFIG, memory="yaad_bare"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'yaad_bare' needs the gates log_decay, step, threshold"):
        layer(draw(1, 3, 16), None, Context(jnp.arange(3)[None], None, None))
