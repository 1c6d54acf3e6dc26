"""Our configs/mnist.py beside ten epochs of an early tutorial's small ViT, in one run: test accuracy and CPU seconds.

  python benchmarks/mnist.py --data=mnist.npz

The tutorial's text is not at hand. Assumed is the small ViT that introductions of that time trained on MNIST: patches
of 7, width 64, 6 blocks, 8 heads, MLP of 128, class token; Adam at a constant 3e-3, batches of 100, no augmentation.
Whether its heads were 64 / 8 = 8 or 64 wide is open: 8 is the default, as it is the cheaper and so the harder bound;
--head_dim=64 runs the other. The tutorial is evaluated once, at the end.
"""

import argparse
import json

import measure
import numpy as np

BATCH = 100


def tutorial(path, head_dim, epochs):
  """Test accuracy of the tutorial's model after training, and its loss in each epoch."""
  import jax
  import jax.numpy as jnp
  import linen_vit
  import optax

  with np.load(path) as file:
    x_train, y_train, x_test, y_test = (file[k] for k in ('x_train', 'y_train', 'x_test', 'y_test'))
  x_train, x_test = x_train[..., None], x_test[..., None]  # (n, 28, 28, 1)
  y_train, y_test = y_train.astype(np.int32), y_test.astype(np.int32)
  model = linen_vit.ViT(
    num_classes=10, patch_size=7, embed_dim=64, depth=6, num_heads=8, mlp_dim=128, head_dim=head_dim
  )
  params, opt_state, step = linen_vit.make(model, optax.adam(3e-3), x_train[:1])
  count = jax.jit(
    lambda params, images, labels: jnp.sum(
      model.apply({'params': params}, linen_vit.normalise(images)).argmax(-1) == labels
    )
  )
  rng, losses = np.random.default_rng(0), []
  for _ in range(epochs):
    order, total = rng.permutation(len(x_train)), 0.0
    for rows in order.reshape(-1, BATCH):
      params, opt_state, loss = step(params, opt_state, {'image': x_train[rows], 'label': y_train[rows]})
      total += loss  # stays on the device: no wait in the loop
    losses.append(float(total) * BATCH / len(order))
  right = sum(int(count(params, x_test[i : i + 1000], y_test[i : i + 1000])) for i in range(0, len(x_test), 1000))
  return {'top1': right / len(x_test), 'losses': losses}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', required=True, help='an .npz with x_train, y_train, x_test, y_test')
  parser.add_argument('--head_dim', type=int, default=8, help="width of the tutorial's heads")
  parser.add_argument('--epochs', type=int, default=10, help='of the tutorial; fewer only to try this script')
  parser.add_argument('--child', action='store_true', help='used by this script itself')
  args = parser.parse_args()
  if args.child:
    print(json.dumps(tutorial(args.data, args.head_dim, args.epochs)))
    return
  measure.warn_if_busy()
  machine = measure.machine()
  rows = [measure.train('mnist', args.data)]
  found, cpu, wall = measure.child(
    '--child', f'--data={args.data}', f'--head_dim={args.head_dim}', f'--epochs={args.epochs}'
  )
  rows.append(
    {
      'run': f'tutorial, Linen, heads of {args.head_dim}',
      'epochs': args.epochs,
      'top1': found['top1'],
      'CPU seconds': cpu,
      'seconds': wall,
    }
  )
  measure.table(rows)
  measure.record('mnist', machine, rows)


if __name__ == '__main__':
  main()
