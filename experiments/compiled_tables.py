"""The tables of docs/results/kernels_compiled.md, from the record of `prove_kernels.py`."""

from collections import defaultdict

from kernels_pallas.cases import DEEP, LINEAR, PASSES
from kernels_pallas.read import LINEAR_CHUNK

ROWS = [*LINEAR, *DEEP]
MAIN_CHIP = "v5e"
UNITS = ("MXU", "XLU", "VALU", "EUP", "VLOAD", "VSTORE")


def document(record: dict) -> str:
    """The text of the file; either back end may be missing from the record."""
    parts = [
        "# Kernels as their compilers see them",
        "Compiled ahead of time on a machine without an accelerator; nothing was run. A bundle is "
        "an instruction word of the TPU's static schedule, a register count is the assembler's: "
        "both rank variants, neither is a time. The JSON file beside this one has every figure. "
        "B = 8, H = 16, T = 4,096; decode: B = 64, T = 1.",
    ]
    if "tpu" in record:
        parts += ["## TPU", heading(record["tpu"]), *tpu_tables(entries(record["tpu"]))]
    if "gpu" in record:
        parts += ["## GPU", heading(record["gpu"]), *gpu_tables(entries(record["gpu"]))]
    return "\n\n".join(parts) + "\n"


def heading(part: dict) -> str:
    """Command, date and versions."""
    versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
    return f"`{part['command']}`, {part['date']}, {versions}."


def entries(part: dict) -> list[dict]:
    """The results in the order of the zoo."""

    def order(entry):
        place = (ROWS.index(entry["row"]), PASSES.index(entry["what"]))
        return (*place, entry["dtype"], entry["width"], entry["packed"])

    return sorted(part["results"].values(), key=order)


def kernel(entry: dict) -> dict:
    """The kernel that a case is about: of a gradient the backward one, which comes last."""
    return entry["figures"]["kernels"][-1]


def table(columns: list[str], lines: list[list]) -> str:
    """A markdown table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def tokens(entry: dict) -> int:
    """Of a chunk of the kernel: the memory's own, or for a linear memory the back end's."""
    if entry["what"] == "decode":
        return 1
    linear = entry["row"] in LINEAR
    return LINEAR_CHUNK[entry["backend"]] if linear else entry["chunk_size"]


def per_token(entry: dict) -> float:
    """Bundles of the innermost loop for each token of a chunk."""
    return kernel(entry)["bundles"][-1] / tokens(entry)


def traffic(entry: dict) -> list[str]:
    """Megabytes that the kernels and the whole program move, and that cannot be avoided."""
    figures, ideal = entry["figures"], entry["ideal_bytes"]
    kernels = sum(k["hbm_bytes"] for k in figures["kernels"])
    moved = figures["moved_bytes"]
    return [f"{n / 1e6:,.0f}" for n in (ideal, kernels, moved)] + [f"{moved / ideal:.1f}"]


def tpu_tables(found: list[dict]) -> list[str]:
    """The main table on one chip, the other sizes and chips, and what failed."""
    good = [entry for entry in found if not entry["error"]]
    main = [
        entry
        for entry in good
        if entry["chip"] == MAIN_CHIP
        and (entry["dtype"], entry["width"], entry["packed"]) == ("bfloat16", 64, False)
    ]
    lines = []
    for entry in main:
        k = kernel(entry)
        spilled = f"{k['units']['VSPILL']} / {k['units']['VFILL']}"
        vmem = f"{k['vmem_bytes'] / 1024:,.0f}"
        around = k["bundles"][1] if len(k["bundles"]) > 2 else 0
        bundles = [around, k["bundles"][-1], f"{per_token(entry):.1f}"]
        units = [k["units"][unit] for unit in UNITS]
        figures = [vmem, *bundles, *units, spilled, *traffic(entry)]
        lines.append([entry["row"], entry["what"], tokens(entry), *figures])
    columns = ["row", "pass", "chunk", "VMEM KiB"]
    columns += ["bundles a group", "a chunk", "a token", *UNITS]
    columns += ["spills / fills", "ideal MB", "kernels MB", "program MB", "program / ideal"]
    about = (
        f"{MAIN_CHIP}, key and value width 64, bfloat16. Bundles a chunk are those of the kernel's "
        "innermost loop, for one head; where a grid step reads a group of "
        "chunks, those around that loop stand before them. Of a decoded token a chunk is the "
        "token. The units' columns count slots used in all bundles. Ideal: every argument read and "
        "every result written once. Program: what its operations read and write, the copies before "
        "and after the kernels and the padding of arrays to whole tiles included; the states saved "
        "for the backward pass too."
    )
    return [about, table(columns, lines), *tpu_sizes(good), *failures(found)]


def tpu_sizes(good: list[dict]) -> list[str]:
    """Bundles a token and VMEM by width, dtype and chip."""
    settings: dict[tuple, dict] = defaultdict(dict)
    for entry in good:
        if entry["chunk_size"] != 64:
            continue
        setting = (entry["width"], entry["dtype"], entry["packed"], entry["chip"])
        settings[setting][entry["row"], entry["what"]] = entry
    columns = ["row", "pass"]
    columns += [
        f"{width} {'f32' if dtype == 'float32' else 'bf16'}{' packed' if packed else ''} {chip}"
        for width, dtype, packed, chip in sorted(settings)
    ]
    lines = []
    for row in ROWS:
        for what in PASSES:
            cells = []
            for setting in sorted(settings):
                entry = settings[setting].get((row, what))
                if entry is None:
                    cells.append("")
                else:
                    vmem = kernel(entry)["vmem_bytes"] / 2**20
                    cells.append(f"{per_token(entry):.1f} ({vmem:.1f})")
            if any(cells):
                lines.append([row, what, *cells])
    about = (
        "All sizes and chips: bundles of the innermost loop a token, and in brackets the VMEM in "
        "MiB (v5e and v6e have 128, v5p has 64). Packed: a state is continued and documents begin "
        "anywhere."
    )
    return [about, table(columns, lines)]


def gpu_tables(found: list[dict]) -> list[str]:
    """Registers, spills and shared memory of every case."""
    lines = []
    for entry in found:
        if entry["error"]:
            continue
        for k in entry["figures"]["kernels"]:
            spilled = f"{k['spill_store_bytes']} / {k['spill_load_bytes']}"
            packed = " packed" if entry["packed"] else ""
            what = [entry["row"], entry["what"] + packed, entry["width"], entry["dtype"], k["name"]]
            shared = f"{k['shared_bytes'] / 1024:.0f}"
            lines.append([*what, k["threads"], k["registers"], spilled, shared, *traffic(entry)])
    columns = ["row", "pass", "width", "dtype", "kernel", "threads", "registers"]
    columns += ["spilled bytes stored / loaded", "shared KiB"]
    columns += ["ideal MB", "kernels MB", "program MB", "program / ideal"]
    about = "H200. 255 registers is the most that a thread can have, 227 KiB the most of a block."
    return [about, table(columns, lines), *failures(found)]


def failures(found: list[dict]) -> list[str]:
    """What did not compile, with the first line of the reason."""
    lines = []
    for entry in found:
        if entry["error"]:
            reason = entry["error"].strip().splitlines()[0][:300].replace("|", "\\|")
            what = [entry[k] for k in ("row", "what", "width", "dtype", "chip")]
            lines.append([*what, reason])
    if not lines:
        return ["Every case compiled."]
    columns = ["row", "pass", "width", "dtype", "chip", "reason"]
    return ["Not compiled:", table(columns, lines)]
