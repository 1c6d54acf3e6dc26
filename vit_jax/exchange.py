"""What the devices of a training step exchange, in sums, and the least that its layout can do with.

The least: data parallel, one all-reduce of the gradients; FSDP (Rajbhandari et al. 2019, arXiv:1910.02054, stage 3),
the weights gathered before the forward and again before the backward pass, their gradients scattered; tensor parallel
(Shoeybi et al. 2019, arXiv:1909.08053), the activations summed twice a layer in each direction. All in the dtype in
which the step computes.
"""

import jax

MIB = 2**20


def moved(rows):
  """Bytes that a device sends in a step, of hlo.collectives."""
  return sum(row['moved'] * row['trips'] for row in rows)


def summary(rows):
  """[{'op', 'dtype', 'count', 'mib', 'moved_mib'}]: the rows of hlo.collectives summed by operation and dtype.

  mib: of the whole arrays, as often as they are exchanged.   A ring is 'ring gather' or 'ring scatter'. What together
  is below a hundredth of a MiB, such as the sum of a loss, is left out.
  """
  found = {}
  for row in rows:
    op = f'ring {row["ring"]}' if row['ring'] else row['op']
    sums = found.setdefault((op, row['dtype']), [0, 0, 0])
    for i, number in enumerate((1, row['bytes'] / MIB, row['moved'] / MIB)):
      sums[i] += number * row['trips']
  keys = ('op', 'dtype', 'count', 'mib', 'moved_mib')
  sums = [dict(zip(keys, (*key, *values))) for key, values in found.items() if values[1] >= 0.01]
  return sorted(sums, key=lambda row: -row['moved_mib'])


def minimum(run, mesh, options, *, numbers=0, layers=0):
  """The least that a step can do with, rows as of summary.

  run: the state's shapes with their shardings.   options: the step's.   numbers: of one device's activations between
  two layers, b * n * d, and layers how many, where they are tensor parallel.
  """
  n_data, n_fsdp, n_tensor = (mesh.shape[axis] for axis in ('data', 'fsdp', 'tensor'))
  width = 2 if options.dtype == 'bfloat16' else 4
  sums = {'all-gather': [0.0, 0.0], 'reduce-scatter': [0.0, 0.0], 'all-reduce': [0.0, 0.0]}

  def add(op, count, n, times):
    if n > 1:
      sums[op][0] += times * count * width / MIB
      sums[op][1] += times * count * width / MIB * (n - 1) / n * (2 if op == 'all-reduce' else 1)

  for group in ('params', 'frozen'):
    for leaf in jax.tree.leaves(run.get(group, {})):
      used = {axis for part in leaf.sharding.spec if part for axis in (part if isinstance(part, tuple) else (part,))}
      count = leaf.size / (n_tensor if 'tensor' in used else 1)
      if 'fsdp' in used and n_fsdp > 1:
        add('all-gather', count, n_fsdp, 2 * options.accumulate)
      if group == 'params':
        cut = n_fsdp if 'fsdp' in used else 1
        add('reduce-scatter', count, cut, 1)
        add('all-reduce', count / cut, n_data * n_fsdp // cut, 1)
  add('all-reduce', numbers, n_tensor, 4 * layers)
  return [{'op': op, 'dtype': {2: 'bf16', 4: 'f32'}[width], 'mib': whole, 'moved_mib': sent}
          for op, (whole, sent) in sums.items() if whole]  # fmt: skip


def words(rows):
  """The rows of summary or minimum as text for a person."""
  each = [
    f'{row["op"]} {row["dtype"]} {row["mib"]:,.1f} MiB' + (f' in {row["count"]:,}' if 'count' in row else '')
    for row in rows
  ]
  sent = sum(row['moved_mib'] for row in rows)
  return f'{"; ".join(each)}; a chip sends {sent:,.1f} MiB' if each else 'nothing'
