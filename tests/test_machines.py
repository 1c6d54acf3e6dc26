"""machines: the table, and the line for a machine that is not in it."""

import math

import pytest

from vit_jax import machines


def test_slices_have_as_many_chips_as_their_names_say():
  for machine in machines.MACHINES.values():
    sides = machine.topology.rpartition(':')[2].split('x')
    assert machine.chips == math.prod(map(int, sides)), machine
  assert max(machine.chips for machine in machines.MACHINES.values()) == 256


def test_an_unknown_machine_is_one_line_with_the_nearest():
  with pytest.raises(ValueError, match=r"no machine 'v5e-2x3' \(did you mean v5e-2x\d\?\)"):
    machines.named('v5e-2x3')


@pytest.mark.parametrize('name', ['h200x8', 'v6e-4x4'])
def test_what_jax_is_told(name):
  machine = machines.named(name)
  told, given = machines.environment(machine), machines.arguments(machine)
  assert told['JAX_PLATFORMS'] == 'cpu' and given['platform'] == machine.chip.platform
  if name == 'h200x8':
    assert 'triton_gemm=false' in told['XLA_FLAGS'] and 'device_memory_size' in given['target_config']
  else:
    assert given['topology_name'] == 'v6e:4x4' and told['XLA_FLAGS'] == ''
