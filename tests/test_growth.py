"""benchmarks/growth.py and cpu.py: what they would measure, the powers and pictures of rows, one small point."""

import json
import sys
import xml.dom.minidom

import pytest
import scripts


@pytest.fixture(scope='module')
def growth():
  return scripts.benchmark('growth')


@pytest.fixture(scope='module')
def rows():
  """What a measurement of time with power 1 and memory with power 2 would be."""
  base = {'compile_seconds': 3.0, 'arguments_mib': 9.0}
  steps = [
    {'axis': axis, 'value': n, 'form': form, 'tokens': n * n + 1, 'seconds': 0.1 * n, 'temporaries_mib': n * n, **base}
    for axis in ('batch', 'depth') for n in (2, 4, 8) for form in ('loop', 'scan <remat>')[: 1 + (axis == 'depth')]
  ]  # fmt: skip
  sent = [{'axis': 'devices', 'value': n, 'form': form, 'sent_mib': 5.0 * n * (n > 1), 'temporaries_mib': 2.0, **base}
          for n in (1, 2, 4) for form in ('data', 'fsdp')]  # fmt: skip
  return steps + sent


def test_every_row_changes_one_number_of_the_base(growth):
  keys = [json.loads(key) for key in growth.wanted()]
  assert len({json.dumps(key) for key in keys}) == len(keys)
  for axis, values in growth.AXES.items():
    assert growth.BASE[axis] in values
    assert [key['value'] for key in keys if key['axis'] == axis and key['form'] == 'loop'] == list(values)
  assert [key['value'] for key in keys if key['axis'] == 'devices'] == list(growth.DEVICES) * 2


def test_powers_and_pictures(growth, rows, tmp_path, capsys):
  planned = [{'model': 'B/16', 'layout': 'data', 'chips': n, 'sent_mib': float(s)} for n, s in ((1, 0), (4, 9), (8, 9))]
  growth.growth_svg.write(rows, planned, tmp_path)
  out = capsys.readouterr().out
  assert '| pictures of a batch | loop | 1.00 | 2.00 | 0.00 |' in out
  assert '| layers | scan <remat> | 1.00 | 2.00 | 0.00 |' in out
  drawn = xml.dom.minidom.parse(str(tmp_path / 'growth.svg'))
  assert len(drawn.getElementsByTagName('g')) == 6  # three quantities of batch and depth
  assert len(drawn.getElementsByTagName('path')) == 9
  drawn = xml.dom.minidom.parse(str(tmp_path / 'growth_devices.svg'))
  assert len(drawn.getElementsByTagName('circle')) == 4 + 6 + 6 + 2  # one device sends nothing


def test_ticks_are_round_and_few(growth):
  for low, high in ((0.03, 2), (7, 9000), (1, 1.5), (900, 1100)):
    found = growth.growth_svg.ticks(low, high)
    assert all(low * 0.99 <= value <= high * 1.01 for value in found) and len(found) <= 7
  assert growth.growth_svg.ticks(0.9, 11) == [1, 2, 5, 10]


def test_a_small_point_is_measured(growth):
  point = {'batch': 8, 'image': 16, 'depth': 1, 'width': 32}
  found = growth.step(point, 'scan, remat')
  assert found['tokens'] == 5 and found['seconds'] > 0 and found['compile_seconds'] > 0
  count = 3 * 64 * 32 + 12 * 32 * 32 + 32 * 100  # most of the parameters
  assert 0.8 < found['arguments_mib'] * 2**20 / (12 * count) < 2  # with two moments, and the pictures


def test_ratios_of_neighbouring_turns(growth):
  sys.path.insert(0, str(scripts.FOLDER))
  try:
    import cpu
  finally:
    sys.path.remove(str(scripts.FOLDER))
  found = cpu.row('x', [1.0, 2.0, 9.0], [2.0, 2.0, 6.0], 0.75, 'timm')
  assert (found['vit_jax'], found['its'], found['ratio'], found['wanted']) == (2.0, 2.0, 1.0, 'at most 0.75')
  assert found['middle half'] == '0.500 to 1.500'
