"""A compiled program, read from its text (HLO of XLA for CPU, GPU or TPU): computations, loops, what devices exchange.

Backends write the same exchange in different words, so it is counted in bytes: a CPU has no reduce-scatter, sums whole
arrays, and does both in float32; a TPU hides a reduce-scatter in a computation of that name, and a gather in a ring of
permutations around a product. What the words mean: https://openxla.org/xla/operation_semantics.
"""

import math
import re
from typing import NamedTuple

SIZES = {
  'f64': 8, 's64': 8, 'u64': 8, 'c64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2,
  'pred': 1, 's8': 1, 'u8': 1,
}  # fmt: skip
COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast',
  'ragged-all-to-all',
)  # fmt: skip
HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
LINE = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$')
CALLED = re.compile(r'\b(?:calls|to_apply|body|called_computations|branch_computations|\w+_computation)=')
COMMENT = re.compile(r'/\*[^*]*\*/')  # /*index=5*/
NAMES = re.compile(r'%?([\w.\-]+)')


class Instruction(NamedTuple):
  """One line of a computation; shape: as printed; operands: names; rest: attributes, as printed."""

  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  rest: str
  root: bool


class Program(NamedTuple):
  """{name: {name: Instruction}} of its computations, in order; the entry's name; how many devices share its arrays."""

  computations: dict
  entry: str
  partitions: int


def parse(text):
  """The Program of compiled.as_text(); ValueError where it has no entry."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    header = HEADER.match(line)
    if header:
      current = computations[header[2]] = {}
      entry = header[2] if header[1] else entry
      continue
    found = LINE.match(line)
    if found and current is not None:
      inner, rest = _operands(found[5])
      current[found[2]] = Instruction(found[2], found[3], found[4], inner, rest, bool(found[1]))
  if entry is None:
    raise ValueError('This is no text of a compiled XLA program: it has no ENTRY.')
  partitions = re.search(r'\bnum_partitions=(\d+)', text)
  return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _operands(text):
  """(names of the operands, what follows their closing parenthesis)."""
  text = COMMENT.sub('', text)
  end = text.index(')')
  if not re.search(r'[(\[{]', text[:end]):  # names only, as most lines have it
    return tuple(word.split()[-1].lstrip('%') for word in text[:end].split(',') if word.strip()), text[end + 1 :]
  parts = _split(text)
  return tuple(word.split()[-1].lstrip('%') for word in parts[:-1] if word.strip()), parts[-1]


def _split(text):
  """The parts between the commas of a text, up to a parenthesis that it does not open, and what follows that one."""
  parts, depth, start = [], 0, 0
  for i, c in enumerate(text):
    depth += (c in '([{') - (c in ')]}')
    if depth < 0 or c == ',' and not depth:
      parts.append(text[start:i])
      start = i + 1
    if depth < 0:
      break
  return [*parts, text[start:]]


def shapes(text):
  """[(dtype, dimensions)] of the arrays that a printed shape names, a tuple's in order."""
  found = re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', text)
  return [(dtype, tuple(int(n) for n in dims.split(',') if n)) for dtype, dims in found if dtype in SIZES]


def size(arrays):
  """Bytes of [(dtype, dimensions)]."""
  return sum(SIZES[dtype] * math.prod(dims) for dtype, dims in arrays)


def peak(compiled):
  """Bytes of a device's memory that a jax.stages.Compiled takes, its arrays and what it works in; None if unknown."""
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return arrays + memory.temp_size_in_bytes


# -- what is run how often


def called(instruction):
  """Names of the computations that an instruction runs, its loop's condition left out; of an async pair, the start."""
  if instruction.op.endswith(('-done', '-update')):
    return []
  found = []
  for match in CALLED.finditer(instruction.rest):
    rest = instruction.rest[match.end() :]
    found += NAMES.findall(rest[1 : rest.index('}')]) if rest.startswith('{') else [NAMES.match(rest)[1]]
  return found


def trips(program, instruction):
  """How often a while loop runs its body, as XLA found out or as its condition says; None where neither tells.

  A condition is taken to compare a counter, which starts at 0, with a limit.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
  if known:
    return int(known[1])
  condition, body = (re.search(rf'\b{word}=%?([\w.\-]+)', instruction.rest) for word in ('condition', 'body'))
  lines = dict(program.computations[condition[1]])
  for name in [name for line in lines.values() for name in called(line)]:
    lines |= program.computations[name]
  limits = [_constant(line) for line in lines.values() if _constant(line) is not None]
  compared = next((line for line in lines.values() if line.op == 'compare' and 'direction=LT' in line.rest), None)
  if compared is None or len(limits) != 1:
    return None
  counter = lines.get(compared.operands[0])
  index = re.search(r'\bindex=(\d+)', counter.rest) if counter else None
  step = _step(program.computations[body[1]], int(index[1])) if index else 1
  return -(-limits[0] // step)


def _constant(line):
  """The value of a line that is a whole number, else None."""
  return int(line.operands[0]) if line.op == 'constant' and line.operands and line.operands[0].isdigit() else None


def _step(body, index):
  """What one turn of a loop adds to the counter at a place of its state: a TPU's ring takes two steps at a time."""
  root = next(line for line in body.values() if line.root)
  line = body.get(root.operands[index]) if root.op == 'tuple' and index < len(root.operands) else None
  added = [_constant(body[name]) for name in line.operands if name in body] if line and line.op == 'add' else []
  return next((number for number in added if number), 1)


