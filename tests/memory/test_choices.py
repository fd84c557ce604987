"""Each choice alone against its formula: biases, retentions, architectures, algorithms, gates.

In float64; 1e-12 of the largest entry is a thousand rounding errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from miras_jax.memory import (
    KL,
    L1,
    L2,
    MLP,
    ChiSquared,
    DotProduct,
    ElasticNet,
    Gate,
    Huber,
    Implicit,
    KLDivergence,
    L2Decay,
    Logit,
    Lp,
    Lq,
    Memory,
    Momentum,
    NormalEquations,
    Retention,
    Robust,
    Sphere,
    log_decay,
)
from miras_jax.memory.architecture import Layer, conjugate_gradients
from miras_jax.memory.chunk_algorithm import newton_schulz
from tests.cases import CHUNK, B, H, K, T, case, close, memory_of, read, weigh

pytestmark = pytest.mark.usefixtures("x64")
EXACT = 1e-12


def normal(*shape, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# Attentional biases


GATES = {"threshold": jnp.asarray([0.3, 2.0, 100.0]), "radius": jnp.asarray([0.0, 0.5, 3.0])}


@pytest.mark.parametrize(
    "bias",
    [
        DotProduct(),
        L2(),
        L1(),
        Lp(p=1.5),
        Lp(p=3.0),
        Huber(kind="coordinate"),
        Huber(kind="coordinate", threshold=0.5),
        Huber(kind="norm"),
        Huber(kind="norm", threshold=0.5),
        Huber(kind="norm", threshold=0.2, relative=True),
        Robust(),
        Robust(radius=0.7),
        # The switch jumps at its threshold, and its loss with it; on either side they fit.
        Huber(kind="switch"),
    ],
    ids=repr,
)
def test_gradient_is_that_of_the_loss(bias):
    prediction, value = normal(3, K, seed=1), normal(3, K, seed=2)
    expected = jax.grad(lambda p: bias.loss(p, value, GATES).sum())(prediction)
    close(bias.gradient(prediction, value, GATES), expected, rtol=EXACT)


def test_lp_with_a_sharpness_is_the_printed_product():
    """tanh(a r) times the smooth |r|^(p - 1): no gradient of the loss, but the paper's form."""
    r = jnp.linspace(-2.0, 2.0, 41)
    for p in (1.0, 3.0):
        printed = np.tanh(10.0 * r) * np.sqrt(r * r + 1e-6) ** (p - 1)
        close(Lp(p=p, sharpness=10.0).gradient(r, 0.0 * r, {}), printed, rtol=EXACT)


def test_huber_clips():
    """The residual's norm, or each of its channels."""
    r = jnp.asarray([[3.0, 4.0], [0.3, 0.4], [0.5, 2.0]])
    by_norm = Huber(kind="norm", threshold=1.0, eps=0.0).gradient(r, 0.0 * r, {})
    close(by_norm[:2], jnp.asarray([[0.6, 0.8], [0.3, 0.4]]), rtol=EXACT)
    by_coordinate = Huber(kind="coordinate", threshold=1.0).gradient(r, 0.0 * r, {})
    close(by_coordinate, jnp.asarray([[1.0, 1.0], [0.3, 0.4], [0.5, 1.0]]), rtol=EXACT)


def test_huber_switch_jumps_by_the_root_of_the_channels():
    """At the threshold from r, of norm delta, to delta sign(r), of norm delta sqrt(V)."""
    bias, r = Huber(kind="switch", threshold=1.0, eps=0.0), jnp.full(K, K**-0.5)
    below, above = (bias.gradient(r * x, 0.0 * r, {}) for x in (1 - 1e-9, 1 + 1e-9))
    norm = jnp.linalg.norm
    assert float(norm(above) / norm(below)) == pytest.approx(K**0.5, rel=1e-8)


def test_robust_is_the_worst_value_of_a_ball():
    """No shift of the value within the radius has a larger l2 loss; the one away from the
    prediction reaches it."""
    prediction, value, radius = normal(3, seed=1), normal(3, seed=2), 0.6
    loss = Robust(radius=radius, eps=0.0).loss(prediction, value, {})
    shifts = normal(2000, 3, seed=3)
    shifts *= radius / jnp.linalg.norm(shifts, axis=-1, keepdims=True)
    sampled = jnp.sum((prediction - value - shifts) ** 2, axis=-1) / 2
    # 2,000 points leave no gap over a tenth of a radian on the sphere: within 1% of the maximum.
    assert 0.99 * loss <= sampled.max() <= loss
    worst = value - radius * (prediction - value) / jnp.linalg.norm(prediction - value)
    close(L2().loss(prediction, worst, {}), loss, rtol=EXACT)


