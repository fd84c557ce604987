"""What to change where a run does not fit: the first change in a fixed order that does fit.

Every proposal is planned like the run itself before it is made.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from miras_jax.planning.mesh import meshes, options, sizes
from miras_jax.planning.plan import Plan
from miras_jax.planning.topology import Topology
from miras_jax.training.config import TrainConfig, validate
from miras_jax.training.errors import UserError

MOST_CHECKED = 8
"""Proposals that are planned; compiling one takes minutes."""


class Proposal(NamedTuple):
    """A change.

    Attributes:
      words: what it does.
      options: what to add to the command line.
      config: the run with it.
      topology: the machine with it.
    """

    words: str
    options: str
    config: TrainConfig
    topology: Topology


class Advice(NamedTuple):
    """What was found.

    Attributes:
      proposal: the first that fits, or None.
      plan: the plan of it.
      tried: what was planned and does not fit.
    """

    proposal: Proposal | None
    plan: Plan | None
    tried: tuple[str, ...]


def advise(plan: Plan, check: Callable[[TrainConfig, Topology], Plan]) -> Advice:
    """Returns the first proposal that fits when `check` plans it."""
    tried = []
    for proposal in proposals(plan.config, plan.topology):
        if len(tried) == MOST_CHECKED:
            break
        if _hopeless(plan, proposal):
            continue
        found = check(proposal.config, proposal.topology)
        if found.fits:
            return Advice(proposal, found, tuple(tried))
        tried.append(proposal.options)
    return Advice(None, None, tuple(tried))


def proposals(config: TrainConfig, topology: Topology) -> Iterator[Proposal]:
    """Yields what may help, in order: remat, accumulation, more fsdp, a larger slice.

    Each keeps what came before, at its most.
    """
    base, before = config, ""
    if not config.model.remat:
        base = dataclasses.replace(base, model=dataclasses.replace(base.model, remat=True))
        before = "--model.remat "
        yield Proposal("recompute blocks in the backward pass", before.strip(), base, topology)
    yield from _accumulated(base, topology, before, "")
    for spread in _more_fsdp(base):
        changed = before + options(spread.mesh) + " "
        words = "share the state out over more devices"
        yield Proposal(words, changed.strip(), spread, topology)
        yield from _accumulated(spread, topology, changed, words + ", ")
    bigger = topology.larger()
    while bigger is not None and bigger.chips <= 16 * topology.chips:
        for spread in meshes(base, bigger.devices):
            changed = f"--topology {bigger.name} {before}{options(spread.mesh)} "
            words = f"take {bigger.chips} chips"
            yield Proposal(words, changed.strip(), spread, bigger)
            yield from _accumulated(spread, bigger, changed, words + ", ")
            break
        bigger = bigger.larger()


def _accumulated(config, topology, before: str, words: str) -> Iterator[Proposal]:
    """With two, four ... times as many microbatches, down to a row a device."""
    count = 2 * config.accumulation
    while count <= config.data.batch_size:
        changed = dataclasses.replace(config, accumulation=count)
        try:
            validate(changed)
        except UserError:
            return
        rows = config.data.batch_size // count
        yield Proposal(
            f"{words}cut the batch into {count} microbatches of {rows} rows",
            f"{before}--accumulation {count}",
            changed,
            topology,
        )
        count *= 2


def _more_fsdp(config: TrainConfig) -> Iterator[TrainConfig]:
    """Devices of other axes over which the weights are copied or cut less, moved to fsdp."""
    mesh = config.mesh
    for axis in ("data", "tensor"):
        if (size := sizes(mesh)[axis]) > 1:
            moved = dataclasses.replace(mesh, fsdp=mesh.fsdp * size, **{axis: 1})
            changed = dataclasses.replace(config, mesh=moved)
            try:
                validate(changed)
            except UserError:
                continue
            yield changed


def _hopeless(plan: Plan, proposal: Proposal) -> bool:
    """Whether more microbatches cannot be enough, by the figures of the plan that did not fit:
    at best all but the state becomes smaller in their proportion."""
    same = proposal.config.mesh == plan.config.mesh and proposal.topology == plan.topology
    if not same or proposal.config.model.remat != plan.config.model.remat:
        return False
    cut = proposal.config.accumulation / plan.config.accumulation
    return plan.held + (plan.needed - plan.held) / cut > plan.available