def executions(program):
  """{name of a computation: how often one run of the program runs it}; a loop that does not tell counts once."""
  times = dict.fromkeys(program.computations, 0)

  def visit(name, n):
    times[name] += n
    for instruction in program.computations[name].values():
      again = (trips(program, instruction) or 1) if instruction.op == 'while' else 1
      for inner in called(instruction):
        if inner in times:
          visit(inner, n * again)

  visit(program.entry, 1)
  return times


# -- what devices exchange


def collectives(text):
  """What the devices of a compiled program exchange, a list of rows in the program's order.

  text: compiled.as_text().   A row is a dict: 'op', one of COLLECTIVES;   'dtype', the arrays' ('bf16', 'bf16/f32');
  'shapes', [(dtype, dimensions)] of the whole arrays, as they are before they are scattered or after they are gathered;
  'bytes', of these;   'moved', bytes that each device sends in a ring: (n - 1) / n of 'bytes', twice that for an
  all-reduce, an n-th of it for an all-to-all;   'group', n, how many devices take part together;   'trips', how often
  a step does this: bytes and moved are of one time;   'ring', 'gather' or 'scatter' for a permutation that is one pass
  of such a ring of a TPU, around a product, else '';   'computation', where it stands;   'source', the operation of
  the model that it came from.
  """
  program = parse(text)
  times, rows, seen = executions(program), [], set()
  for name, lines in program.computations.items():
    for instruction in lines.values():
      op = instruction.op.removesuffix('-start')
      if op not in COLLECTIVES or not times[name]:
        continue
      row = _row(program, name, instruction, op) | {'trips': times[name]}
      channel = re.search(r'channel_id=(\d+)', instruction.rest)
      same = channel and (row['op'], channel[1], *row['shapes'])
      if same in seen and row['op'] != 'reduce-scatter':
        continue  # a TPU prints one and the same in each kernel that runs beside it
      seen |= {same} if same else set()
      rows.append(row)
  return rows


def _row(program, computation, instruction, op):
  """A row of collectives, but for its trips."""
  n = _group(instruction, program.partitions)
  arrays = _whole(instruction, op, n)
  if computation.startswith('all-reduce-scatter'):
    op = 'reduce-scatter'  # as XLA prints it for a TPU: the sum of all, of which each device keeps its part
  whole = size(arrays) * (n if op in ('all-to-all', 'ragged-all-to-all') else 1)  # of which a device has one part
  ways = {'all-reduce': 2 * (n - 1) / n, 'collective-permute': 1.0, 'collective-broadcast': 1.0}
  ways |= {'all-to-all': (n - 1) / n**2, 'ragged-all-to-all': (n - 1) / n**2}
  source = re.search(r'op_name="([^"]*)', instruction.rest)
  ring = re.search(r'windowed_dot_general_body_(ag|rs)', computation)
  return {
    'op': op,
    'dtype': '/'.join(sorted({dtype for dtype, _ in arrays})),
    'shapes': arrays,
    'bytes': whole,
    'moved': whole * ways.get(op, (n - 1) / n),
    'group': n,
    'ring': {'ag': 'gather', 'rs': 'scatter'}[ring[1]] if ring else '',
    'computation': computation,
    'source': source[1] if source else '',
  }


def _group(instruction, partitions):
  """How many devices take part in a collective together."""
  text = instruction.rest
  if re.search(r'source_target_pairs=', text):
    return partitions
  mesh = re.search(r'replica_groups=@?\w*mesh\[([^\]]*)\][^{]*\{([^}]*)\}', text)
  if mesh:  # mesh['data'=2,'fsdp'=4] {'fsdp'}, or {'fsdp':(2)2} for a part of an axis
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in used)
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', text)
  if iota:  # groups, devices in each
    return int(iota[2])
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
  return len(listed[1].split(',')) if listed else partitions


def _whole(instruction, op, n):
  """[(dtype, dimensions)] of the arrays that a collective is about, unsharded over the n devices of its group."""
  arrays = shapes(instruction.shape)
  if instruction.op == 'collective-permute-start':
    return arrays[:1]  # (operand, result, ...)
  if instruction.op.endswith('-start') and op != 'all-reduce':
    arrays = arrays[len(arrays) // 2 :]  # (operands, results)
  if op == 'reduce-scatter':
    axis = int(re.search(r'dimensions=\{(\d+)', instruction.rest)[1])
    return [(dtype, (*dims[:axis], dims[axis] * n, *dims[axis + 1 :])) for dtype, dims in arrays]
  return arrays
