"""Where the state lives: every array is born on its shards, moments beside their parameters."""

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from miras_jax.training import MeshConfig
from miras_jax.training.state import abstract_state, init_state, make_mesh
from tests.training.toy import toy


def by_path(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_init_is_sharded_and_independent_of_the_mesh(tmp_path):
    config = toy(tmp_path)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = abstract_state(config, mesh)
    with jax.set_mesh(mesh):
        state = init_state(config, abstract)
    for x, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert x.sharding == wanted.sharding
        assert x.dtype == wanted.dtype

    bare = init_state(config, abstract_state(config, make_mesh(MeshConfig())))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(bare), strict=True):
        np.testing.assert_array_equal(x, y)


def test_moments_lie_where_their_parameters_lie(tmp_path):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = abstract_state(toy(tmp_path), mesh)
    params, opt = by_path(abstract.params), by_path(abstract.opt)
    assert any(x.sharding.spec == P(None, "fsdp", "tensor") for x in params.values())
    moments = 0
    for path, x in opt.items():
        of = [name for name in params if path.endswith(name)]
        moments += len(of)
        assert x.sharding.spec == (params[of[0]].sharding.spec if of else P())
    assert moments == 2 * len(params)
