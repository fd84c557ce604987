"""Machines by name: what they are made of, and what is no machine."""

import pytest

from miras_jax import devices
from miras_jax.devices import CHIPS, PEAK_FLOPS, GiB, chip_of
from miras_jax.planning.topology import parse
from miras_jax.training import UserError


@pytest.mark.parametrize(
    ("name", "platform", "chips", "devices", "hosts"),
    [
        ("v4:2x2x4", "tpu", 16, 16, 4),
        ("v5e:16x16", "tpu", 256, 256, 64),
        ("v5e:1x1", "tpu", 1, 1, 1),
        ("v5p:4x4x4", "tpu", 64, 64, 16),
        ("v6e:2x4", "tpu", 8, 8, 2),
        ("7x:2x2x1", "tpu", 4, 8, 1),
        ("tpu7x:2x2x1", "tpu", 4, 8, 1),
        ("H100:64", "gpu", 64, 64, 8),
        ("a100-40gb:4", "gpu", 4, 4, 1),
        ("cpu:8", "cpu", 8, 8, 1),
    ],
)
def test_machines(name, platform, chips, devices, hosts):
    found = parse(name)
    assert (found.platform, found.chips, found.devices, found.hosts) == (
        platform,
        chips,
        devices,
        hosts,
    )
    assert parse(found.name) == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "there is no chip 'v9'; give one of v4, v5e"),
        ("v5e", "say how many chips, as in v5e:4x4"),
        ("v5e:axb", "say how many chips"),
        ("v5e:0x4", "say how many chips"),
        ("v5e:4x4x4", "v5e has 2 axes, as in v5e:4x4, got 3"),
        ("h100:2x2", "h100 has 1 axis, as in h100:8, got 2"),
        ("v6e:16x32", "the largest slice of v6e is 16x16"),
    ],
)
def test_what_is_no_machine(name, message):
    with pytest.raises(UserError, match=message):
        parse(name)


def test_larger_slices():
    assert parse("v5e:8x16").larger().name == "v5e:16x16"
    assert parse("v5e:16x16").larger() is None
    assert parse("v5p:4x4x8").larger().name == "v5p:8x4x8"
    assert parse("h100:8").larger().name == "h100:16"


def test_memory_of_a_device():
    assert parse("v5e:4x4").usable == 15.75 * GiB
    assert parse("7x:2x2x1").usable == 94.75 * GiB, "a chip is two devices"
    assert parse("h100:8").usable == 60e9, "jax takes three quarters"
    assert parse("cpu:4").usable == pytest.approx(2 * parse("cpu:8").usable)


def test_one_table_of_chips():
    """A device is found by jax's name for it, and what a name leaves open is not guessed."""
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("TPU v5") is CHIPS["v5p"]
    assert chip_of("NVIDIA A100-SXM4-40GB") is CHIPS["a100-40gb"]
    assert chip_of("NVIDIA H100 PCIe") is None
    assert PEAK_FLOPS["TPU7x"] == CHIPS["7x"].flops / 2
    for chip in CHIPS.values():
        assert chip.usable <= chip.memory
        assert chip.source.startswith((devices.GOOGLE, devices.NVIDIA))
        assert bool(chip.network) == (chip.platform == "gpu")
