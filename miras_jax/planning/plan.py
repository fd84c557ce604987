"""A plan: what one configuration of a run takes on one machine."""

import dataclasses
import os
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from miras_jax.planning.arrays import Arrays, arrays_of
from miras_jax.planning.bounds import DAY, Bounds, bounds_of, step_flops
from miras_jax.planning.collectives import Collective
from miras_jax.planning.compiling import Compiled, check_compiler, compile_step
from miras_jax.planning.liveness import temporaries
from miras_jax.planning.mesh import piece, sizes
from miras_jax.planning.topology import Topology
from miras_jax.planning.traffic import expected_collectives
from miras_jax.training.config import TrainConfig, validate

How = Literal["exact", "compiler", "estimate"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a plan is made.

    Attributes:
      experiment: file to run before the configuration can be read in another process, or None.
      packed: whether rows hold several documents; None takes what the source will give.
      mfu: model FLOPs utilization to assume, 0 to 1.
      timeout: seconds that one compilation may take.
    """

    experiment: str | None = None
    packed: bool | None = None
    mfu: float = 0.4
    timeout: float = 1800.0


class Part(NamedTuple):
    """A part of the memory of one device: its name, bytes, and how they are known."""

    name: str
    bytes: float
    how: How


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step takes; bytes are of one device.

    Attributes:
      config: the run.
      topology: the machine.
      options: how the plan was made.
      arrays: what is held throughout.
      compiled: what the compiler said; None where the plan is analytic.
      estimate: bytes of temporaries, where nothing was compiled.
    """

    config: TrainConfig
    topology: Topology
    options: Options
    arrays: Arrays
    compiled: Compiled | None
    estimate: float = 0.0

    @property
    def needed(self) -> float:
        """Bytes that the step takes."""
        if self.compiled:
            return self.compiled.needed
        return self.held + self.estimate

    @property
    def held(self) -> int:
        """Bytes of state and batch, without padding."""
        return self.arrays.device_bytes + self.arrays.optimizer + self.arrays.batch

    @property
    def available(self) -> float:
        """Bytes that it may take."""
        said = self.compiled and self.compiled.available
        return said or self.topology.usable

    @property
    def fits(self) -> bool:
        """Whether the step fits: a TPU's compiler decides, elsewhere the figures."""
        if self.compiled and (self.compiled.refused or self.topology.platform == "tpu"):
            return not self.compiled.refused
        return self.needed <= self.available

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """In the compiled program; those that the sharding asks for where there is none."""
        if self.compiled and not self.compiled.refused:
            return self.compiled.collectives
        return expected_collectives(self.config, self.arrays)

    @property
    def bounds(self) -> Bounds | None:
        """The least time of a step; None for emulated devices."""
        return bounds_of(self.config, self.topology, self.arrays, self.collectives)

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.config.data.batch_size * self.config.data.window

    def parts(self) -> list[Part]:
        """The memory of one device; the parts add up to `needed`."""
        arrays, compiled = self.arrays, self.compiled
        parts = [
            Part("parameters", arrays.device_bytes, "exact"),
            Part("optimizer", arrays.optimizer, "exact"),
            Part("batch", arrays.batch, "exact"),
        ]
        rest, how = self.needed - self.held, "compiler" if compiled else "estimate"
        if compiled and not compiled.refused:
            parts.append(Part("padding of these", compiled.arguments - self.held, "compiler"))
            rest = compiled.temporaries
        # Where buffers are shared the known parts may be more than there is.
        for name, known in (
            ("gradients", float(arrays.device_bytes)),
            ("residual stream, kept at every block", self._stream()),
        ):
            known = min(known, rest)
            parts.append(Part(name, known, "exact"))
            rest -= known
        parts.append(Part("activations in a block, logits, other temporaries", rest, how))
        if compiled and not compiled.refused:
            parts.append(Part("program", compiled.code, "compiler"))
        return parts

    def _stream(self) -> float:
        (rows, window), model = piece(self.config), self.config.model
        return model.depth * rows * window * model.dim * jnp.dtype(model.dtype).itemsize

    def figures(self) -> dict[str, Any]:
        """All figures as plain data: bytes, seconds, FLOPs."""
        config, topology, chip = self.config, self.topology, self.topology.chip
        flops = step_flops(config)
        found = {
            "topology": topology.name,
            "chips": topology.chips,
            "devices": topology.devices,
            "hosts": topology.hosts,
            "model": config.model.memory,
            "mesh": sizes(config.mesh),
            "options": {
                "batch_size": config.data.batch_size,
                "window": config.data.window,
                "accumulation": config.accumulation,
                "remat": config.model.remat,
                "steps": config.steps,
                "packed": self.options.packed,
            },
            "parameters": {
                "count": self.arrays.count,
                "groups": self.arrays.groups(),
                "arrays": [row._asdict() for row in self.arrays.parameters],
            },
            "memory": {
                "fits": self.fits,
                "needed": self.needed,
                "available": self.available,
                "of_chip": chip.memory / chip.devices if chip else None,
                "parts": [part._asdict() for part in self.parts()],
            },
            "collectives": {
                "how": "compiler" if self._compiled else "estimate",
                "rows": [row._asdict() for row in self.collectives],
            },
            "compilation": None,
            "step": {"tokens": self.tokens, "model_flops": flops},
            "run": {"tokens": self.tokens * config.steps},
            "bounds": None,
        }
        if self.compiled:
            found["compilation"] = {
                "seconds": self.compiled.seconds,
                "kernels": self.compiled.kernels,
                "unknown_loops": self.compiled.unknown_loops,
            }
        if bounds := self.bounds:
            peak = chip.flops * topology.chips
            found["bounds"] = dataclasses.asdict(bounds) | {
                "step": bounds.step,
                "binding": bounds.binding,
                "mfu": flops / (peak * bounds.step),
                **self._run(bounds.step),
            }
            seconds = flops / (peak * self.options.mfu)
            found["assumed"] = {"mfu": self.options.mfu, "step": seconds, **self._run(seconds)}
        return found

    @property
    def _compiled(self) -> bool:
        return bool(self.compiled and not self.compiled.refused)

    def _run(self, seconds: float) -> dict[str, float]:
        days = seconds * self.config.steps / DAY
        return {
            "tokens_per_second": self.tokens / seconds,
            "days": days,
            "chip_hours": days * 24 * self.topology.chips,
        }


def make_plan(config: TrainConfig, topology: Topology, options: Options) -> Plan:
    """Plans one configuration; its mesh has all devices of the topology.

    Raises:
      UserError: the configuration cannot run, or the compiler cannot be used.
    """
    validate(config)
    check_compiler(topology)
    if options.packed is None:
        options = dataclasses.replace(options, packed=packs(config))
    arrays = arrays_of(config, packed=options.packed)
    plan = Plan(config, topology, options, arrays, None)
    if topology.platform == "gpu":
        # Kernels cannot be traced for a machine that is not here; without, memories take more.
        estimate = temporaries(config, arrays, packed=options.packed, platform="gpu")
        return dataclasses.replace(plan, estimate=estimate)
    compiled = compile_step(
        config,
        topology,
        packed=options.packed,
        experiment=options.experiment,
        timeout=options.timeout,
    )
    return dataclasses.replace(plan, compiled=compiled)


def packs(config: TrainConfig) -> bool:
    """Whether the rows of a run hold several documents: token sets do, text does not.

    What is not there to look at is taken for a token set.
    """
    source = config.data.source
    return not (isinstance(source, str) and (source == "stdlib" or os.path.isfile(source)))
