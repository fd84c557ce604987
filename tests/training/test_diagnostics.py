"""Figures of the inner loops beside those of the training."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.nn import LanguageModel
from miras_jax.nn.partition import BATCH
from miras_jax.training import LogConfig, MeshConfig, train
from miras_jax.training.checkpoint import load_model
from miras_jax.training.diagnostics import make_diagnosis
from miras_jax.training.state import make_mesh
from tests.training.test_metrics import monitor
from tests.training.toy import records, toy

NAMES = "loss_before loss_after step_norm memory_norm retention step max_memory_norm".split()


def weights(config):
    return [np.asarray(x) for x in jax.tree.leaves(load_model(config.directory)[0])]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    config = toy(tmp_path_factory.mktemp("plain"))
    train(config)
    return config


def test_off_by_default(plain):
    assert not any(name.startswith("inner/") for record in records(plain) for name in record)


def test_change_nothing_and_go_on_where_a_run_was_killed(plain, tmp_path):
    log = LogConfig(every=1, diagnostics_every=2, diagnostics_tokens=12)
    config = toy(tmp_path, log=log)
    train(config)
    written = records(config)
    own = [record for record in written if "inner/step" in record]
    assert [record["step"] for record in own] == [2, 4, 6]
    assert all(set(r) == {"step", *(f"inner/{name}" for name in NAMES)} for r in own)
    assert all(len(r[f"inner/{name}"]) == config.model.depth for r in own for name in NAMES)
    assert [record for record in written if record not in own] == records(plain)
    for x, y in zip(weights(config), weights(plain), strict=True):
        np.testing.assert_array_equal(x, y)

    # Killed after the record of step 6, before its checkpoint.
    shutil.rmtree(pathlib.Path(config.directory, "checkpoints/6"))
    train(config)
    assert records(config) == written


def test_are_those_of_the_first_row_on_any_mesh(tmp_path):
    config = toy(tmp_path, log=LogConfig(diagnostics_every=1, diagnostics_tokens=5))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=2))
    model = LanguageModel(config.model, rngs=nnx.Rngs(0))
    tokens = np.random.default_rng(0).integers(0, 256, (8, 17), np.int32)
    said = jax.jit(lambda model, tokens: model.diagnose(tokens))(model, tokens[:1, :5])
    expected = {f"inner/{n}": np.mean(x, axis=(1, 2, 3)) for n, x in said._asdict().items()}
    expected["inner/max_memory_norm"] = np.max(said.memory_norm, axis=(1, 2, 3))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(BATCH)))
        got = make_diagnosis(config, mesh)(model, rows)
    assert got.keys() == expected.keys()
    for name, layers in expected.items():
        # Float32 sums in another order.
        np.testing.assert_allclose(got[name], layers, rtol=1e-4, atol=1e-6)


def test_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with monitor(path) as m:
        m.diagnosis(5, {"inner/loss_before": [1.0, float("inf")]})
    assert json.loads(path.read_text()) == {"step": 5, "inner/loss_before": [1.0, None]}
