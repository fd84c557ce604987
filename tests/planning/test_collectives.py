"""Collectives are counted as often as a step runs them, in the texts that compilers write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.planning.collectives import Collective, read_program, sent

# Two microbatches of twelve layers; the loops say how often they turn, or count up to a constant.
NESTED = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%layer (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %w = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %ag-start = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) all-gather-start(%w), channel_id=1, \
replica_groups=[2,4]<=[8], dimensions={0}
  %ag = bf16[32,16]{1,0} all-gather-done(%ag-start)
  ROOT %t = (s32[], bf16[8,16]) tuple(%i, %w)
}

%below (p: (s32[], bf16[8,16])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %p = (s32[], bf16[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %twelve), direction=LT
}

%micro (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]) parameter(0)
  ROOT %while.1 = (s32[], /*index=1*/bf16[8,16]) while(%p), condition=%below, body=%layer
}

%any (p: (s32[], bf16[8,16])) -> pred[] {
  %p = (s32[], bf16[8,16]) parameter(0)
  ROOT %x = pred[] custom-call(%p), custom_call_target="unknown"
}

ENTRY %main (x: bf16[8,16], g: f32[100]) -> f32[100] {
  %x = bf16[8,16]{1,0} parameter(0)
  %g = f32[100]{0} parameter(1)
  %while.2 = (s32[], bf16[8,16]) while(%x), condition=%any, body=%micro, \
backend_config={"known_trip_count":{"n":"2"}}
  %alone = f32[100]{0} all-reduce(%g), channel_id=3, replica_groups={{0},{1}}, to_apply=%add
  ROOT %ar = f32[100]{0} all-reduce(%g), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add
}
"""


def test_loops_multiply():
    gathered = 32 * 16 * 2
    assert read_program(NESTED, devices=8) == (
        (
            Collective("all-gather", 4, 24, 24 * gathered, 24 * gathered * 3 / 4),
            Collective("all-reduce", 8, 1, 400, 2 * 400 * 7 / 8),
        ),
        0,
    )


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    unknown = NESTED.replace(', backend_config={"known_trip_count":{"n":"2"}}', "")
    program = read_program(unknown, devices=8)
    assert program.unknown_loops == 1
    assert program.collectives[0].count == 12


# A collective that goes on beside the work of a loop stands in its start and in each piece.
OVERLAPPED = """
%begin (p: f32[10]) -> f32[80] {
  %p = f32[10] parameter(0)
  %ag.1 = f32[80] all-gather(%p), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %start = f32[80] custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: f32[10]) -> f32[80] {
  %p = f32[10] parameter(0)
  %work = f32[10] multiply(%p, %p)
  ROOT %ag.2 = f32[80] all-gather(%p), channel_id=5, replica_groups={{0,1,2,3,4,5,6,7}}
}

%body (p: f32[10]) -> f32[10] {
  %p = f32[10] parameter(0)
  ROOT %fusion = f32[80] fusion(%p), kind=kLoop, calls=%async_collective_fusion.1
}

%cond (p: f32[10]) -> pred[] {
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%p, %n), direction=LT
}

ENTRY %main (p: f32[10]) -> f32[10] {
  %p = f32[10] parameter(0)
  %f = f32[80] fusion(%p), kind=kLoop, calls=%begin
  ROOT %while.1 = f32[10] while(%p), condition=%cond, body=%body
}
"""


def test_a_collective_beside_other_work_counts_once():
    ((row,), unknown) = read_program(OVERLAPPED, devices=8)
    assert row == Collective("all-gather", 8, 1, 320, 280)
    assert unknown == 0


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("collective-permute", 100)],
)
def test_bytes_sent(kind, bytes_sent):
    assert sent(kind, 100, 4) == bytes_sent


def test_a_real_program():
    """Three gathers of a weight in a scan, and the sum over the devices, of XLA itself."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    laid = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())

    def run(weights, x):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, whole)
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    with jax.set_mesh(mesh):
        weights = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32, sharding=laid)
        x = jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=whole)
        text = jax.jit(run).lower(weights, x).compile().as_text()
    program = read_program(text, devices=4)
    gathers = [row for row in program.collectives if row.kind == "all-gather"]
    assert sum(row.payload for row in gathers) == 3 * 16 * 16 * 4
    assert program.unknown_loops == 0
