"""vit_jax as a side of a comparison (see worker.py): the package's own training step and forward pass.

It runs where vit_jax, jax, flax and optax are, on whatever device jax finds; `python benchmarks/gpu.py` and
`python benchmarks/cpu.py` start it.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import os
import pathlib
import re
import statistics
import tempfile
import time

import worker

CLASSES = 1000
ROW = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
# Kernel or operation name -> the kind of work, the first that matches.
KINDS = (
  ('attention', r'cudnn|fmha|flash|sdpa|softmax'),
  ('matrix products', r'gemm|nvjet|cutlass|xmma|cublas|dot|ynn|convolution'),
  ('copies', r'memcpy|memset|copy|transpose'),
  ('reductions', r'reduce'),
  ('elementwise', r'fusion|loop|elementwise|convert|add|multiply|select'),
)


class Side:
  """What is built stays until the process ends."""

  def __init__(self):
    self.call = self.rate = None

  def hello(self):
    """The device and the versions; vit_jax's is a digest of its sources, because it is what changes between runs."""
    import jax

    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax')}
    return {'platform': device.platform, 'device': device.device_kind, 'versions': {**versions, 'vit_jax': sources()}}

  def build(self, *, name, batch, train, dtype='bfloat16', model=None, odd=False, **execution):
    """Compiles a model's step (or forward pass) for random data on the device, and takes one.

    name: of vit_jax.list_models.   model: arguments of the architecture.   odd: see odd_tokens.
    execution: attention, scan, remat.
    """
    import jax

    import vit_jax

    jax.config.update('jax_enable_compilation_cache', False)  # what is timed is a compilation
    lowered, start = (training if train else inference)(  # the model's own arrays are free when it returns
      vit_jax.create_model(name, num_classes=CLASSES, **(model or {}), **execution), batch, dtype
    )
    began = time.perf_counter()
    with odd_tokens(odd):
      compiled = lowered().compile()
    seconds = time.perf_counter() - began
    self.call = start(compiled)
    jax.block_until_ready(self.call())
    memory, stats = compiled.memory_analysis(), jax.devices()[0].memory_stats() or {}
    planned = memory and (memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
                          - memory.alias_size_in_bytes)  # fmt: skip
    return {'compile_seconds': seconds, 'planned_bytes': planned, 'peak_bytes': stats.get('peak_bytes_in_use')}

  def run(self, *, steps):
    """{'seconds', 'cpu_seconds', 'value'} of so many steps; value: the last loss, or the mean of the last logits."""
    import jax

    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      out = self.call()
    jax.block_until_ready(out)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {'seconds': wall, 'cpu_seconds': cpu, 'value': float(out.mean())}

  def matmul(self, *, size, repeat):
    """{'tflops'} of a product of square bfloat16 matrices of random numbers."""
    import jax

    if self.rate is None:
      a, b = (jax.random.normal(jax.random.key(i), (size, size), 'bfloat16') for i in range(2))
      product = jax.jit(lambda a, b: a @ b)
      self.rate = lambda: product(a, b)
      jax.block_until_ready(self.rate())
    began = time.perf_counter()
    for _ in range(repeat):
      out = self.rate()
    jax.block_until_ready(out)
    return {'tflops': 2 * size**3 * repeat / (time.perf_counter() - began) / 1e12}

  def attention(self, *, shape, dtype, implementations, rounds):
    """{implementation: {'forward_us', 'backward_us'} or {'error'}} of attention alone, their rounds interleaved.

    shape: (b, n, heads, head_dim) of q, k and v.   backward: of a whole gradient, less the forward pass.
    """
    calls, found = {}, {}
    for name in implementations:
      try:
        calls[name] = mixing(name, shape, dtype)
      except Exception as error:  # an implementation that this device or length does not have
        found[name] = {'error': f'{type(error).__name__}: {(str(error).strip() or "no words").splitlines()[0][:200]}'}
    times = {(name, i): [] for name in calls for i in range(2)}
    for _ in range(rounds):
      for name, i in times:
        times[name, i].append(seconds_of(calls[name][i]))
    for name in calls:
      forward, both = (1e6 * statistics.median(times[name, i]) for i in range(2))
      found[name] = {'forward_us': forward, 'backward_us': both - forward}
    return found

  def profile(self, *, steps):
    """{'kinds': {kind: ms a step}, 'top': [[operation, ms a step, how often a step], ...]} of what was built."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        self.run(steps=steps)
      path = sorted(glob.glob(f'{folder}/**/*.xplane.pb', recursive=True))[-1]
      found = events(jax.profiler.ProfileData.from_file(path))
    kinds, names = {}, {}
    for name, operation, nanoseconds in found:
      kinds[kind(name)] = kinds.get(kind(name), 0) + nanoseconds / 1e6 / steps
      key = f'{name[:80]} ({operation})' if operation and operation != name else name[:80]
      total, count = names.get(key, (0, 0))
      names[key] = total + nanoseconds / 1e6 / steps, count + 1 / steps
    top = sorted(([key, *value] for key, value in names.items()), key=lambda row: -row[1])
    return {'kinds': dict(sorted(kinds.items(), key=lambda item: -item[1])), 'top': top[:40]}


def training(model, batch, dtype):
  """(lower, start): lower() gives the lowered training step, start(compiled) a call that takes one and gives its loss.

  It is train.fit's: AdamW with float32 parameters, products in `dtype`, uint8 pictures normalised inside.
  """
  import jax

  from vit_jax import optim, sharding, state, tasks
  from vit_jax import step as step_lib

  mesh = sharding.make_mesh()
  graphdef, params, rest = state.split(model)
  optimizer = optim.make(total_steps=1_000_000, lr=1e-4, weight_decay=0.05)
  program = step_lib.jitted(graphdef, params, rest, optimizer, tasks.make(classes=range(CLASSES)), ROW, seed=0,
                            options=step_lib.Step(dtype=dtype), mesh=mesh)  # fmt: skip
  run = program.init(params, rest)
  key = jax.random.key(1)
  data = {
    'image': jax.random.randint(key, (batch, *size_of(model), 3), 0, 256, 'uint8'),
    'label': jax.random.randint(key, (batch,), 0, CLASSES, 'int32'),
  }
  data = jax.device_put(data, sharding.batch(mesh))

  def start(compiled):
    def call():
      nonlocal run
      run, values = compiled(run, data)
      return values['loss']

    return call

  return lambda: program.step.lower(run, data), start


def inference(model, batch, dtype):
  """As training, of the forward pass on normalised images, parameters in `dtype` too; a call gives logits."""
  import jax

  from vit_jax import state

  graphdef, params, rest = state.split(model)
  params = state.cast(params, dtype)
  images = jax.random.normal(jax.random.key(1), (batch, *size_of(model), 3), dtype)
  forward = jax.jit(lambda params, rest, images: state.merge(graphdef, params, rest)(images))
  return lambda: forward.lower(params, rest, images), lambda compiled: lambda: compiled(params, rest, images)


def size_of(model):
  """(h, w) of the images a model was made for."""
  return tuple(g * p for g, p in zip(model.grid, model.patch_embed.patch_size))


@contextlib.contextmanager
def odd_tokens(allowed):
  """Where allowed, what is traced inside gives cuDNN odd numbers of tokens as they are; else they are padded."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  from vit_jax.models import attention

  before = attention.ODD_TOKENS, cudnn.check_is_flash_attention
  if allowed:
    attention.ODD_TOKENS, cudnn.check_is_flash_attention = True, lambda *args, **kwargs: None
  try:
    yield
  finally:
    attention.ODD_TOKENS, cudnn.check_is_flash_attention = before


