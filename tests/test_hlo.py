"""hlo.collectives against modules compiled here for eight devices, and lines as XLA prints them for GPUs and TPUs."""

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from vit_jax import hlo

# Cut from a step compiled for 8 H200 (jax 0.10.2): a gather and a scatter in a loop, each as a pair of lines.
GPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8
%region_27.27.clone (Arg_0: bf16[], Arg_1: bf16[]) -> bf16[] {
  %Arg_0 = bf16[] parameter(0)
  %Arg_1 = bf16[] parameter(1)
  ROOT %add = bf16[] add(%Arg_0, %Arg_1)
}
%region_15.35_spmd (arg: (s32[], bf16[96,2304])) -> (s32[], bf16[96,2304]) {
  %p = (s32[], bf16[96,2304]{1,0}, /*index=2*/bf16[288]{0}) parameter(0)
  %all-gather-start = ((bf16[96,2304]{1,0}, bf16[288]{0}), (bf16[768,2304]{1,0}, bf16[2304]{0})) all-gather-start(%b.3, %b.4), channel_id=8, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, metadata={op_name="jit(step)/dot_general"}
  %all-gather-done = (bf16[768,2304]{1,0}, bf16[2304]{0}) all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((bf16[768,3072]{1,0}), (bf16[96,3072]{1,0})) reduce-scatter-start(%get), channel_id=37, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%region_27.27.clone
  ROOT %reduce-scatter-done = (bf16[96,3072]{1,0}) reduce-scatter-done(%reduce-scatter-start)
}
%region_35.36_spmd (arg.1: (s32[], bf16[96,2304])) -> pred[] {
  %p.1 = (s32[], bf16[96,2304]{1,0}) parameter(0)
  %c = s32[] constant(12)
  %i = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}
