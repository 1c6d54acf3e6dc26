"""Eight CPU devices for the whole suite: set before anything imports jax."""

import os

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'

import pytest  # noqa: E402


@pytest.fixture
def devices():
  """The eight emulated devices."""
  import jax
  assert len(jax.devices()) >= 8
  return jax.devices()