# Retention gates


def test_soft_threshold_is_the_proximal_step_of_l1():
    """argmin_w (w - z)^2 / 2 + gamma |w|, on a grid of 1e-4."""
    grid = jnp.arange(-3.0, 3.0, 1e-4)
    for z in (-2.0, -0.31, -0.3, 0.0, 0.1, 0.3, 0.7):
        best = grid[jnp.argmin((grid - z) ** 2 / 2 + 0.3 * jnp.abs(grid))]
        assert abs(ElasticNet(threshold=0.3).shrink(jnp.asarray(z)) - best) <= 1e-4


def test_elastic_net_kinds():
    """Hard keeps or drops; the surrogate is 99.36 at 100 where the soft one is 99, 0.148 at 0.5."""
    z = jnp.asarray([100.0, 0.5, -0.5, -100.0])
    close(ElasticNet(threshold=1.0).shrink(z), jnp.asarray([99.0, 0, 0, -99.0]), rtol=EXACT)
    hard = ElasticNet(threshold=1.0, kind="hard").shrink(z)
    close(hard, jnp.asarray([100.0, 0, 0, -100.0]), rtol=EXACT)
    smooth = ElasticNet(threshold=1.0, kind="smooth").shrink(z)
    assert jnp.allclose(smooth, jnp.asarray([99.36, 0.1476, -0.1476, -99.36]), atol=5e-3, rtol=0)
    a = normal(3, K)
    link, proximal = ElasticNet(threshold=0.5), ElasticNet(threshold=0.5, form="proximal")
    close(link.link(a, a, None), proximal.commit(a, a, a, None), rtol=EXACT)
    close(proximal.link(a, a, None), a, rtol=EXACT)
    close(link.commit(a, a, a, None), a, rtol=EXACT)


LAYER = Layer(5, 3, std=0.5)


@pytest.mark.parametrize("retention", [ChiSquared(), KLDivergence(), ChiSquared(scale=3.0)])
def test_f_divergences_keep_mass_and_sign(retention):
    """After steps small and large; and their gradient is the difference quotient."""
    start = retention.start(normal(5, 3), LAYER)
    mass = retention.scale * LAYER.std * LAYER.inputs
    close(start.sum(0), jnp.full(3, mass), rtol=EXACT)
    for size in (1e-3, 1.0, 30.0):
        w = retention.commit(start + size * normal(5, 3, seed=1), start, start, LAYER)
        assert (w >= 0).all()
        close(w.sum(0), start.sum(0), rtol=EXACT)
    # Central differences in float64; away from the kinks where entries reach zero.
    moved = start + 0.3 * normal(5, 3, seed=1)
    check_grads(
        lambda a, s: retention.commit(a, s, s, LAYER), (moved, start), 1, ["rev"], rtol=1e-6
    )


def test_chi_squared_step_is_a_centred_one():
    """W' (1 + move - zeta), zeta the mean of the moves under W', as long as nothing is cut."""
    retention = ChiSquared()
    start, move = retention.start(normal(5, 3), LAYER), 0.1 * normal(5, 3, seed=1)
    zeta = (start * move).sum(0) / start.sum(0)
    expected = start * (1 + move - zeta)
    assert (expected > 0).all()
    close(retention.commit(start + move, start, start, LAYER), expected, rtol=EXACT)


def test_kl_divergence_step_is_the_exponentiated_gradient():
    retention = KLDivergence()
    start, move = retention.start(normal(5, 3), LAYER), normal(5, 3, seed=1)
    expected = start * jnp.exp(move)
    expected *= start.sum(0) / expected.sum(0)
    close(retention.commit(start + move, start, start, LAYER), expected, rtol=EXACT)


def test_kl_keeps_the_mass_of_every_output():
    layer = MLP().layers(K, K)["layer_2"]
    a = 50 * normal(layer.inputs, K)
    w = KL().link(a, a, layer)
    assert (w >= 0).all()
    close(w.sum(0), jnp.full(K, layer.std * layer.inputs), rtol=EXACT)
    signed = KL(signed=True).link(a, a, layer)
    close(jnp.abs(signed).sum(0), jnp.full(K, layer.std * layer.inputs), rtol=1e-6)
    # sinh / cosh as written, where it does not overflow
    small = a / 50
    expected = jnp.sinh(small) / jnp.cosh(small).sum(0) * layer.std * layer.inputs
    close(KL(signed=True).link(small, small, layer), expected, rtol=EXACT)


