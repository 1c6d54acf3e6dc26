"""timm and Hugging Face as sides of a comparison (see worker.py): the same models as a competent user trains them.

Mixed precision by autocast with float32 parameters, as ours; fused AdamW; fused attention, which both libraries call by
default; channels_last. Images lie on the device and are normalised already, which ours do in the step.
"""

import contextlib
import os
import time

import worker

CLASSES = 1000


class Side:
  """What is built stays until the process ends."""

  def __init__(self):
    import torch

    with contextlib.suppress(ImportError):
      import torchvision_cpu  # noqa: F401  where torchvision's own operators do not load: see benchmarks/README.md
    self.torch = torch
    self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    self.call = self.rate = None
    torch.set_float32_matmul_precision('highest' if self.device.type == 'cpu' else 'high')
    torch.backends.cudnn.benchmark = True

  def hello(self):
    """The device and the versions."""
    import importlib.metadata

    versions = {'torch': self.torch.__version__}
    for name in ('timm', 'transformers', 'triton'):
      with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions[name] = importlib.metadata.version(name)
    gpu = self.device.type == 'cuda'
    device = self.torch.cuda.get_device_name() if gpu else 'cpu'
    return {'platform': 'gpu' if gpu else 'cpu', 'device': device, 'versions': versions}

  def build(self, *, library, name, sizes, batch, train, dtype='bfloat16', compiled=False, channels_last=True,
            model=None):  # fmt: skip
    """Makes a model and takes one step (or one forward pass), which compiles it where that is wanted.

    library: 'timm' or 'hf'.   name: timm's.   sizes: what hf is told instead.   model: arguments of timm's constructor.
    """
    torch = self.torch
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = {'timm': timm, 'hf': hugging_face}[library](name, sizes, model or {})
    low = getattr(torch, dtype)
    net = net.to(self.device, None if train else low, memory_format=layout).train(train)
    run = torch.compile(net) if compiled else net
    image = (batch, 3, sizes['image'], sizes['image'])
    images = torch.randn(image, device=self.device).to(low).contiguous(memory_format=layout)
    labels = torch.randint(CLASSES, (batch,), device=self.device)
    if train:
      self.call = self._training(net, run, images, labels, low)
    else:
      self.call = torch.inference_mode()(lambda: run(images))
    began = time.perf_counter()
    self.call()
    self._wait()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else None
    return {'compile_seconds': seconds, 'planned_bytes': None, 'peak_bytes': peak}

  def _training(self, net, run, images, labels, low):
    torch = self.torch
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    cast = torch.autocast(self.device.type, dtype=low, enabled=low != torch.float32)

    def call():
      with cast:
        loss = torch.nn.functional.cross_entropy(run(images).float(), labels)
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      optimizer.step()
      return loss.detach()

    return call

  def _wait(self):
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()

  def run(self, *, steps):
    """{'seconds', 'cpu_seconds', 'value'} of so many steps; value: the last loss, or the mean of the last logits."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      out = self.call()
    self._wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {'seconds': wall, 'cpu_seconds': cpu, 'value': float(out.float().mean())}

  def matmul(self, *, size, repeat):
    """{'tflops'} of a product of square bfloat16 matrices of random numbers."""
    torch = self.torch
    if self.rate is None:
      a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
      out = torch.empty_like(a)
      self.rate = lambda: torch.matmul(a, b, out=out)
      self.rate()
    self._wait()
    began = time.perf_counter()
    for _ in range(repeat):
      self.rate()
    self._wait()
    return {'tflops': 2 * size**3 * repeat / (time.perf_counter() - began) / 1e12}


def timm(name, sizes, model):
  """timm's model, freshly drawn."""
  import timm

  return timm.create_model(name, num_classes=CLASSES, **model)


def hugging_face(name, sizes, model):
  """The model of transformers with these sizes, as a function of images to logits."""
  import torch
  import transformers

  config = transformers.ViTConfig(
    hidden_size=sizes['embed_dim'], num_hidden_layers=sizes['depth'], num_attention_heads=sizes['num_heads'],
    intermediate_size=4 * sizes['embed_dim'], patch_size=sizes['patch'], image_size=sizes['image'], num_labels=CLASSES,
    attn_implementation='sdpa')  # fmt: skip

  class Logits(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.vit = transformers.ViTForImageClassification(config)

    def forward(self, images):
      return self.vit(pixel_values=images).logits

  return Logits()


if __name__ == '__main__':
  side = Side()
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  worker.serve({name: getattr(side, name) for name in ('hello', 'build', 'run', 'matmul')})
