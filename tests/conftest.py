"""Eight CPU devices for the whole suite: set before anything imports jax."""

import atexit
import os
import shutil
import tempfile

# optimization level 0: the suite compiles hundreds of tiny programs, and LLVM's passes would be a third of its time
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['VIT_JAX_OFFLINE'] = '1'  # no test asks a hub but its own

# One compilation cache for the session and its processes: most tests compile what another one has compiled.
os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='vit_jax_tests_')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

import pytest  # noqa: E402


@pytest.fixture
def devices():
  """The eight emulated devices."""
  import jax

  assert len(jax.devices()) >= 8
  return jax.devices()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A bucket.Bucket behind gs://; nothing waits for it, and what is copied from it goes to a folder of the test's."""
  import bucket as fake

  from vit_jax import lease, storage

  monkeypatch.setattr(storage, 'WAITS', ())
  monkeypatch.setattr(lease, 'SETTLE', 0)
  monkeypatch.setattr(storage, '_SHOWN', {})
  monkeypatch.setenv('VIT_JAX_CACHE', str(tmp_path / 'cache'))
  storage._room.cache_clear()
  with fake.opened() as opened:
    yield opened
  storage._room.cache_clear()


@pytest.fixture(scope='session')
def untrained(tmp_path_factory):
  """The folder of a run for the digits: a tiny ViT as it was drawn, with a head that names all ten classes."""
  import json

  import numpy as np

  import vit_jax
  from vit_jax import checkpoint, pretrained, state, transforms

  folder = tmp_path_factory.mktemp('untrained')
  tiny = dict(num_classes=10, img_size=8, patch_size=2, embed_dim=48, depth=1, num_heads=3)
  model = vit_jax.create_model('vit_tiny_patch16_224', **tiny)
  _, params, rest = state.split(model)
  params['head']['kernel'] = np.random.default_rng(0).normal(size=(48, 10)).astype(np.float32)
  kept = checkpoint.Checkpoints(folder)
  kept.save(1, {'params': params, 'rest': rest}, {'step': 1}, 0.5)
  kept.close()
  row = transforms.preprocessing(8, crop='squash', crop_pct=1.0)
  said = {'preprocessing': row, 'classes': list('0123456789'), 'ids': None, 'loss': 'softmax'}
  (folder / 'model.json').write_text(json.dumps(pretrained.origin(model) | said))
  return folder
