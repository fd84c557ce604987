"""What is refused before anything is made, and with which words."""

import dataclasses

import jax
import pytest

from miras_jax.nn import ModelConfig
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    MeshConfig,
    OptimizerConfig,
    UserError,
    train,
)
from miras_jax.training.config import validate
from miras_jax.training.state import make_mesh
from tests.training.toy import MODEL, records, toy


def test_toy_is_valid(tmp_path):
    validate(toy(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"mesh": MeshConfig(tensor=0)}, "mesh.tensor must be at least 1"),
        ({"mesh": MeshConfig(devices=0)}, "mesh.devices must be at least 1"),
        ({"mesh": MeshConfig(tensor=4)}, "model.heads 2 must be a multiple of mesh.tensor 4"),
        ({"mesh": MeshConfig(data=3)}, "data.batch_size 8 must be a multiple"),
        ({"mesh": MeshConfig(sequence=3)}, "data.window 16 must be a multiple of mesh.sequence 3"),
        ({"accumulation": 3}, "data.batch_size 8 must be a multiple"),
        ({"checkpoint": CheckpointConfig(keep=0)}, "checkpoint.keep"),
        ({"evaluation": EvaluationConfig(batches=0)}, "evaluation.batches"),
        ({"evaluation": EvaluationConfig(sample_tokens=-1)}, "evaluation.sample_tokens"),
        ({"log": LogConfig(every=0)}, "log.every"),
        ({"log": LogConfig(diagnostics_every=-1)}, "log.diagnostics_every must not be negative"),
        ({"log": LogConfig(diagnostics_tokens=0)}, "log.diagnostics_tokens must be at least 1"),
        ({"optimizer": OptimizerConfig(learning_rate=0.0)}, "optimizer.learning_rate"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "optimizer.learning_rate"),
        ({"optimizer": OptimizerConfig(b2=1.0)}, "optimizer.b2 must be at least 0 and below 1"),
        ({"optimizer": OptimizerConfig(final_fraction=2.0)}, "optimizer.final_fraction"),
        ({"optimizer": OptimizerConfig(warmup_steps=-1)}, "optimizer.warmup_steps"),
        ({"log": LogConfig(profile_at=-1)}, "log.profile_at must not be negative"),
        ({"log": LogConfig(profile_steps=0)}, "log.profile_steps must be at least 1"),
        ({"data": DataConfig(timeout=-1.0)}, "data.timeout must not be negative, got -1"),
        ({"on_nonfinite": "go"}, "on_nonfinite must be stop or skip, got 'go'"),
        ({"max_skipped": 0}, "max_skipped must be at least 1"),
        ({"seed": -1}, "seed must be at least 0 and below 4294967296, got -1"),
        ({"seed": 2**32}, "seed must be at least 0 and below 4294967296, got 4294967296"),
    ],
)
def test_refuses(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(toy(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"window": 0}, {}, "data.window must be at least 1"),
        ({"window": 10**6}, {}, "too few for data.window 1000000"),
        ({"source": "/nowhere"}, {}, "data.source '/nowhere'"),
        ({"validation": "/nowhere"}, {}, "data.validation '/nowhere'"),
        ({"source": "/nowhere", "validation": "/neither"}, {}, "data.source '/nowhere'"),
        ({"seed": -1}, {}, "data.seed must be at least 0"),
        ({}, {"vocab_size": 64}, "model.vocab_size 64 is less than the tokenizer's 257"),
    ],
)
def test_refuses_data_and_model(tmp_path, data, model, message):
    config = toy(tmp_path)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        model=dataclasses.replace(config.model, **model),
    )
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_long_row_needs_heads_or_a_linear_memory(tmp_path):
    config = toy(tmp_path, mesh=MeshConfig(sequence=4))
    validate(config)  # deltanet, of two heads
    deep = dataclasses.replace(config, model=dataclasses.replace(config.model, memory="yaad"))
    with pytest.raises(UserError, match=r"model.heads 2 must be .* 1 x 4 = 4: yaad shares"):
        validate(deep)
    mac = ModelConfig(memory="titans_mac", heads=4, segment=6)
    with pytest.raises(UserError, match=r"model.segment 6 must be a multiple of mesh.sequence"):
        validate(dataclasses.replace(config, model=mac))


def test_mesh_must_divide_the_devices():
    shape = make_mesh(MeshConfig(data=2, tensor=2, sequence=2)).shape
    assert dict(shape) == {"data": 2, "fsdp": 1, "sequence": 2, "tensor": 2}
    with pytest.raises(UserError, match="= 3 x 1 x 1 x 1 = 3 devices does not divide the 8 cpu"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(UserError, match="devices 16 cannot be emulated"):
        make_mesh(MeshConfig(data=16, devices=16))


def test_an_accelerator_gets_a_hint_of_its_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"8 gpu device.*; try --mesh.fsdp 1 .*JAX_PLATFORMS=cpu"):
        make_mesh(MeshConfig(fsdp=3))


@pytest.mark.parametrize("field", ["ff_dim", "rotary_base"])
def test_model_refuses_what_is_not_positive(field):
    with pytest.raises(ValueError, match=f"model.{field} must be .*, got 0"):
        dataclasses.replace(MODEL, **{field: 0})


def test_attention_has_no_inner_loop_to_diagnose(tmp_path, capsys):
    """A run of attention alone says so once and goes on."""
    model = dataclasses.replace(MODEL, memory="transformer", chunk_size=None)
    log = LogConfig(every=1, diagnostics_every=1)
    evaluation = EvaluationConfig(batches=1, sample_tokens=0)
    config = toy(tmp_path, model=model, log=log, evaluation=evaluation, steps=1)
    train(config)
    assert "log.diagnostics_every writes nothing" in capsys.readouterr().out
    assert not any(name.startswith("inner/") for record in records(config) for name in record)
