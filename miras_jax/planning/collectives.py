"""What devices send each other in one step, read from the text of a compiled program.

Layers and microbatches are loops in it: a collective counts as often as the loops round it turn.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from kernels_pallas.aot_hlo import ARRAY, BYTES, INSTRUCTION

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch|called)_computations=\{([^}]*)\}"
)
LOOP = re.compile(r"condition=%?([\w.-]+), body=%?([\w.-]+)")
OVERLAPPED = "async_collective_fusion"
"""A TPU's collective that runs beside other work stands in each piece of work beside it."""


class Collective(NamedTuple):
    """Collectives of one kind over groups of one size.

    Attributes:
      kind: of `KINDS`.
      group: devices that take part in one.
      count: how often a step runs it.
      payload: bytes in a step of the whole arrays that are gathered, reduced or moved.
      sent: bytes in a step that each device must at least send.
    """

    kind: str
    group: int
    count: int
    payload: float
    sent: float


class Program(NamedTuple):
    """Collectives, largest first, and loops whose number of turns is not known, counted once."""

    collectives: tuple[Collective, ...]
    unknown_loops: int


def sent(kind: str, payload: float, group: int) -> float:
    """Bytes that a device must send for a collective, on a network of any shape.

    Args:
      kind: of `KINDS`.
      payload: bytes of the whole array: what an all-gather makes, what the others take.
      group: devices that take part.
    """
    if kind in ("collective-permute", "collective-broadcast"):
        return payload
    return payload * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def read_program(text: str, devices: int) -> Program:
    """Counts the collectives of a compiled program.

    Args:
      text: `compiled.as_text()`.
      devices: of the program, the group of a collective that names none.
    """
    bodies = dict(_computations(text))
    entry = next(name for name, (first, _) in bodies.items() if first)
    turns: dict[str, float] = {}
    unknown: set[str] = set()

    def visit(name: str, times: float) -> None:
        turns[name] = turns.get(name, 0) + times
        for line in bodies[name][1]:
            if loop := LOOP.search(line):
                trips = _trips(line, bodies[loop[1]][1])
                if trips is None:
                    unknown.add(name)
                visit(loop[2], times * (trips or 1))
                continue
            for one, several in CALLED.findall(line):
                for called in re.findall(r"[\w.-]+", one or several):
                    if called in bodies:
                        visit(called, times)

    visit(entry, 1)
    found: dict[tuple[str, int], list[float]] = {}
    pieces: dict[str, list[tuple]] = {}
    for name, times in turns.items():
        for kind, group, payload, channel in _of(bodies[name][1], devices):
            pieces.setdefault(channel, []).append((times, kind, group, payload, name))
    for same in pieces.values():
        if any(OVERLAPPED in name for *_, name in same):
            same = [min(same)]  # begun once, however many loops it goes on in
        for times, kind, group, payload, _ in same:
            _add(found, kind, group, payload, times)
    rows = [Collective(kind, group, *sums) for (kind, group), sums in found.items()]
    return Program(tuple(sorted(rows, key=lambda row: -row.sent)), len(unknown))


def _add(found: dict, kind: str, group: int, payload: float, times: float) -> None:
    sums = found.setdefault((kind, group), [0, 0.0, 0.0])
    for i, more in enumerate((1, payload, sent(kind, payload, group))):
        sums[i] += times * more


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    """By name: whether it is the entry, and its lines."""
    name, first, lines = None, False, []
    for line in text.splitlines():
        if name is None:
            if found := HEADER.match(line):
                name, first, lines = found[2], bool(found[1]), []
        elif line.startswith("}"):
            yield name, (first, lines)
            name = None
        else:
            lines.append(re.sub(r"/\*.*?\*/", "", line))


def _trips(line: str, condition: list[str]) -> int | None:
    """How often a loop turns: what the compiler says, or the constant it counts up to."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', line):
        return int(known[1])
    counts = [
        int(n) for each in condition for n in re.findall(r"\bs32\[\].* constant\((\d+)", each)
    ]
    below = any("direction=LT" in each for each in condition)
    return counts[0] if len(counts) == 1 and below else None


def _of(lines: list[str], devices: int) -> Iterator[tuple[str, int, float, str]]:
    """Kind, size of the groups, payload in bytes and channel of each collective."""
    sizes: dict[str, int] = {}
    for line in lines:
        if not (found := INSTRUCTION.match(line)):
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = _bytes(shape)
        kind = operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        group = _group(line, devices)
        if group < 2 and kind != "collective-permute":
            continue
        operands = re.findall(r"%([^\s,()]+)", rest.split(")")[0])
        payload = sum(sizes.get(operand, 0) for operand in operands)
        if kind == "all-gather":
            payload *= group
        channel = re.search(r"channel_id=(\d+)", line)
        yield kind, group, payload, channel[1] if channel else name


def _bytes(shape: str) -> int:
    """Bytes of an array or a tuple of them, without padding."""
    return sum(
        BYTES.get(kind, 0) * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes, _, _ in ARRAY.findall(shape)
    )


def _group(line: str, devices: int) -> int:
    """Devices of one group, of any of the compiler's ways to write them."""
    if named := re.search(r"replica_groups=(?:mesh)?\[([^\]]*=[^\]]*)\]\s*\{([^}]*)\}", line):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or axes[axis]) for axis, part in used)
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(counted[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(listed[1].split(","))
    return devices
