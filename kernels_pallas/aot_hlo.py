"""What a compiled program says about itself: its operations and the bytes that they move.

Read from the text of the optimised program (`compiled.as_text()`), for any backend.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4}
BYTES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}

# What an array is made of: type, sizes, then in braces the order of the axes and, after a colon,
# the tiles and the memory space: bf16[4,512,128]{2,1,0:T(8,128)(2,1)S(1)}.
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\](?:\{([0-9,]*)(?::([^}]*))?\})?")
# "  %name = shape operation(%operand, ...), attributes"; a tuple's shape is in parentheses.
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
PALLAS_NAME = re.compile(r'op_name="[^"]*?([\w.<>-]+)\)*/(?:pallas_call|mpmd_map)')

# Names for what exists already.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")


class Instruction(NamedTuple):
    """One operation of the entry computation."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    text: str

    @property
    def kernel(self) -> str:
        """The name given to `pallas_call`, or that of the instruction."""
        found = PALLAS_NAME.search(self.text)
        return found.group(1) if found else self.name


def instructions(text: str) -> Iterator[Instruction]:
    """Yields the operations of the entry computation."""
    entry = re.split(r"^ENTRY ", text, maxsplit=1, flags=re.MULTILINE)[-1]
    for line in entry.splitlines():
        if found := INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line)):
            name, shape, operation, rest = found.groups()
            operands = re.findall(r"%([^\s,()]+)", rest.split("), ")[0])
            yield Instruction(name, shape, operation, tuple(operands), line)


def array_bytes(shape: str, anywhere: bool = False) -> int:
    """Bytes of main memory that a shape takes, padding to whole tiles included.

    Arrays in other memory spaces (a TPU's VMEM is space 1) count nothing, unless `anywhere`.
    """
    total = 0
    for kind, sizes, order, layout in ARRAY.findall(shape):
        if kind in BYTES and (anywhere or not re.search(r"S\([1-9]", layout)):
            total += BYTES[kind] * math.prod(_padded(sizes, order, layout))
    return total


def _padded(sizes: str, order: str, layout: str) -> list[int]:
    """The sizes of an array, the axes of its outermost tile rounded up to whole tiles."""
    sizes = [int(n) for n in sizes.split(",") if n]
    tile = re.search(r"T\(([0-9,]+)\)", layout)
    if tile and sizes:
        tile = [int(n) for n in tile.group(1).split(",")]
        # The order lists the fastest axis first, a tile lists it last.
        for axis, n in zip((int(a) for a in order.split(",")), reversed(tile), strict=False):
            sizes[axis] = -(-sizes[axis] // n) * n
    return sizes


def border_bytes(text: str) -> dict[str, int]:
    """Main memory that each operation reads and writes, by its name, if it reads its operands and
    writes its result once; of a slice it reads what it takes. Loops count one turn."""
    shapes, operands, moved = {}, {}, {}
    for op in instructions(text):
        shapes[op.name], operands[op.name] = op.shape, set(op.operands)
        if op.operation in FREE or op.operation.endswith("-start"):
            continue
        sources = operands[op.name]
        if op.operation.endswith("-done"):
            sources = set().union(*(operands.get(name, ()) for name in sources))
        read = sum(array_bytes(shapes.get(name, "")) for name in sources)
        if op.operation.endswith(("slice", "-done")):
            read = min(read, array_bytes(op.shape, anywhere=True))
        moved[op.name] = read + array_bytes(op.shape)
    return moved


def operations(text: str) -> dict[str, int]:
    """How often each operation occurs in the entry computation, commonest first."""
    counted = (op.operation.removesuffix("-start") for op in instructions(text))
    counts = Counter(op for op in counted if op not in FREE and not op.endswith("-done"))
    return dict(counts.most_common())


def custom_calls(text: str, target: str) -> list[Instruction]:
    """The kernels of the entry computation: calls of the given target."""
    return [op for op in instructions(text) if f'custom_call_target="{target}"' in op.text]
