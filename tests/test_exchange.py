"""exchange: sums of what devices exchange, and the least by hand."""

import jax
import numpy as np
import pytest

from vit_jax import exchange, sharding
from vit_jax import step as step_lib

MIB = 2**20
PARAMS = {'blocks': {'0': {'mlp': {'fc1': {'kernel': (512, 1024), 'bias': (1024,)}}}}}


def least(mesh, dtype='bfloat16', **given):
  mesh = sharding.make_mesh(**mesh)
  run = {'params': jax.tree.map(lambda shape: np.zeros(shape, np.float32), PARAMS, is_leaf=lambda x: type(x) is tuple)}
  options = step_lib.Step(dtype=dtype, accumulate=given.pop('accumulate', 1))
  rows = exchange.minimum(sharding.abstract(run, sharding.shardings(mesh, run)), mesh, options, **given)
  return {row['op']: (row['mib'], row['moved_mib']) for row in rows}


def test_data_parallel_sums_the_gradients_once():
  whole = 2 * (512 * 1024 + 1024) / MIB
  assert least({'data': 8}) == {'all-reduce': pytest.approx((whole, 2 * 7 / 8 * whole))}
  assert least({'data': 8}, 'float32')['all-reduce'][0] == pytest.approx(2 * whole)


def test_fsdp_gathers_twice_and_scatters_once():
  found, kernel, bias = least({'data': 2, 'fsdp': 4}), 1.0, 2 * 1024 / MIB
  assert found['all-gather'] == pytest.approx((2 * kernel, 2 * 3 / 4 * kernel))
  assert found['reduce-scatter'] == pytest.approx((kernel, 3 / 4 * kernel))
  own = 2 * 1 / 2 * kernel / 4 + 2 * 7 / 8 * bias  # a quarter of the kernel over 2 copies, the bias over all
  assert found['all-reduce'] == pytest.approx((kernel / 4 + bias, own))
  assert least({'data': 2, 'fsdp': 4}, accumulate=3)['all-gather'][0] == pytest.approx(6 * kernel)


def test_tensor_parallel_sums_activations_four_times_a_layer():
  found = least({'data': 4, 'tensor': 2}, numbers=MIB, layers=3)
  gradients = (512 * 1024 + 1024) * 2 / 2 / MIB  # half of each on a device
  assert found['all-reduce'][0] == pytest.approx(4 * 3 * 2 + gradients)
  assert set(found) == {'all-reduce'}


def test_rows_are_summed_by_what_they_do():
  row = {'dtype': 'bf16', 'group': 8, 'ring': '', 'op': 'all-gather', 'bytes': 2 * MIB, 'moved': 7 / 4 * MIB}
  rows = [row | {'trips': 12}, row | {'trips': 1}, row | {'op': 'all-reduce', 'bytes': 4, 'moved': 7, 'trips': 1}]
  rows += [row | {'op': 'collective-permute', 'ring': 'scatter', 'moved': 2 * MIB, 'trips': 4}]
  gathered, ring = exchange.summary(rows)
  assert gathered == {'op': 'all-gather', 'dtype': 'bf16', 'count': 13, 'mib': 26, 'moved_mib': pytest.approx(22.75)}
  assert ring['op'] == 'ring scatter' and ring['moved_mib'] == 8
  assert exchange.moved(rows) == 22.75 * MIB + 7 + 8 * MIB
  assert exchange.words([gathered]) == 'all-gather bf16 26.0 MiB in 13; a chip sends 22.8 MiB'
  assert exchange.words([]) == 'nothing'