def test_kl_keeps_its_start_in_units_of_the_weights():
    """A small move of the parameter moves signed weights that are near zero as far."""
    retention, layer = KL(signed=True), MLP().layers(K, K)["layer_2"]
    parameter = 1e-4 * layer.std * normal(layer.inputs, K)
    w = retention.link(retention.start(parameter, layer), None, layer)
    # sinh and cosh of logits of 1e-4 are off by their third and second power.
    close(w, parameter, rtol=1e-6)
    assert retention.initial_std(layer) == layer.std


def test_relative_threshold_is_of_the_root_mean_square():
    value, gates = jnp.zeros((3, 16)), {}
    far, near = 5 * jnp.ones((3, 16)), 0.2 * jnp.ones((3, 16))
    bias = Huber(threshold=0.5, relative=True)
    close(bias.gradient(far, value, gates), 0.5 * jnp.ones((3, 16)), rtol=1e-6)  # of its eps
    close(bias.gradient(near, value, gates), near, rtol=EXACT)
    with pytest.raises(ValueError, match="no width to be relative to"):
        Huber(kind="coordinate", relative=True)


@pytest.mark.parametrize("signed", [False, True])
def test_kl_is_linear_inside_a_chunk_along_the_mean_of_its_derivative(signed):
    """Where all weights are alike the tangent is dW/dA, elsewhere the mean of dW/dA."""
    retention, layer = KL(signed=signed), MLP().layers(64, 64)["layer_1"]
    change = 1e-4 * normal(64, 256)
    flat = jnp.zeros_like(change)

    def moved(start):
        return retention.link(start + change, None, layer) - retention.link(start, None, layer)

    def along(start):
        read = retention.within(start + change, start, None, layer)
        return read - retention.link(start, None, layer)

    # What is left is of second order in a change of 1e-4.
    close(moved(flat), along(flat), rtol=1e-3)
    start = normal(64, 256, seed=1)
    slopes = [float(jnp.vdot(x(start), change) / jnp.vdot(change, change)) for x in (moved, along)]
    # Weights of deviation 1.3 of their mean take that square over 64 inputs off: 3%.
    assert slopes[0] == pytest.approx(slopes[1], rel=0.1)


@pytest.mark.parametrize("form", ["project", "link"])
def test_sphere_keeps_the_norm_of_every_output(form):
    retention, a0, a = Sphere(form=form, eps=0.0), normal(5, 3), 10 * normal(5, 3, seed=1)
    w = retention.link(retention.commit(a, a0, a0, LAYER), a0, LAYER)
    close(jnp.linalg.norm(w, axis=0), jnp.linalg.norm(a0, axis=0), rtol=EXACT)
    close(w / jnp.linalg.norm(w, axis=0), a / jnp.linalg.norm(a, axis=0), rtol=EXACT)


def test_lq_norm_link_keeps_the_norm_between_the_starts_and_has_degree_three_minus_q():
    link, layer = Lq(q=4.0, eps=0.0), MLP().layers(K, K)["layer_1"]
    a0 = normal(K, 4 * K)
    close(link.link(a0, a0, layer), a0, rtol=EXACT)
    close(link.link(10 * a0, a0, layer), 0.1 * a0, rtol=EXACT)


def test_lq_dual_link_is_the_gradient_of_half_the_squared_norm():
    """sign(A)|A|^(q-1)/|A|_q^(q-2) = grad |A|_q^2 / 2, up to the count of the power mean."""
    link, layer = Lq(q=4.0, form="dual", eps=0.0), MLP().layers(K, K)["layer_1"]
    a = normal(K, 4 * K)
    half_square = lambda a: jnp.mean(jnp.abs(a) ** 4) ** 0.5 / 2  # noqa: E731
    close(link.link(a, a, layer), jax.grad(half_square)(a) * a.size, rtol=1e-10)


@pytest.mark.parametrize("q", [1.5, 4.0])
def test_dual_link_starts_at_the_layers_scale(q):
    """The deviation of W and the mean of dW/dA are what the normalised step counts with."""
    retention, layer = Lq(q=q, form="dual"), MLP().layers(64, 64)["layer_1"]
    a = retention.initial_std(layer) * normal(64, 256)
    w = retention.link(a, a, layer)
    # 16,384 entries: a few percent of sampling error.
    assert float(w.std()) == pytest.approx(layer.std, rel=0.05)
    bumped = retention.link(a + 1e-3, a, layer)
    assert float(jnp.mean(bumped - w)) / 1e-3 == pytest.approx(retention.gain(layer), rel=0.05)


# Architectures


