"""Everything that a training run is told; the sentences under the fields are its `--help`."""

import dataclasses
import math
import re
from typing import Literal

from miras_jax.nn import ModelConfig
from miras_jax.nn.lora import LoraConfig
from miras_jax.nn.parallel import needs_heads
from miras_jax.training.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text, and how it is cut into batches."""

    source: str | tuple[str, ...] = "stdlib"
    """Training text: the name of a built-in corpus, the path of a file or folder, or of a token set
    made by `miras tokenize`; several token sets as PATH=WEIGHT; or a synthetic task, as in
    task:mqar,pairs=16."""
    validation: str | tuple[str, ...] | None = None
    """Held-out text, given like the source, or several as NAME=PATH; None holds out a part of the
    source."""
    window: int = 256
    """Tokens that the model reads in one row."""
    batch_size: int = 16
    """Rows in one step, over all devices and microbatches."""
    seed: int = 0
    """Seed of the order in which the windows are read."""
    timeout: float | None = 600.0
    """Seconds that the next batch may take; after them the run saves and ends. 0 or None waits for
    ever."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to a fraction of the peak at the last step."""

    learning_rate: float = 2e-3
    """Peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 50
    """Steps of linear warm-up from zero; a shorter run stays in it."""
    final_fraction: float = 0.1
    """Learning rate at the last step, as a fraction of the peak (0 to 1)."""
    weight_decay: float = 0.1
    """Decoupled weight decay per step and unit of learning rate; projection matrices only."""
    b1: float = 0.9
    """Decay of the mean of the gradients per step (0 up to 1)."""
    b2: float = 0.95
    """Decay of the mean of the squared gradients per step (0 up to 1)."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; the product must divide the number of devices."""

    data: int = 1
    """Devices that share out the rows of a batch and hold the same weights."""
    fsdp: int = 1
    """Devices that share out the rows of a batch and the weights."""
    tensor: int = 1
    """Devices that share out the heads and the width of every layer."""
    sequence: int = 1
    """Devices that share out the tokens of a row and hold the same weights, for long windows."""
    devices: int | None = None
    """CPU devices to emulate, for trying a mesh without accelerators; None takes what is there."""

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return self.data * self.fsdp * self.sequence * self.tensor


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """When and on how much of the held-out text the model is measured."""

    every: int = 200
    """Steps between evaluations on the held-out text; the last step is always evaluated."""
    batches: int | None = 16
    """Batches of held-out text per evaluation; None reads all of it."""
    sample_tokens: int = 200
    """Tokens of text to generate when the run ends; 0 generates none."""
    tasks: tuple[str, ...] = ()
    """Evaluators beside the held-out text, as miras evaluate --tasks takes them."""
    tasks_every: int = 0
    """Evaluations from one on which the tasks are run to the next; 0 runs them after the last step
    alone, where they are run in any case."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved, and how many checkpoints are kept."""

    every: int = 200
    """Steps between checkpoints; the last step and an interrupted one are always saved."""
    keep: int = 2
    """Newest checkpoints to keep on disk."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When metrics are written, and which."""

    every: int = 10
    """Steps between records in metrics.jsonl; the first and the last step are always written."""
    diagnostics_every: int = 0
    """Steps between records of what the inner loops of the memories do; 0, and a model of attention
    alone, writes none."""
    diagnostics_tokens: int = 256
    """Tokens, the first of a batch's first row, over which they are taken."""
    trackers: tuple[str, ...] = ()
    """Services that get every record too: tensorboard, wandb; each needs its extra installed."""
    profile_at: int = 0
    """First step of those that the profiler records in DIRECTORY/profile; 0 records none."""
    profile_steps: int = 5
    """How many steps it records."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """The processes that train together, one a machine or one a device; one alone needs none of
    this, and on a cluster they find each other."""

    coordinator: str | None = None
    """HOST:PORT at which the others reach process 0; None takes MIRAS_COORDINATOR or asks the
    cluster."""
    count: int | None = None
    """Processes in all; None takes MIRAS_PROCESS_COUNT or asks the cluster."""
    index: int | None = None
    """This process, from 0; None takes MIRAS_PROCESS_INDEX or asks the cluster."""
    detect: bool = True
    """Whether a cluster is asked: SLURM, Open MPI, Cloud TPU or Kubernetes; without, a process that
    is told nothing trains alone."""
    join_timeout: int = 300
    """Seconds to wait for the other processes when they start."""
    lost_after: int = 100
    """Seconds without a sign of life of a process after which the others end."""


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """What the run begins from."""

    checkpoint: str | None = None
    """Run, checkpoint or exported folder whose weights the run begins with; None begins with new
    ones. Looked at once: after that the run's own checkpoints count."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Whether the optimizer's moments begin at zero or are those of the checkpoint, which must have
    been trained with the same trainable parameters. The schedule begins anew in any case."""
    partial: bool = False
    """Takes what fits of a checkpoint of another model; else the first difference is refused."""


@dataclasses.dataclass(frozen=True)
class TrainableConfig:
    """Which parameters are trained; the others keep their values and cost neither gradient nor
    moments."""

    patterns: tuple[str, ...] = ()
    """Patterns (regular expressions) of what is trained, searched for in names such as
    blocks.memory.gates.step.expand.kernel; empty trains everything, or with LoRA its matrices
    alone."""
    lora: LoraConfig = LoraConfig()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; the same values give the same weights, also through a restart."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    processes: ProcessesConfig = ProcessesConfig()
    start: StartConfig = StartConfig()
    trainable: TrainableConfig = TrainableConfig()
    steps: int = 1000
    """Optimizer steps in all, those before a restart included."""
    accumulation: int = 1
    """Microbatches that one step is cut into; more of them need less memory."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss, gradient or update that is not finite does: `stop` ends the run; `skip` leaves
    the weights and the optimizer as they were and goes on with the next batch."""
    max_skipped: int = 10
    """Batches in a row that may be skipped; one more ends the run."""
    seed: int = 0
    """Seed of the initial weights and of the generated sample."""
    directory: str = "runs/default"
    """Folder of the run: checkpoints and metrics.jsonl. A run found there is continued."""


def validate(config: TrainConfig) -> None:
    """Checks what can be checked without a device or a file.

    Raises:
      UserError: names the first field that cannot hold, its value and what would.
    """
    model, data, optimizer, mesh = config.model, config.data, config.optimizer, config.mesh
    counts = {
        "steps": config.steps,
        "accumulation": config.accumulation,
        "data.window": data.window,
        "data.batch_size": data.batch_size,
        "mesh.data": mesh.data,
        "mesh.fsdp": mesh.fsdp,
        "mesh.tensor": mesh.tensor,
        "mesh.sequence": mesh.sequence,
        "mesh.devices": mesh.devices,
        "evaluation.every": config.evaluation.every,
        "evaluation.batches": config.evaluation.batches,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every": config.log.every,
        "log.diagnostics_tokens": config.log.diagnostics_tokens,
        "log.profile_steps": config.log.profile_steps,
        "max_skipped": config.max_skipped,
    }
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")
    for name in ("learning_rate", "clip_norm"):
        if not (value := getattr(optimizer, name)) > 0 or math.isinf(value):
            raise UserError(f"optimizer.{name} must be positive and finite, got {value}")
    for name in ("b1", "b2"):
        if not 0 <= (value := getattr(optimizer, name)) < 1:
            raise UserError(f"optimizer.{name} must be at least 0 and below 1, got {value}")
    if not 0 <= optimizer.final_fraction <= 1:
        raise UserError(
            f"optimizer.final_fraction must be between 0 and 1, got {optimizer.final_fraction}"
        )
    for name in ("warmup_steps", "weight_decay"):
        if not (value := getattr(optimizer, name)) >= 0:
            raise UserError(f"optimizer.{name} must not be negative, got {value}")
    for name, seed in (("seed", config.seed), ("data.seed", data.seed)):
        if not 0 <= seed < 2**32:
            raise UserError(f"{name} must be at least 0 and below {2**32}, got {seed}")
    for name, count in (
        ("evaluation.sample_tokens", config.evaluation.sample_tokens),
        ("evaluation.tasks_every", config.evaluation.tasks_every),
        ("log.diagnostics_every", config.log.diagnostics_every),
        ("log.profile_at", config.log.profile_at),
        ("data.timeout", data.timeout or 0),
    ):
        if not count >= 0:
            raise UserError(f"{name} must not be negative, got {count}")
    if config.on_nonfinite not in ("stop", "skip"):
        raise UserError(f"on_nonfinite must be stop or skip, got {config.on_nonfinite!r}")
    for pattern in config.trainable.patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"trainable.patterns {pattern!r} is no pattern: {error}") from None
    if config.start.checkpoint is None and config.start != StartConfig():
        raise UserError("start.optimizer and start.partial need a start.checkpoint")
    if data.batch_size % (parts := mesh.data * mesh.fsdp * config.accumulation):
        raise UserError(
            f"data.batch_size {data.batch_size} must be a multiple of mesh.data x mesh.fsdp"
            f" x accumulation = {mesh.data} x {mesh.fsdp} x {config.accumulation} = {parts}"
        )
    if model.heads % mesh.tensor:
        raise UserError(
            f"model.heads {model.heads} must be a multiple of mesh.tensor {mesh.tensor}"
        )
    if data.window % mesh.sequence:
        raise UserError(
            f"data.window {data.window} must be a multiple of mesh.sequence {mesh.sequence}"
        )
    if model.block == "mac" and min(model.segment_size, data.window) % mesh.sequence:
        raise UserError(
            f"model.segment {model.segment_size} must be a multiple of mesh.sequence"
            f" {mesh.sequence}, whose devices share out the tokens of a segment"
        )
    if needs_heads(model) and model.heads % (parts := mesh.tensor * mesh.sequence):
        raise UserError(
            f"model.heads {model.heads} must be a multiple of mesh.tensor x mesh.sequence"
            f" = {mesh.tensor} x {mesh.sequence} = {parts}: {model.memory} shares out heads over"
            " both, as attention and every memory without an associative form do"
        )
