"""How time and memory of a training step grow with batch, tokens, depth, width and devices; rows and the curves.

  python benchmarks/growth.py                    # about 6 minutes of CPU; goes on where it was stopped
  python benchmarks/growth.py --draw             # docs/growth.svg, docs/growth_devices.svg and a table, of the rows

A small ViT (float32, AdamW, on the CPU; see BASE), of which one number changes at a time. Time: CPU seconds of a step,
the least of three; memory: what the compiled step allocates besides its arguments, and its arguments. Devices are
emulated and nothing runs on them: the step is compiled, and what its devices exchange is read from the program. Rows
are in results/growth.jsonl; one that is there is not measured again. Chips that are not here come from scaling.py's
results/scaling.jsonl.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import growth_svg
import measure

KEPT = measure.RESULTS / 'growth.jsonl'
DOCS = pathlib.Path(__file__).parent.parent / 'docs'
BASE = {'batch': 16, 'image': 64, 'depth': 6, 'width': 192}  # patches of 8, heads of 32
PATCH, HEAD, CLASSES = 8, 32, 100
AXES = {
  'batch': (4, 8, 16, 32, 64),
  'image': (32, 64, 96, 128, 160),
  'depth': (3, 6, 12, 24),
  'width': (64, 128, 192, 384, 768),
}
FORMS = {'loop': {}, 'scan, remat': {'scan': True, 'remat': 'full'}}
DEVICES = (1, 2, 4, 8)
LAYOUTS = ('data', 'fsdp')
EACH = 8  # pictures of a device


def program(point, *, mesh=None, **execution):
  """(lowered step, the state's initializer, its arguments) of a point: BASE with one number changed."""
  import jax

  import vit_jax
  from vit_jax import optim, sharding, state, tasks
  from vit_jax import step as step_lib

  mesh = sharding.make_mesh() if mesh is None else mesh
  model = vit_jax.create_model(
    'vit_tiny_patch16_224', num_classes=CLASSES, img_size=point['image'], patch_size=PATCH, depth=point['depth'],
    embed_dim=point['width'], num_heads=point['width'] // HEAD, **execution)  # fmt: skip
  graphdef, params, rest = state.split(model)
  row = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
  made = step_lib.jitted(graphdef, params, rest, optim.make(total_steps=1000), tasks.make(classes=range(CLASSES)), row,
                         seed=0, options=step_lib.Step(), mesh=mesh)  # fmt: skip
  place = sharding.batch(mesh)
  shapes = {
    'image': jax.ShapeDtypeStruct((point['batch'], point['image'], point['image'], 3), 'uint8', sharding=place),
    'label': jax.ShapeDtypeStruct((point['batch'],), 'int32', sharding=place),
  }
  return made.step.lower(made.shapes, shapes), lambda: made.init(params, rest), shapes


def step(point, form):
  """A row's values: compile seconds, CPU seconds of a step, MiB of temporaries and of arguments."""
  import jax
  import jax.numpy as jnp

  jax.config.update('jax_enable_compilation_cache', False)
  lowered, init, shapes = program(point, **FORMS[form])
  began = time.process_time()
  compiled = lowered.compile()
  compiling = time.process_time() - began
  run, batch = init(), jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
  seconds = []
  for _ in range(4):
    began = time.process_time()
    run, values = jax.block_until_ready(compiled(run, batch))
    seconds.append(time.process_time() - began)
  memory = compiled.memory_analysis()
  return {
    'tokens': (point['image'] // PATCH) ** 2 + 1,
    'compile_seconds': compiling,
    'seconds': min(seconds[1:]),
    'temporaries_mib': memory.temp_size_in_bytes / 2**20,
    'arguments_mib': memory.argument_size_in_bytes / 2**20,
  }


def exchanged(n, layout):
  """A row's values for n emulated devices, by a process of its own: MiB that each sends in a step, and holds."""
  code = f'import growth; growth.print_exchanged({n}, {layout!r})'
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={max(DEVICES)}'
  env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', code], cwd=os.path.dirname(os.path.abspath(__file__)), env=env,
                        stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
  return json.loads(done.stdout.splitlines()[-1])


def print_exchanged(n, layout):
  """Prints what exchanged gives, for that process."""
  import jax

  from vit_jax import exchange, hlo, sharding

  sizes = {'data': 1, layout: n}
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:n])
  compiled = program(BASE | {'batch': EACH * n}, mesh=mesh)[0].compile()
  memory, text = compiled.memory_analysis(), compiled.as_text()
  rows = hlo.collectives(text) if n > 1 else []
  sent = {op: sum(row['mib'] for row in exchange.summary(rows) if row['op'] == op)
          for op in {row['op'] for row in exchange.summary(rows)}}  # fmt: skip
  print(json.dumps({
    'sent_mib': exchange.moved(rows) / 2**20,
    'collectives_mib': sent,
    'temporaries_mib': memory.temp_size_in_bytes / 2**20,
    'arguments_mib': memory.argument_size_in_bytes / 2**20,
  }))  # fmt: skip


def wanted():
  """{key: () -> values} of all rows, in order; a key is what a row says of itself before it is measured."""
  out = {}
  for axis, values in AXES.items():
    for value in values:
      point = BASE | {axis: value}
      for form in FORMS if axis == 'depth' else ['loop']:
        out[json.dumps({'axis': axis, 'value': value, 'form': form})] = lambda p=point, f=form: step(p, f)
  for layout in LAYOUTS:
    for n in DEVICES:
      key = {'axis': 'devices', 'value': n, 'form': layout, 'device': 'cpu, emulated'}
      out[json.dumps(key)] = lambda n=n, layout=layout: exchanged(n, layout)
  return out


def rows(path=KEPT):
  """The rows of a file, none where there is none."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--draw', action='store_true', help='draw what was measured, and measure nothing')
  args = parser.parse_args()
  if not args.draw:
    measure.warn_if_busy()
    machine, there = measure.machine(), rows()
    for key, call in wanted().items():
      if any(json.loads(key).items() <= row.items() for row in there):
        continue
      values = call()
      if values:
        line = {**json.loads(key), **values, 'date': machine['date'], 'cpu': machine['cpu']}
        line['jax'] = machine['versions'].get('jax')
        with open(KEPT, 'a') as file:
          file.write(json.dumps(line) + '\n')
        print(json.dumps(line), flush=True)
  growth_svg.write(rows(), rows(measure.RESULTS / 'scaling.jsonl'), DOCS)


if __name__ == '__main__':
  main()
