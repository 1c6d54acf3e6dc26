"""What a compiled program launches: kernels, the bytes and FLOPs of each, and a time that it cannot beat.

Read from the text of a scheduled module, see hlo.py. A loop's kernels count as often as it turns. Bytes are those of
operands and results in the device's large memory; a slice of a stack of layers, and an update in place of one, are as
large as the slice. FLOPs are those of products (a multiply-add counts 2): of matrices, of convolutions, and of the
attention of cuDNN, whose backward pass computes one of five products anew.
"""

import collections
import math
import re

from vit_jax import hlo

NOTHING = {
  'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'after-all', 'iota', 'partition-id', 'replica-id',
  'opt-barrier', 'copy-done', 'async-done', 'async-update', 'while', 'call', 'conditional',
}  # fmt: skip
ON_CHIP = re.compile(r'T\(.*S\(1\)|S\([246]\)')  # how a TPU marks it; S(1) without tiles T is a GPU's own
ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?')


def listed(text):
  """The kernels of compiled.as_text(), a list of dicts.

  'kind', such as 'fusion:loop' or '__cublas$lt$matmul';   'count', how often a step launches it;   'bytes' and
  'flops', of one launch;   'shape', of its result;   'source', the operation of the model that it came from.
  """
  program = hlo.parse(text)
  times, rows = hlo.executions(program), []
  for name in _scheduled(program):
    lines = program.computations[name]
    for instruction in lines.values():
      if instruction.op not in NOTHING and not instruction.op.endswith('-done') and times[name]:
        rows.append(_row(program, lines, instruction) | {'count': times[name]})
  return [row for row in rows if row['bytes'] or row['flops']]  # a TPU also lists scalars, and what it only reserves


def _scheduled(program):
  """Names of the computations whose lines are launched one by one: the entry, loops and calls, no fusions."""
  found, queue = [], [program.entry]
  while queue:
    name = queue.pop()
    found.append(name)
    for instruction in program.computations[name].values():
      if instruction.op in ('while', 'call', 'conditional'):
        queue += [inner for inner in hlo.called(instruction) if inner in program.computations and inner not in found]
  return found


def _row(program, lines, instruction):
  body = _body(program, instruction)
  source = re.search(r'op_name="([^"]*)', instruction.rest)
  return {
    'kind': _kind(instruction, body),
    'bytes': _bytes(lines, instruction, body),
    'flops': _flops(program, lines, instruction, body),
    'shape': re.sub(r'\{[^}]*\}', '', instruction.shape),
    'source': source[1] if source else '',
  }


def _body(program, instruction):
  """The lines of the computation that a fusion stands for, else None."""
  if instruction.op != 'fusion':
    return None
  return next((program.computations[name] for name in hlo.called(instruction) if name in program.computations), None)


def _kind(instruction, body):
  inner = [instruction] if body is None else list(body.values())
  targets = [re.search(r'custom_call_target="([^"]+)"', line.rest) for line in inner if line.op == 'custom-call']
  if any(targets):
    return next(target[1] for target in targets if target)
  if body is None:
    return instruction.op.removesuffix('-start')
  if any(line.op in ('dot', 'convolution') for line in inner):
    return 'fusion:product'
  root = next(line for line in inner if line.root)
  if 'transpose' in instruction.name or root.op in ('transpose', 'copy'):
    return 'fusion:transpose'
  kind = re.search(r'kind=k(\w+)', instruction.rest)
  return f'fusion:{kind[1].lower()}' if kind else 'fusion'


# -- bytes


def _size(shape):
  """Bytes of a printed shape in the device's large memory."""
  total = 0
  for dtype, dims, layout in ARRAY.findall(shape):
    if dtype in hlo.SIZES and not ON_CHIP.search(layout):
      total += hlo.SIZES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
  return total


def _bytes(lines, instruction, body):
  if body is not None:
    root = next(line for line in body.values() if line.root)
    read = sum(_read(body, line.name, _size(line.shape)) for line in body.values() if line.op == 'parameter')
    return read + _written(body, root)
  if instruction.op in ('dynamic-update-slice', 'dynamic-slice', 'slice'):
    part = lines[instruction.operands[1]].shape if instruction.op == 'dynamic-update-slice' else instruction.shape
    return 2 * _size(part)
  if instruction.op.endswith('-start') and instruction.op != 'all-reduce-start':
    return _size(instruction.shape)  # operands are in the result
  read = sum(_size(lines[name].shape) for name in instruction.operands if name in lines)
  return read + _size(instruction.shape) - _workspace(instruction)


def _workspace(instruction):
  """Bytes that a library's kernel only works in."""
  if instruction.op != 'custom-call':
    return 0
  return hlo.size([array for array in hlo.shapes(instruction.shape)[1:] if array[0] in ('s8', 'u8')])


