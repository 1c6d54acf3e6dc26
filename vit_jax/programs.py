"""A model as a program that runs without vit_jax: StableHLO for jax on a CPU, GPU or TPU, ONNX for onnxruntime.

Pixels go in as they are, uint8 (b, h, w, 3) for any b, and float32 comes out: normalisation and weights are inside.
float32 programs multiply at full precision on every platform, bfloat16 ones as the accelerator likes.

StableHLO (openxla.org/stablehlo) is read by jax.export from the version that wrote it on, for at least six months
(docs.jax.dev/en/latest/export). One file holds at most 2 GiB of either: flatbuffers and protobuf count in int32.
"""

import contextlib
import importlib.metadata
import json
import logging
import pathlib
import re
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from vit_jax import augment, markers, pretrained, state, transforms

DTYPES = ('float32', 'bfloat16')
PLATFORMS = ('cpu', 'cuda', 'tpu')
LIMIT = 2**31 - 2**24  # bytes of weights: 16 MiB are for the program itself
JAX2ONNX = (0, 17, 1)  # 0.13, which pip takes beside a newer orbax, fails on this jax
OPSET = 18  # onnxruntime 1.18 reads it, and the form that jax2onnx writes it in
_OWN = "pip install 'vit_jax[onnx]' in an environment of its own (it needs an older orbax-checkpoint)"

RUN = '''\
"""The five likeliest classes of pictures, by the model in this folder: python run.py PICTURE...

Needs jax, flatbuffers, numpy and Pillow. transforms.py and markers.py beside it prepare pictures as in training.
"""

import json
import pathlib
import sys

import jax
from jax import export
import numpy as np
import transforms

here = pathlib.Path(__file__).parent
about = json.loads((here / 'model.json').read_text(encoding='utf-8'))
if not sys.argv[1:]:
  sys.exit(__doc__)
images = [transforms.evaluation_image(path, about['preprocessing']) for path in sys.argv[1:]]  # uint8 (h, w, 3)
try:
  program = export.deserialize(bytearray((here / 'model.stablehlo').read_bytes()))
  outputs = [np.asarray(program.call(image[None]))[0] for image in images]  # float32; any batch will do
except Exception as problem:
  reason = str(problem).partition('\\n')[0]
  sys.exit(f'jax {jax.__version__} cannot run what jax {about["versions"]["jax"]} wrote: {reason}')
for path, output in zip(sys.argv[1:], outputs):
  if about['outputs'][0]['name'] != 'logits':
    print(f'{path}: {about["outputs"][0]["name"]} {output.shape}\\n{output}')
    continue
  powers = np.exp(output - output.max())
  probabilities = 1 / (1 + np.exp(-output)) if about['loss'] == 'sigmoid' else powers / powers.sum()
  best = np.argsort(-probabilities)[:5]
  names = about['classes'] or [str(i) for i in range(len(output))]
  print(f'{path}: ' + ', '.join(f'{names[i]} {probabilities[i]:.1%}' for i in best))
'''


def check(to, *, dtype='float32'):
  """None if this environment can write the format in that dtype; ValueError that says what to install or choose."""
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}: choose one of {", ".join(DTYPES)}.')
  if to == 'stablehlo':
    try:
      import flatbuffers  # noqa: F401
    except ImportError:
      raise ValueError('jax.export needs flatbuffers to write a program: pip install flatbuffers.') from None
    return
  if dtype != 'float32':
    raise ValueError(f'onnxruntime has no {dtype} on a CPU; leave --dtype out, or choose --to=stablehlo.')
  try:
    version = importlib.metadata.version('jax2onnx')
  except importlib.metadata.PackageNotFoundError:
    raise ValueError(f'--to=onnx needs jax2onnx: {_OWN}.') from None
  if tuple(map(int, re.findall(r'\d+', version)[:3])) < JAX2ONNX:
    raise ValueError(f'jax2onnx {version} is too old for this jax: {_OWN}.')


def program(model, row, dtype='float32'):
  """The function uint8 (b, h, w, 3) -> float32 outputs of a model, whose weights are constants of it.

  row: preprocessing, as transforms.py has it; only mean and std are part of the program.
  """
  graphdef, *arrays = state.split(pretrained.plain(model))
  params, rest = jax.tree.map(np.asarray, arrays)  # from whatever devices they are on
  params = state.cast(params, dtype)

  def run(images):
    images = augment.normalise(images, row['mean'], row['std'], dtype)
    return state.merge(graphdef, *jax.tree.map(jnp.asarray, (params, rest)))(images).astype(jnp.float32)

  return run


def exact(dtype):
  """A context in which products are computed as a program of that dtype computes them."""
  return jax.default_matmul_precision('highest' if dtype == 'float32' else 'default')


