"""Test accuracy, CPU seconds and wall seconds of a whole run of a shipped config on a real data set.

python benchmarks/train.py --config=fashion_mnist --data=fashion_mnist.npz
"""

import argparse

import measure


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', required=True, help='fashion_mnist, cifar10 or another config whose data is an .npz')
  parser.add_argument('--data', required=True, help='an .npz with x_train, y_train, x_test, y_test')
  args = parser.parse_args()
  measure.warn_if_busy()
  machine = measure.machine()
  rows = [measure.train(args.config, args.data)]
  measure.table(rows)
  measure.record('train', machine, rows)


if __name__ == '__main__':
  main()
