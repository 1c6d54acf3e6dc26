"""`python -m vit_jax COMMAND` is `vit_jax COMMAND`."""

import sys

from vit_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
