"""Which form in pure JAX "auto" takes: by measurement, `make bench-kernels`.

On accelerators many tokens are read in chunks and one token by itself. On a CPU it depends on what
is asked for: the values of a matrix memory come sooner token by token, its derivatives in chunks.
"""

from miras_jax.memory.algorithm import Removal, SeveralSteps
from miras_jax.memory.architecture import Matrix
from miras_jax.memory.memory import Memory
from miras_jax.memory.window import SlidingWindowAttention


def pure_forms(memory, total: int, platform: str) -> tuple[str, str]:
    """The forms for values alone and for derivatives.

    Args:
      memory: any that `memorize` takes.
      total: T.
      platform: of the machine: cpu, gpu, tpu.
    """
    if "chunked" not in memory.forms:
        return "recurrent", "recurrent"
    if isinstance(memory, SlidingWindowAttention):
        return "chunked", "chunked"
    if platform != "cpu" or not isinstance(memory, Memory):
        form = "recurrent" if total == 1 else "chunked"
        return form, form
    return _values_on_cpu(memory, total), _derivatives_on_cpu(memory, total)


def _values_on_cpu(memory: Memory, total: int) -> str:
    several = isinstance(memory.algorithm, SeveralSteps)
    if total == 1:
        # A chunk takes the steps of a token, or the chunk's start and its lift, at once.
        return "chunked" if several or memory.algorithm.lift is not None else "recurrent"
    if not (memory.exact and type(memory.architecture) is Matrix):
        return "chunked"
    if total == memory.chunk_size > 16 and not several:
        # One chunk: a decay alone, or a triangular system alone, costs the chunk more than tokens.
        alone = bool(memory.bias.curvature) != bool(memory.retention.gates)
        return "recurrent" if alone else "chunked"
    short = memory.chunk_size <= 16 and not several
    return "recurrent" if short or total > memory.chunk_size else "chunked"


def _derivatives_on_cpu(memory: Memory, total: int) -> str:
    sums = memory.bias.curvature == 0  # the memory is a decaying sum of the writes
    by_value = "log_value_decay" in memory.retention.gates
    if total == 1:
        alone = (sums and memory.exact and not by_value) or isinstance(memory.algorithm, Removal)
        return "recurrent" if alone else "chunked"
    if not (sums and memory.exact and type(memory.architecture) is Matrix):
        return "chunked"
    # A few chunks are faster at once, many one after the other.
    few = 1 < total / memory.chunk_size <= (16 if memory.retention.gates else 4)
    return "associative" if few and "associative" in memory.forms else "chunked"