def mixing(implementation, shape, dtype):
  """(forward, gradient): calls that compute attention as the package's layers do, and its whole gradient.

  implementation: a name of models/attention.py, which may pad; 'cudnn odd' does not.
  """
  from flax import nnx
  import jax

  from vit_jax.models import attention, layers

  b, real, heads, width = shape
  name, odd = implementation.removesuffix(' odd'), implementation.endswith(' odd')
  n = real if odd else attention.padded(name, dtype=dtype, tokens=real)
  q, k, v, weight = (jax.random.normal(jax.random.key(i), (b * n, heads, width), dtype) for i in range(4))
  made = layers.Heads(heads * width, heads, qk_norm=False, norm=None, attn_drop=0.0, attention=name, rngs=nnx.Rngs(0))
  mix = lambda q, k, v: made.mix(q, k, v, n, real=real)
  forward = jax.jit(mix)
  gradient = jax.jit(jax.grad(lambda q, k, v: (mix(q, k, v) * weight).sum(dtype='float32'), argnums=(0, 1, 2)))
  calls = [lambda: forward(q, k, v), lambda: gradient(q, k, v)]
  with odd_tokens(odd):
    for call in calls:
      jax.block_until_ready(call())
  return calls


def seconds_of(call, at_least=0.02):
  """Seconds of a call, of as many in a row as take about `at_least`."""
  import jax

  began = time.perf_counter()
  jax.block_until_ready(call())
  repeat = max(1, int(at_least / (time.perf_counter() - began)))
  began = time.perf_counter()
  for _ in range(repeat):
    out = call()
  jax.block_until_ready(out)
  return (time.perf_counter() - began) / repeat


def events(profile):
  """(name, XLA's operation, nanoseconds) of each thing that a device has done; on a CPU of each XLA operation."""
  lines = [line for plane in profile.planes if plane.name.startswith('/device:') for line in plane.lines]
  streams = [line for line in lines if line.name.startswith('Stream')]
  for line in streams or [line for plane in profile.planes for line in plane.lines]:
    for event in line.events:
      operation = str(dict(event.stats).get('hlo_op', ''))
      if streams or operation:
        yield event.name, operation, event.duration_ns


def kind(name):
  """The kind of work of a kernel, by its name."""
  return next((word for word, pattern in KINDS if re.search(pattern, name.lower())), 'other')


def sources():
  """Eight hexadecimal digits that change with the package's code."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(worker.FOLDER).parent.glob('vit_jax/**/*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:8]


if __name__ == '__main__':
  side = Side()
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  worker.serve({name: getattr(side, name) for name in ('hello', 'build', 'run', 'matmul', 'attention', 'profile')})
