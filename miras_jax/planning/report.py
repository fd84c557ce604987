"""A plan in words and tables."""

from collections.abc import Iterator

from rich.table import Table

from miras_jax.planning.advice import Advice
from miras_jax.planning.liveness import TOLERANCE
from miras_jax.planning.mesh import words
from miras_jax.planning.plan import Plan

MiB = 2**20
WORDS = ("shape", "over", "known")
HOW = {
    "exact": "from shapes",
    "compiler": "compiled",
    "estimate": "estimated",
}


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def report(plan: Plan) -> Iterator[str | Table]:
    """Yields the lines and tables of a plan, in the order in which they are printed."""
    config, topology, figures = plan.config, plan.topology, plan.figures()
    model, data = config.model, config.data
    yield (
        f"{model.memory}, {plan.arrays.count:,} parameters, {model.depth} blocks of width"
        f" {model.dim}; {topology.name}: {topology.chips} chip(s),"
        f" {topology.devices} device(s), {topology.hosts} host(s)"
    )
    mesh = words(config.mesh)
    yield (
        f"mesh {mesh}; {data.batch_size} rows of {data.window:,} tokens a step in"
        f" {config.accumulation} microbatch(es),"
        f" {'documents packed' if plan.options.packed else 'one document a row'};"
        f" remat {'on' if model.remat else 'off'}"
    )
    yield _how(plan)
    yield ""
    yield _groups(plan)
    yield ""
    yield _parameters(plan)
    yield ""
    yield _memory(plan)
    yield ""
    yield _collectives(plan)
    yield ""
    yield from _times(plan, figures)
    yield ""
    yield _verdict(plan)


def _how(plan: Plan) -> str:
    compiled = plan.compiled
    if not compiled:
        return "Nothing was compiled: memory and collectives are estimates from the equations."
    compiler = "TPU's compiler" if plan.topology.platform == "tpu" else "compiler for CPUs"
    if compiled.refused:
        return f"The {compiler} refused the step: it is too large."
    loops = compiled.unknown_loops
    return (
        f"Compiled by the {compiler} in {compiled.seconds:.0f} s;"
        f" {compiled.kernels} call(s) of this library's kernels"
        + (f"; {loops} loop(s) of unknown length counted once" if loops else "")
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        words = i == 0 or column in WORDS
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    return table


def _groups(plan: Plan) -> Table:
    table = _table("parameters by group", "group", "count", "share")
    for name, count in plan.arrays.groups().items():
        table.add_row(name, f"{count:,}", f"{count / plan.arrays.count:.1%}")
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("parameters and where they lie", "parameter", "shape", "over", "MiB a device")
    for row in plan.arrays.parameters:
        shape = " x ".join(map(str, row.shape))
        over = ", ".join(axis or "-" for axis in row.axes)
        table.add_row(row.name, shape, over, f"{row.device_bytes / MiB:,.2f}")
    return table


def _memory(plan: Plan) -> Table:
    table = _table("memory of one device", "part", "MiB", "known")
    for part in plan.parts():
        table.add_row(part.name, f"{part.bytes / MiB:,.1f}", HOW[part.how])
    table.add_row("all", f"{plan.needed / MiB:,.1f}", "")
    table.add_row("available", f"{plan.available / MiB:,.1f}", _of_what(plan))
    return table


def _of_what(plan: Plan) -> str:
    chip = plan.topology.chip
    if chip is None:
        return "this machine's, shared"
    return f"of {chip.memory / chip.devices / MiB:,.0f}"


def _collectives(plan: Plan) -> Table:
    compiled = plan.compiled and not plan.compiled.refused
    title = f"collectives of one step, {'compiled' if compiled else 'estimated'}"
    table = _table(title, "kind", "devices", "count", "array MiB", "sent MiB a device")
    for row in plan.collectives:
        numbers = (f"{row.payload / MiB:,.1f}", f"{row.sent / MiB:,.1f}")
        table.add_row(row.kind, str(row.group), f"{row.count:,}", *numbers)
    if not plan.collectives:
        table.add_row("none", "", "", "", "")
    return table


def _times(plan: Plan, figures: dict) -> Iterator[str | Table]:
    flops, steps = figures["step"]["model_flops"], plan.config.steps
    yield (
        f"{flops:.3e} FLOPs a step forward and backward; {plan.tokens:,} tokens a step,"
        f" {figures['run']['tokens']:,} in {steps:,} steps"
    )
    if not (bounds := figures["bounds"]):
        yield "No bound on the time: emulated devices have no peaks."
        return
    seconds = ", ".join(f"{n} {_ms(bounds[n])} ms" for n in ("compute", "memory", "network"))
    yield f"at least, each at its peak: {seconds}; {bounds['binding']} binds"
    table = _table("time", "", "step ms", "tokens/s", "MFU", "days", "chip-hours")
    for name, found in (("at least", bounds), ("assumed", figures["assumed"])):
        table.add_row(
            name,
            _ms(found["step"]),
            f"{found['tokens_per_second']:,.0f}",
            f"{found['mfu']:.2f}",
            f"{found['days']:,.2f}",
            f"{found['chip_hours']:,.0f}",
        )
    yield table
    if figures["assumed"]["step"] < bounds["step"]:
        yield (
            f"An MFU of {figures['assumed']['mfu']:.2f} cannot be reached:"
            f" {bounds['mfu']:.2f} is the most."
        )


def _verdict(plan: Plan) -> str:
    share = plan.needed / plan.available
    words = "fits" if plan.fits else "does not fit"
    near = not plan.compiled and 1 / TOLERANCE < share < TOLERANCE
    return (
        f"{words}: {plan.needed / MiB:,.0f} MiB on each device, {share:.0%} of what is available"
        + (f", which is closer than the estimate's {TOLERANCE - 1:.0%}" if near else "")
    )


def advice_lines(advice: Advice) -> Iterator[str]:
    """Yields what to change."""
    for options in advice.tried:
        yield f"planned, and does not fit either: {options}"
    if advice.proposal is None:
        yield "nothing that was planned fits; a smaller model, window or batch would be needed"
        return
    plan, how = advice.plan, "compiled" if advice.plan.compiled else "estimated"
    yield (
        f"would fit ({how}: {plan.needed / MiB:,.0f} of {plan.available / MiB:,.0f} MiB):"
        f" {advice.proposal.words}: {advice.proposal.options}"
    )