def _about(run, described, dtype):
  """What goes in, what comes out and where it is from: the content of model.json, and the metadata of an ONNX file."""
  row, made = described['preprocessing'], described['architecture']
  out = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *row['size'], 3), np.uint8))
  tells = len(out.shape) == 2 and (made is None or bool(made['num_classes']))
  meaning = {'softmax': 'one number a class, softmax gives probabilities',
             'sigmoid': 'one number a class, sigmoid gives the probability of each'}[described['loss']]  # fmt: skip
  return {
    'inputs': [{'name': 'images', 'dtype': 'uint8', 'shape': ['b', *row['size'], 3],
                'meaning': 'upright RGB pixels 0..255, resized and cropped as preprocessing says, not normalised'}],
    'outputs': [{'name': 'logits' if tells else 'features', 'dtype': 'float32', 'shape': ['b', *out.shape[1:]],
                 'meaning': meaning if tells else 'what a head would read'}],
    'dtype': dtype,
    **{key: described[key] for key in ('name', 'architecture', 'weights', 'preprocessing', 'classes', 'ids', 'loss',
                                       'licence')},
    'versions': {'vit_jax': vit_jax.__version__, 'jax': jax.__version__, 'flax': flax.__version__},
  }  # fmt: skip


def _fitting(model, dtype):
  """None if one file can hold the weights, else a ValueError with what can be done."""
  leaves = jax.tree.leaves(state.split(model)[1:])
  size = sum(leaf.size for leaf in leaves) * jnp.dtype(dtype).itemsize
  if size > LIMIT:
    half = '--dtype=bfloat16 --to=stablehlo halves it; else ' if dtype == 'float32' and size / 2 <= LIMIT else ''
    raise ValueError(
      f'The weights take {size / 2**30:.2f} GiB, and a program holds at most 2; {half}choose --to=timm, hf or npz.'
    )


def to_stablehlo(model, described, folder, *, dtype='float32'):
  """Writes model.stablehlo (all PLATFORMS, any batch), model.json, run.py and what that imports into a new folder."""
  from jax import export

  _fitting(model, dtype)
  row = described['preprocessing']
  run = program(model, row, dtype)
  about = _about(run, described, dtype) | {'platforms': list(PLATFORMS)}
  (b,) = export.symbolic_shape('b')
  with exact(dtype):
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(jax.ShapeDtypeStruct((b, *row['size'], 3), np.uint8))
  folder.mkdir()
  (folder / 'model.stablehlo').write_bytes(exported.serialize())
  (folder / 'model.json').write_text(json.dumps(about, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  (folder / 'run.py').write_text(RUN, encoding='utf-8')
  for module in (transforms, markers):  # beside run.py there is no package
    path = pathlib.Path(module.__file__)
    text = path.read_text(encoding='utf-8').replace('from vit_jax import markers', 'import markers')
    (folder / path.name).write_text(text, encoding='utf-8')


def to_onnx(model, described, path, *, dtype='float32'):
  """Writes an .onnx file for any batch; its metadata_props say what model.json does, each value as JSON."""
  _fitting(model, dtype)
  row = described['preprocessing']
  run = program(model, row, dtype)
  about = _about(run, described, dtype)
  name = about['outputs'][0]['name']
  with exact(dtype), _quiet():
    import jax2onnx
    import onnx

    made = jax2onnx.to_onnx(
      run, [jax.ShapeDtypeStruct(('b', *row['size'], 3), np.uint8)], model_name=described['name'] or 'model',
      opset=OPSET, input_names=['images'], output_names=[name],
    )  # fmt: skip
  _pool_in_space(made.graph)
  made.graph.output[0].type.tensor_type.shape.dim[0].dim_param = 'b'
  onnx.helper.set_model_props(made, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
  onnx.checker.check_model(made)
  path.write_bytes(made.SerializeToString())


@contextlib.contextmanager
def _quiet():
  """Keeps jax2onnx's remarks from the user: what it cannot type, takes as inference, or calls by an old name."""
  before = logging.root.manager.disable
  logging.disable(logging.WARNING)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)
      yield
  finally:
    logging.disable(before)


def _pool_in_space(graph):
  """Makes every MaxPool of a graph one over (h, w) of (b, c, h, w), in place.

  jax2onnx writes reduce_window as Unsqueeze, Unsqueeze, MaxPool over (b, h, w, c), Squeeze, and onnxruntime has no
  such pooling.
  """
  from onnx import helper

  maker = {output: node for node in graph.node for output in node.output}
  for pool in [node for node in graph.node if node.op_type == 'MaxPool']:
    words = {one.name: helper.get_attribute_value(one) for one in pool.attribute}
    second = maker[pool.input[0]]
    first, last = maker[second.input[0]], next(node for node in graph.node if pool.output[0] in node.input)
    assert [node.op_type for node in (first, second, last)] == ['Unsqueeze', 'Unsqueeze', 'Squeeze']
    assert len(words['kernel_shape']) == 4
    for node, order in ((first, (0, 3, 1, 2)), (last, (0, 2, 3, 1))):
      node.CopyFrom(helper.make_node('Transpose', node.input[:1], node.output, node.name, perm=order))
    # what is said for each end of each axis has twice as many
    inner = {key: [n for i, n in enumerate(value) if i % 4 in (1, 2)] for key, value in words.items()
             if key in ('kernel_shape', 'strides', 'pads', 'dilations')}  # fmt: skip
    pool.CopyFrom(helper.make_node('MaxPool', first.output, pool.output, pool.name, **inner))
    graph.node.remove(second)
  read = {name for node in graph.node for name in node.input}
  for unused in [tensor for tensor in graph.initializer if tensor.name not in read]:
    graph.initializer.remove(unused)
  del graph.value_info[:]  # shapes on the way, some of which were of the old form; runtimes infer them
