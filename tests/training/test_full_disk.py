"""A full disk: what could not be written is said, and the last good checkpoint is left intact.

The limit is real. A process may limit the size of the files it writes (RLIMIT_FSIZE), without
being root: `write` then fails in the kernel, half way through a file, as on a full disk, with
"File too large" for "No space left on device". Where the tests may mount, a small tmpfs is filled.
"""

EXPERIMENT = """
import resource
from tests.training.toy import toy
import pathlib
config = toy(pathlib.Path({folder!r}), **{changes!r})
{before}
"""
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))"
# Files of a checkpoint of the toy are up to 97 kB; its metrics have 1 kB after two steps.
ARRAYS, METRICS = 80_000, 1_500