@pytest.mark.parametrize("kind", ["dense", "diagonal", "entries"])
def test_outer_products_are_the_gradient_of_a_layer(kind):
    layer = Layer(1 if kind == "diagonal" else 5, 3, None, kind=kind)
    x = normal(7, 3 if kind == "diagonal" else 5)
    weights, d = normal(layer.inputs, 3, seed=1), normal(7, layer.width, seed=2)
    _, back = jax.vjp(lambda w: layer.apply(x, w), weights)
    close(layer.outer(x, d), back(d)[0], rtol=EXACT)


def test_conjugate_gradients_solve():
    """In as many steps as channels, each row of its own; more steps and zero rows do no harm."""
    root = normal(6, 6)
    matrix, b = root @ root.T + jnp.eye(6), normal(3, 6, seed=1).at[1].set(0.0)
    expected = jnp.linalg.solve(matrix, b.T).T
    for iterations in (6, 40):
        x = conjugate_gradients(lambda x: x @ matrix, b, iterations)
        # The condition number, some hundreds, amplifies the rounding.
        close(x, expected, rtol=1e-9)


# Learning algorithms


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (12, 12)])
def test_newton_schulz_makes_orthogonal(shape):
    """Singular values, here from 0.03 to 1 of the largest, come to about 1; vectors stay."""
    u, _, v = jnp.linalg.svd(normal(*shape), full_matrices=False)
    values = jnp.geomspace(0.03, 1.0, min(shape))
    x = newton_schulz(5.0 * (u * values) @ v)
    after = jnp.einsum("ik,ij,kj->k", u, x, v)
    assert after.min() >= 0.7
    assert after.max() <= 1.2
    close(x, (u * after) @ v, rtol=1e-10)


def test_newton_schulz_leaves_vectors_and_has_a_gradient_at_zero():
    row = normal(1, 8)
    assert jnp.array_equal(newton_schulz(row), row)
    gradient = jax.grad(lambda x: newton_schulz(x).sum())(jnp.zeros((4, 8), jnp.float32))
    assert jnp.isfinite(gradient).all()


# Gates


@pytest.mark.parametrize(
    "gate",
    [
        Gate(),
        Gate(initial=0.7, high=2.0),
        Gate(activation="softplus", high=3.0),
        log_decay(),
        log_decay("key", high=1 / 16, initial=-0.01),
    ],
    ids=repr,
)
def test_gates_keep_their_range_and_start_at_their_initial_values(gate):
    low, high = gate.range
    values = gate.activate(jnp.linspace(-30.0, 30.0, 61))
    assert ((values > low) & (values < high)).all()
    assert (jnp.diff(jnp.abs(values)) > 0).all()
    values = gate.activate(jnp.asarray(gate.initial_logits(5)))
    first_and_last = np.broadcast_to(gate.initial, 2)
    close(values[jnp.array([0, -1])], jnp.asarray(first_and_last), rtol=EXACT)
    one = gate.activate(jnp.asarray(gate.initial_logits(1)))
    close(abs(one), jnp.sqrt(jnp.abs(first_and_last.prod()))[None], rtol=EXACT)
    assert gate.shape((2, 3, 1), 5, 7) == (2, 3, 1) + {"head": (), "key": (5,)}[gate.per]


def test_further_inputs_are_no_gates():
    """Identity leaves a vector as it is, unit gives it norm 1; a zero vector stays zero."""
    x = normal(3, K).at[1].set(0.0)
    assert jnp.array_equal(Gate("value", "identity").activate(x), x)
    unit = Gate("key", "unit").activate(x)
    norms = jnp.linalg.norm(unit, axis=-1)
    # 1e-6 is added to the square.
    assert jnp.allclose(norms, jnp.asarray([1.0, 0.0, 1.0]), atol=1e-5)
    assert not Gate("key", "unit").initial_logits(K).any()


# In a memory, token by token as printed


@pytest.mark.parametrize("anchor", ["zero", "initial"])
def test_kl_on_logits_is_the_printed_softmax(anchor):
    """W_t = c softmax(alpha log W_{t-1} - eta grad) token by token (Miras Eq. 27), for a matrix.

    Towards the start it is the same with log(W / W_0) in place of log W.
    """
    memory = Memory(retention=KL(decay=log_decay(), anchor=anchor), chunk_size=1, read="chunk")

    def step(w, alpha, eta_g):
        return K * jax.nn.softmax(alpha * jnp.log(w) - eta_g, axis=-2)

    _check_printed(memory, jnp.ones((B, H, K, K)), step)  # c = inputs: every entry starts at 1


