"""Optimized HLO, recorded and cut: loops multiplied out, bytes counted by hand."""

from dpo_jax.sharding import hlo

CPU = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %r)
}

%cond (q: (s32[], f32[8,4])) -> pred[] {
  %q = (s32[], f32[8,4]) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %z = s32[] constant(0)
  %t0 = (s32[], f32[8,4]) tuple(%z, %x)
  %w = (s32[], f32[8,4]) while(%t0), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = f32[32,4]{1,0} all-gather(%x), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %y = f32[8,4]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501 (as compilers write it)

TPU = """\
HloModule jit_step

%body (p: (u32[], u32[], bf16[64,128])) -> (u32[], u32[], bf16[64,128]) {
  %p = (u32[]{:T(128)}, u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %n = u32[]{:T(128)} get-tuple-element(%p), index=1
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %one = u32[]{:T(128)} constant(1)
  %i1 = u32[]{:T(128)} add(%i, %one)
  %i2 = u32[]{:T(128)} add(%i1, %one)
  %s = (bf16[64,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %d = bf16[64,128]{1,0:T(8,128)(2,1)} collective-permute-done(%s)
  ROOT %t = (u32[]{:T(128)}, u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%i2, %n, %d)
}

%cond (q: (u32[], u32[], bf16[64,128])) -> pred[] {
  %q = (u32[]{:T(128)}, u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  %last = u32[]{:T(128)} constant(8)
  ROOT %less = pred[]{:T(512)} compare(%j, %last), direction=LT
}

%asked (r: (s32[], bf16[64,128])) -> pred[] {
  %r = (s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %k = s32[]{:T(128)} get-tuple-element(%r), index=0
  %m = s32[]{:T(128)} get-tuple-element(%r), index=1
  ROOT %lt = pred[]{:T(512)} compare(%k, %m), direction=LT
}

%again (r: (s32[], s32[], bf16[64,128])) -> (s32[], s32[], bf16[64,128]) {
  %r = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %v = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%r), index=2
  %ar = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%v), channel_id=4, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, to_apply=%sum
  ROOT %out = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%ar)
}

ENTRY %main (x: bf16[64,128], n: s32[]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %n = s32[]{:T(128)} parameter(1)
  %z = u32[]{:T(128)} constant(0)
  %t0 = (u32[]{:T(128)}, u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%z, %z, %x)
  %w = (u32[]{:T(128)}, u32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) while(%t0), condition=%cond, body=%body
  %t1 = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) tuple(%n, %n, %x)
  %u = (s32[]{:T(128)}, s32[]{:T(128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) while(%t1), condition=%asked, body=%again
  %big = f32[2048,1024]{1,0:T(8,128)} broadcast(%z), metadata={op_name="jit(step)/logits"}
  ROOT %y = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=2
}
"""  # noqa: E501 (as compilers write it)


def test_a_loop_of_a_cpu_counts_as_often_as_its_trip_count():
    """5 all-reduces of 128 bytes among 2: 2 · 128 · ½ each; 512 · ¾ once."""
    found = hlo.traffic(CPU, devices=4)
    assert found["all-reduce"] == (5, 5 * 128, 0)
    assert found["all-gather"] == (1, 384, 0)


def test_a_loop_of_a_tpu_counts_by_its_condition_and_stride():
    """From 0 in twos below 8: 4 trips, each receives 64 · 128 bfloat16."""
    found = hlo.traffic(TPU, devices=4, trips=3)
    assert found["collective-permute"] == (4, 4 * 64 * 128 * 2, 0)


def test_a_loop_of_unknown_length_counts_as_told_and_is_marked():
    found = hlo.traffic(TPU, devices=4, trips=3)
    assert found["all-reduce"] == (3, 3 * int(2 * 64 * 128 * 2 * 0.75), 3)


def test_groups_are_read_in_all_spellings():
    assert hlo.group_size("replica_groups=[2,8]<=[16], dims") == 8
    assert hlo.group_size("replica_groups={{0,1,2},{3,4,5}}, x") == 3
    assert hlo.group_size("replica_groups=mesh['a'=4,'b'=2] {'a','b'}, x") == 8
    assert hlo.group_size("channel_id=1") == 0


def test_the_largest_values_are_named_by_where_they_come_from():
    (value,) = hlo.largest(TPU, number=3)
    assert value == (8 * 2**20, "f32[2048,1024]", "jit(step)/logits")


def test_bytes_of_types():
    assert hlo.shapes_of("(f32[2,3]{1,0}, bf16[4], pred[5], s32[])") == [24, 8, 5, 4]
    assert hlo.shapes_of("s4[8]") == [4]
