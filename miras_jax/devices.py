"""What accelerators can do: one table of the makers' figures, for utilization, bounds and plans.

Memory is in bytes, rates are per second. A chip is what the maker counts; jax may see two devices
in one (`devices`).
"""

from typing import NamedTuple

GiB = 2**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


class Chip(NamedTuple):
    """A chip.

    Attributes:
      name: what people call it.
      platform: "tpu" or "gpu".
      kinds: jax's `device_kind` begins with one of these.
      flops: peak of bfloat16 products with float32 sums, dense, FLOP/s.
      memory: of its HBM as sold, bytes.
      usable: of it a program may use, bytes: on a TPU what the compiler says is available, on a GPU
        what jax takes at its start by default (XLA_PYTHON_CLIENT_MEM_FRACTION=.75).
      bandwidth: of its HBM, bytes/s.
      link: that it can send to others over all its links (ICI, NVLink) at once, bytes/s; the makers
        name twice as much, both directions.
      source: where the figures stand.
      per_host: chips of one host, the smallest usual one for a TPU.
      network: that a GPU can send beyond its host through a network card of its own, bytes/s; the
        card of the maker's reference machine (DGX).
      devices: that jax sees in one chip.
    """

    name: str
    platform: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    source: str
    per_host: int
    network: float = 0.0
    devices: int = 1


def _gpu(name, kind, flops, memory, bandwidth, link, network, page) -> Chip:
    # Memory of data sheets is in decimal gigabytes.
    kinds, usable = (f"NVIDIA {kind}",), 0.75 * memory
    source = NVIDIA + page
    return Chip(name, "gpu", kinds, flops, memory, usable, bandwidth, link, source, 8, network)


# "usable" of the TPUs is from the error of a program that is too large ("exceeds available HBM").
# The v5p is sold with "95 GiB", all of it usable. "link" of the v4: 6 links of 50 GB/s (Jouppi et
# al., arXiv 2304.01433, Table 4).
CHIPS = {
    "v4": Chip(
        *("TPU v4", "tpu", ("TPU v4",), 275e12, 32 * GiB, 30.75 * GiB),
        *(1.2e12, 300e9, GOOGLE + "v4", 4),
    ),
    "v5e": Chip(
        *("TPU v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GiB, 15.75 * GiB),
        *(0.819e12, 200e9, GOOGLE + "v5e", 4),
    ),
    "v5p": Chip(
        *("TPU v5p", "tpu", ("TPU v5", "TPU v5p"), 459e12, 95.74 * GiB, 95.74 * GiB),
        *(2.765e12, 600e9, GOOGLE + "v5p", 4),
    ),
    "v6e": Chip(
        *("TPU v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GiB, 31.25 * GiB),
        *(1.638e12, 400e9, GOOGLE + "v6e", 4),
    ),
    "7x": Chip(
        *("TPU7x", "tpu", ("TPU7x", "TPU v7x"), 2307e12, 192 * GiB, 2 * 94.75 * GiB),
        *(7.38e12, 600e9, GOOGLE + "tpu7x", 4, 0.0, 2),
    ),
    "a100-40gb": _gpu(
        *("A100 SXM 40 GB", "A100-SXM4-40GB", 312e12, 40e9, 1.555e12, 300e9, 25e9, "a100/")
    ),
    "a100-80gb": _gpu(
        *("A100 SXM 80 GB", "A100-SXM4-80GB", 312e12, 80e9, 2.039e12, 300e9, 25e9, "a100/")
    ),
    "h100": _gpu("H100 SXM", "H100 80GB HBM3", 989e12, 80e9, 3.35e12, 450e9, 50e9, "h100/"),
    "h200": _gpu("H200 SXM", "H200", 989e12, 141e9, 4.8e12, 450e9, 50e9, "h200/"),
    "b200": _gpu("B200 SXM", "B200", 2250e12, 180e9, 8e12, 900e9, 50e9, "dgx-b200/"),
}
"""By the name that topologies use."""


PEAK_FLOPS = {kind: chip.flops / chip.devices for chip in CHIPS.values() for kind in chip.kinds}
"""Peak FLOP/s of one device in bfloat16, by jax's `device_kind`."""


def chip_of(kind: str) -> Chip | None:
    """The chip of jax's `device_kind`, or of what begins with one: the longest counts; or None."""
    fits = [(prefix, chip) for chip in CHIPS.values() for prefix in chip.kinds]
    fits = [(len(prefix), chip) for prefix, chip in fits if kind.startswith(prefix)]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None