ENTRY %main.44_spmd (param: bf16[96,2304]) -> bf16[96,2304] {
  %param = bf16[96,2304]{1,0} parameter(0)
  %while.44 = (s32[], bf16[96,2304]{1,0}) while(%tuple.76), condition=%region_35.36_spmd, body=%region_15.35_spmd BACKEND
  %all-reduce-start = (f32[100]{0}, bf16[10]{0}) all-reduce-start(%x, %y), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%region_27.27.clone
  %all-reduce-done = (f32[100]{0}, bf16[10]{0}) all-reduce-done(%all-reduce-start)
  %collective-permute-start = (bf16[5]{0}, bf16[5]{0}, u32[], u32[]) collective-permute-start(%z), channel_id=3, source_target_pairs={{0,1},{1,0}}
  ROOT %r = bf16[96,2304]{1,0} get-tuple-element(%while.44), index=1
}
"""  # noqa: E501

# Cut from steps compiled for 8 chips of v5e (libtpu 0.0.52): a gather that three kernels run beside, two scatters with
# one channel, and a ring that gathers while it multiplies, two steps at a time.
TPU = """\
HloModule jit_step, is_scheduled=true, num_partitions=8
%fused_computation.413 (param_0.1437: bf16[1,96,768]) -> (bf16[1,96,768], bf16[1,768,768]) {
  %param_0.1437 = bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.78 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.1437), channel_id=44, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.4 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) custom-call(%all-gather.78), custom_call_target="AsyncCollectiveStart"
}
%fused_computation.415 (param_0.1452: bf16[1,96,768]) -> bf16[1,768,768] {
  %param_0.1452 = bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.84 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.1452), channel_id=44, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.6 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.1452, %all-gather.84), custom_call_target="AsyncCollectiveDone"
}
%all-reduce-scatter.6.clone.1 (input_0.6: bf16[768,3072]) -> bf16[96,3072] {
  %input_0.6 = bf16[768,3072]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.44 = bf16[768,3072]{1,0:T(8,128)(2,1)} all-reduce(%input_0.6), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.clone
  ROOT %ds = bf16[96,3072]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.44, %x, %y), dynamic_slice_sizes={96,3072}
}
%all-reduce-scatter.7 (input_0.7: bf16[768,3072]) -> bf16[96,3072] {
  %input_0.7 = bf16[768,3072]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.43 = bf16[768,3072]{1,0:T(8,128)(2,1)} all-reduce(%input_0.7), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.clone
  ROOT %ds.1 = bf16[96,3072]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.43, %x, %y), dynamic_slice_sizes={96,3072}
}
%wide.windowed_dot_general_body_ag.6.clone.sunk (wide.param.2: (bf16[1,96,768], u32[])) -> (bf16[1,96,768], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %wide.param.2 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %w = bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.2), index=0
  %collective-permute-start = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=82, source_target_pairs={{0,7},{1,0},{2,1},{3,2},{4,3},{5,4},{6,5},{7,6}}
  %collective-permute-done = bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start)
  %i = u32[]{:T(128)} get-tuple-element(%wide.param.2), index=1
  %next = u32[]{:T(128)} add(%i, %two)
  ROOT %tuple.431 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) tuple(%collective-permute-done, %next)
}
%wide.windowed_dot_general_cond_ag.6.clone (wide.param.111: (bf16[1,96,768], u32[])) -> pred[] {
  %constant.2274 = u32[]{:T(128)} constant(4), metadata={op_name="jit(step)/jvp()/dot_general"}
  %wide.param.111 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) parameter(0)
  %get-tuple-element.2191 = u32[]{:T(128)} get-tuple-element(%wide.param.111), index=1
  ROOT %compare.81 = pred[]{:T(512)} compare(%get-tuple-element.2191, %constant.2274), direction=LT
}
ENTRY %main.43_spmd (param.0: bf16[1,96,768]) -> bf16[96,3072] {
  %param.0 = bf16[1,96,768]{2,1,0:T(8,128)(2,1)} parameter(0)
  %fusion.413 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) fusion(%param.0), kind=kCustom, calls=%fused_computation.413
  %fusion.415 = bf16[1,768,768]{2,1,0:T(8,128)(2,1)S(1)} fusion(%param.0), kind=kCustom, calls=%fused_computation.415
  %fusion.1 = bf16[96,3072]{1,0:T(8,128)(2,1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.6.clone.1
  %fusion.2 = bf16[96,3072]{1,0:T(8,128)(2,1)} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.7
  ROOT %while.96 = (bf16[1,96,768]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:T(128)}) while(%t), condition=%wide.windowed_dot_general_cond_ag.6.clone, body=%wide.windowed_dot_general_body_ag.6.clone.sunk
}
"""  # noqa: E501


def compiled(function, *arrays):
  """The rows of a function of (shape, spec) pairs on eight devices, with how its outputs lie."""
  mesh = jax.make_mesh((8,), ('d',), axis_types=(AxisType.Auto,))
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  given = [jax.ShapeDtypeStruct(shape, 'float32', sharding=place(*spec)) for shape, *spec in arrays]
  made = jax.jit(lambda *a: function(place, *a)).lower(*given).compile()
  return [row for row in hlo.collectives(made.as_text()) if row['bytes'] > 64]


def test_data_parallel_is_one_all_reduce_of_the_gradients():
  def step(place, w, v, x):
    grads = jax.grad(lambda p: ((x @ p[0]) @ p[1]).sum())((w, v))
    return jax.lax.with_sharding_constraint(grads, place())

  (row,) = compiled(step, ((32, 16),), ((16, 24),), ((64, 32), 'd'))
  assert row['op'] == 'all-reduce' and row['group'] == 8 and row['trips'] == 1 and row['dtype'] == 'f32'
  assert row['bytes'] == 4 * (32 * 16 + 16 * 24)
  assert row['moved'] == pytest.approx(2 * 7 / 8 * row['bytes'])
  assert {tuple(sorted(dims)) for _, dims in row['shapes']} == {(16, 32), (16, 24)}


def test_layers_of_a_loop_are_gathered_as_often_as_it_turns():
  def forward(place, stacked, x):
    act = lambda x: jax.lax.with_sharding_constraint(x, place('d'))
    return jax.lax.scan(lambda x, w: (act(jax.nn.gelu(x @ w)), None), act(x), stacked)[0]

  rows = compiled(forward, ((5, 32, 32), None, 'd'), ((64, 32), 'd'))
  assert {row['op'] for row in rows} == {'all-gather'}
  assert sum(row['bytes'] * row['trips'] for row in rows) == 5 * 4 * 32 * 32
  assert rows[0]['moved'] == pytest.approx(7 / 8 * rows[0]['bytes'])


def test_an_all_to_all_is_the_whole_array():
  (row,) = compiled(lambda place, x: jax.lax.with_sharding_constraint(x, place(None, 'd')), ((64, 40), 'd'))
  assert row['op'] == 'all-to-all' and row['bytes'] == 4 * 64 * 40
  assert row['moved'] == pytest.approx(7 / 8 * row['bytes'] / 8)


@pytest.mark.parametrize('known', [', backend_config={"known_trip_count":{"n":"12"}}', ''])
def test_a_gpu_pair_is_one_exchange(known):
  gather, scatter, reduced, permuted = hlo.collectives(GPU.replace(' BACKEND', known))
  assert (gather['op'], gather['dtype'], gather['trips'], gather['group']) == ('all-gather', 'bf16', 12, 8)
  assert gather['bytes'] == 2 * (768 * 2304 + 2304) and gather['source'] == 'jit(step)/dot_general'
  assert (scatter['op'], scatter['bytes'], scatter['trips']) == ('reduce-scatter', 2 * 768 * 3072, 12)
  assert scatter['computation'] == 'region_15.35_spmd' and scatter['ring'] == ''
  assert (reduced['op'], reduced['dtype'], reduced['trips']) == ('all-reduce', 'bf16/f32', 1)
  assert reduced['group'] == 4 and reduced['bytes'] == 420 and reduced['moved'] == 2 * 3 / 4 * 420
  assert (permuted['op'], permuted['bytes'], permuted['moved']) == ('collective-permute', 10, 10)


def test_a_tpu_hides_what_it_does():
  gather, first, second, ring = hlo.collectives(TPU)
  assert (gather['op'], gather['bytes'], gather['group'], gather['trips']) == ('all-gather', 2 * 768 * 768, 8, 1)
  for row in (first, second):
    assert (row['op'], row['bytes']) == ('reduce-scatter', 2 * 768 * 3072)
    assert row['moved'] == 7 / 8 * row['bytes']
  assert (ring['op'], ring['ring'], ring['trips']) == ('collective-permute', 'gather', 2)
  assert ring['moved'] == ring['bytes'] == 2 * 96 * 768


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    hlo.collectives('module @jit_step {}')
