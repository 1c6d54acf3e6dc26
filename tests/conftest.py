"""Eight CPU devices for the whole suite: set before anything imports jax."""

import os

# optimization level 0: the suite compiles hundreds of tiny programs, and LLVM's passes would be a third of its time
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FLAGS}'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['VIT_JAX_OFFLINE'] = '1'  # no test asks a hub but its own

import pytest  # noqa: E402


@pytest.fixture(scope='session', autouse=True)
def compilation_cache(tmp_path_factory):
  """One persistent compilation cache for the session: most tests compile what another one has compiled."""
  import jax

  jax.config.update('jax_compilation_cache_dir', str(tmp_path_factory.mktemp('jax_cache')))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture
def devices():
  """The eight emulated devices."""
  import jax

  assert len(jax.devices()) >= 8
  return jax.devices()
