"""The plain reference for a start: a trainer in Flax Linen with tf.data, as published ones are written.

Parameters are initialised by a jitted init and lie on the default device; batches are placed over a mesh of all
devices. So what the first step returns lies otherwise than what it was given, and the second step compiles again: the
original release of ViT does the same, by pmap.
"""

import linen_vit


def dataset(images, labels, batch):  # uint8 (n, h, w, c), int (n,)
  """Batches {'image', 'label'} as numpy arrays, shuffled and mirrored by tf.data, without an end."""
  import tensorflow as tf

  def mirrored(example):
    return example | {'image': tf.image.random_flip_left_right(example['image'])}

  data = tf.data.Dataset.from_tensor_slices({'image': images, 'label': labels})
  data = data.shuffle(len(images), seed=0).repeat().map(mirrored, num_parallel_calls=tf.data.AUTOTUNE)
  return data.batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def train(size, images, labels, *, batch, classes, steps):
  """(last loss, how often the step was compiled) of so many steps of a linen_vit model of a size, AdamW, float32."""
  import jax
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P
  import optax

  data = dataset(images, labels, batch)
  vit = linen_vit.ViT(num_classes=classes, patch_size=16, **linen_vit.SIZES[size])
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))
  mesh = jax.make_mesh((jax.device_count(),), ('batch',), axis_types=(jax.sharding.AxisType.Auto,))
  place = NamedSharding(mesh, P('batch'))
  params, opt_state, step = linen_vit.make(vit, tx, images[:1])
  for _ in range(steps):
    params, opt_state, loss = step(params, opt_state, jax.device_put(next(data), place))
  return float(loss), step._cache_size()
