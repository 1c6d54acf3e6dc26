"""Machines that a plan is made for without them: GPUs and slices of TPU pods by name, what they hold and how fast.

Sources: NVIDIA's data sheet of the H200 (dense bfloat16, HBM3e, NVLink); docs.cloud.google.com/tpu/docs/v5e and /v6e.
What a TPU program may use of its memory is what libtpu 0.0.52 says of one that does not fit.
"""

from typing import NamedTuple

from vit_jax import console

# What XLA's compiler wants to know of a GPU that is not there, a stream_executor.GpuTargetConfigProto as text.
H200 = """\
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: 151397597184 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 } device_description_str: "NVIDIA H200"
"""


class Chip(NamedTuple):
  """One kind of chip.

  platform: 'cuda' or 'tpu'.   memory: GiB that programs may use.   flops: bfloat16 FLOP/s at best.   bandwidth: of its
  memory, bytes/s.   link: bytes/s that it sends to others at best.
  """

  words: str
  platform: str
  memory: float
  flops: float
  bandwidth: float
  link: float


class Machine(NamedTuple):
  """Chips of one kind, that many of them, in the form that jax's get_topology_desc calls `topology`."""

  name: str
  chip: Chip
  chips: int
  topology: str


CHIPS = {
  'h200': Chip('NVIDIA H200', 'cuda', 139.0, 989.4e12, 4.8e12, 450e9),
  'v5e': Chip('TPU v5e', 'tpu', 15.75, 197e12, 819e9, 200e9),
  'v6e': Chip('TPU v6e', 'tpu', 31.24, 918e12, 1638e9, 400e9),
}
SLICES = {'1x1': 1, '2x2': 4, '2x4': 8, '4x4': 16, '4x8': 32, '8x8': 64, '8x16': 128, '16x16': 256}
MACHINES = {
  'h200': Machine('h200', CHIPS['h200'], 1, '1x1x1'),
  'h200x8': Machine('h200x8', CHIPS['h200'], 8, '1x1x8'),
} | {
  f'{kind}-{size}': Machine(f'{kind}-{size}', CHIPS[kind], chips, f'{kind}:{size}')
  for kind in ('v5e', 'v6e') for size, chips in SLICES.items()
}  # fmt: skip


def named(name):
  """The Machine of a name; ValueError with the nearest one for another."""
  if name not in MACHINES:
    raise ValueError(f'There is no machine {name!r}{console.nearest(name, MACHINES)}; there are {", ".join(MACHINES)}.')
  return MACHINES[name]


def environment(machine):
  """{variable: value} under which jax compiles for a Machine that is not there."""
  common = {
    'JAX_PLATFORMS': 'cpu',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # two plans at once
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'XLA_FLAGS': '',
  }
  if machine.chip.platform == 'cuda':
    # Without a GPU nothing can be timed, and each product would become an untuned Triton kernel.
    return common | {'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1', 'XLA_FLAGS': '--xla_gpu_enable_triton_gemm=false'}
  alone = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}
  return common | alone | {'TPU_ACCELERATOR_TYPE': 'v5litepod-8'}  # any; libtpu warns where there is none


def arguments(machine):
  """Keyword arguments of jax.experimental.topologies.get_topology_desc for a Machine."""
  if machine.chip.platform == 'tpu':
    return {'platform': 'tpu', 'topology_name': machine.topology}
  return {'platform': 'cuda', 'topology_name': '', 'topology': machine.topology, 'target_config': H200}
