"""`python -m miras_jax` is the same as `miras`."""

import sys

from miras_jax.cli import main

sys.exit(main())