def _read(body, name, whole):
  """Bytes that a fusion reads of a parameter: of one that is only sliced, the slices."""
  total = 0
  for user in body.values():
    if name not in user.operands:
      continue
    if user.op == 'bitcast':
      total += _read(body, user.name, whole)
    elif user.op in ('dynamic-slice', 'slice'):
      total += _size(user.shape)
    elif user.op != 'dynamic-update-slice' or user.operands[0] != name:
      return whole
  return min(total, whole)


def _written(body, line):
  """Bytes that a fusion writes; of an update in place, what is new."""
  if line.op == 'tuple':
    return sum(_written(body, body[name]) for name in line.operands)
  if line.op == 'bitcast':
    return _written(body, body[line.operands[0]])
  if line.op == 'dynamic-update-slice':
    return _size(body[line.operands[1]].shape)
  return _size(line.shape) - _workspace(line)


# -- FLOPs


def _flops(program, lines, instruction, body):
  if body is not None:
    return sum(_flops(program, body, line, _body(program, line)) for line in body.values())
  if instruction.op == 'dot':
    return _product(lines, instruction, instruction.rest)
  if instruction.op == 'convolution':
    return _convolution(lines, instruction)
  target = re.search(r'custom_call_target="([^"]+)"', instruction.rest) if instruction.op == 'custom-call' else None
  if target and ('gemm' in target[1] or 'matmul' in target[1]):
    return _product(lines, instruction, instruction.rest.replace('"', '').replace('[', '{').replace(':{', '={'))
  if target and 'fmha' in target[1]:
    return _attention(lines, instruction) * (2.5 if 'Backward' in target[1] else 1)
  return 0


def _product(lines, instruction, text):
  """FLOPs of a product of matrices: 2 for each number of the result and each of the summed axes."""
  summed = re.search(r'lhs_contracting_dim(?:ension)?s=\{([\d,]*)', text)
  left = hlo.shapes(lines[instruction.operands[0]].shape)[0][1]
  inner = math.prod(left[int(axis)] for axis in summed[1].split(',') if axis) if summed else 1
  return 2 * math.prod(hlo.shapes(instruction.shape)[0][1]) * inner


def _attention(lines, instruction):
  """FLOPs of q k^T and of the weights times v."""
  q, k = (hlo.shapes(lines[name].shape)[0][1] for name in instruction.operands[:2])
  batch, heads, inner = q[0], min(q[1], q[2]), q[3]
  n, m = (max(shape[1], shape[2]) for shape in (q, k))
  return 4 * batch * heads * n * m * inner


def _convolution(lines, instruction):
  """FLOPs of a convolution, only those that meet an entry of the picture: a TPU writes products of heads as such."""
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
  picture, kernel = (hlo.shapes(lines[name].shape)[0][1] for name in instruction.operands[:2])
  out = hlo.shapes(instruction.shape)[0][1]
  window = re.search(r'window=\{([^}]*)\}', instruction.rest)
  given = dict(part.split('=') for part in window[1].split()) if window else {}
  numbers = lambda word, usual: given[word].split('x') if word in given else usual
  total = 2 * out[labels[3].index('b')] * out[labels[3].index('f')] * kernel[labels[2].index('i')]
  spatial = [c for c in labels[3] if c.isdigit()]
  ones = ['1'] * len(spatial)
  for i, axis in enumerate(spatial):
    low = int(numbers('pad', ['0_0'] * len(spatial))[i].split('_')[0])
    stride, dilated, base = (int(numbers(word, ones)[i]) for word in ('stride', 'rhs_dilate', 'lhs_dilate'))
    extent = (picture[labels[1].index(axis)] - 1) * base + 1
    places = ((o * stride + k * dilated - low) for o in range(out[labels[3].index(axis)])
              for k in range(kernel[labels[2].index(axis)]))  # fmt: skip
    total *= sum(0 <= place < extent and place % base == 0 for place in places)
  return total


# -- sums


def seconds(rows, chip):
  """A time that a step of these kernels cannot beat on a machines.Chip: of each, its FLOPs or its bytes at best."""
  return sum(row['count'] * max(row['flops'] / chip.flops, row['bytes'] / chip.bandwidth) for row in rows)


def total(rows, key):
  """The sum of 'bytes' or 'flops' over all launches of a step; of 'count', how many there are."""
  return sum(row['count'] if key == 'count' else row['count'] * row[key] for row in rows)


def groups(rows):
  """{(kind, shape, end of source): [launches, bytes, FLOPs]}, the most bytes first."""
  found = collections.defaultdict(lambda: [0, 0, 0])
  for row in rows:
    group = found[row['kind'], row['shape'][:90], row['source'][-60:]]
    for i, number in enumerate((1, row['bytes'], row['flops'])):
      group[i] += row['count'] * number
  return dict(sorted(found.items(), key=lambda item: -item[1][1]))
