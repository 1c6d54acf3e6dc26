"""`python -m vit_jax COMMAND` is `vit_jax COMMAND`.

For -m Python looks into the current folder first, which may be one of downloaded files with a jax.py among them.
"""

import os
import sys

if __name__ == '__main__' and not sys.flags.safe_path and sys.path[0] == os.getcwd():
  del sys.path[0]

from vit_jax import cli  # noqa: E402

if __name__ == '__main__':
  sys.exit(cli.main())