def test_logit_link_is_the_printed_sigmoid():
    """W_t = sigmoid(alpha logit(W_{t-1}) - eta grad) token by token (Miras section 4), alpha = 1
    as printed."""
    memory = Memory(retention=Logit(decay=log_decay()), chunk_size=1, read="chunk")

    def step(w, alpha, eta_g):
        return jax.nn.sigmoid(alpha * jax.scipy.special.logit(w) - eta_g)

    _check_printed(memory, jnp.full((B, H, K, K), 0.5), step)


def _check_printed(memory, w, step):
    """The weights of a matrix with l2 after all tokens, by a recurrence on the weights."""
    c = case(memory)
    _, state = read(memory, c.params, c.inputs)
    for t in range(T):
        k, v = c.inputs["k"][:, t], c.inputs["v"][:, t]
        g = jnp.einsum("bhk,bhv->bhkv", k, jnp.einsum("bhk,bhkv->bhv", k, w) - v)
        alpha = jnp.exp(c.inputs["log_decay"][:, t])[..., None, None]
        w = step(w, alpha, c.inputs["step"][:, t][..., None, None] * g)
    link, layer = memory.retention.link, memory.layers(K, K)["memory"]
    close(link(state.weights["memory"], jnp.zeros((K, K)), layer), w, rtol=EXACT)


def test_gradient_of_momentum_at_zero():
    """Products of momenta may contain zeros: their gradient is still the difference quotient."""
    memory = Memory(retention=L2Decay(), algorithm=Momentum(), chunk_size=CHUNK, gradient="chunk")
    c = case(memory)
    direction = jnp.asarray(np.random.default_rng(0).uniform(size=(B, T, H)))

    def loss(scale):
        y, _ = read(memory, c.params, {**c.inputs, "momentum": scale * direction})
        return weigh(y)

    gradient = jax.grad(loss)(0.0)
    # Central differences at 1e-5: the error is their third derivative's, 1e-10.
    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert abs(gradient - numeric) <= 1e-7 * abs(numeric)


def test_implicit_step_minimises_what_it_says():
    """The gradient of |S - S'|^2 + eta |k S - v|^2 is zero at the memory after the token."""
    memory = Memory(algorithm=Implicit(), chunk_size=CHUNK)
    c = case(memory, tokens=2)
    (_, before), (_, after) = (read(memory, c.params, c.slice(0, n)) for n in (1, 2))
    k, v, step = (c.inputs[n][:, 1] for n in ("k", "v", "step"))

    def objective(s):
        residual = jnp.einsum("bhk,bhkv->bhv", k, s) - v
        moved = s - before.weights["memory"]
        return jnp.sum(moved**2) + jnp.sum(step[..., None] * residual**2)

    gradient = jax.grad(objective)(after.weights["memory"])
    assert jnp.abs(gradient).max() <= EXACT


def test_decay_of_both_axes_is_a_product():
    """exp(f_i) exp(z_j) on every entry, for Retention(decay, value_decay) written out."""
    memory = Memory(
        bias=DotProduct(),
        retention=Retention(decay=log_decay("key"), value_decay=log_decay("value")),
        chunk_size=CHUNK,
    )
    c = case(memory)
    _, state = read(memory, c.params, c.inputs)
    s = jnp.zeros((B, H, K, K))
    for t in range(T):
        k, v, step, f, z = (
            c.inputs[n][:, t] for n in ("k", "v", "step", "log_decay", "log_value_decay")
        )
        kept = jnp.exp(f[..., :, None] + z[..., None, :]) * s
        s = kept + step[..., None, None] * k[..., :, None] * v[..., None, :]
    close(state.weights["memory"], s, rtol=EXACT)


def test_normal_equations_solve_the_ridge_regression():
    """y = q (H + diag(ridge))^-1 S with H and S the decayed sums, directly."""
    memory = memory_of("mesanet", architecture=NormalEquations(iterations=2 * K))
    c = case(memory)
    y, _ = read(memory, c.params, c.inputs)
    h = s = jnp.zeros((B, H, K, K))
    for t in range(T):
        q, k, v, ridge, step, log = (
            c.inputs[n][:, t] for n in ("q", "k", "v", "ridge", "step", "log_decay")
        )
        rho, step = (x[..., None, None] for x in (jnp.exp(log), step))
        h = rho * h + step * k[..., :, None] * k[..., None, :]
        s = rho * s + step * k[..., :, None] * v[..., None, :]
        x = jnp.linalg.solve(h + ridge[..., None] * jnp.eye(K), q[..., None])
        # Conjugate gradients stop improving at the condition number's multiple of the rounding.
        close(y[:, t], jnp.einsum("bhk,bhkv->bhv", x[..., 0], s), rtol=1e-9)
