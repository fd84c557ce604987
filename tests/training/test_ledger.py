"""The account of batches: the same however a run is cut, and on however many processes."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.nn.partition import BATCH
from miras_jax.training import MeshConfig, ledger
from miras_jax.training.ledger import Ledger, shared_index, windows_of
from miras_jax.training.state import make_mesh

BATCHES = [np.array(rows) for rows in ([5, 2**40, 3, 9], [7, 1, 2, 4], [8, 6, 0, 11])]


def test_a_restart_goes_on_and_every_change_shows():
    whole, first = Ledger(), Ledger()
    records = [whole.enter(windows_of(batch)) for batch in BATCHES]
    first.enter(windows_of(BATCHES[0]))
    again = Ledger.restored(first.saved())
    assert [again.enter(windows_of(batch)) for batch in BATCHES[1:]] == records[1:]
    for others in (BATCHES[:2], [*BATCHES, BATCHES[2]], [BATCHES[n] for n in (1, 0, 2)]):
        other = Ledger()
        for batch in others:  # one left out, one twice, another order
            other.enter(windows_of(batch))
        assert other.checksum != whole.checksum


def test_rows_of_several_processes_count_as_one_batch(monkeypatch):
    """Collected over the mesh, numbers beyond 32 bits too; which process read a row is all one."""
    rows = NamedSharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), PartitionSpec(BATCH))
    expected = windows_of(shared_index(BATCHES[0], rows))
    monkeypatch.setattr(ledger.jax, "process_count", lambda: 2)
    collected = shared_index(BATCHES[0][[0, 2, 1, 3]], rows)
    assert isinstance(collected, jax.Array)
    assert collected.is_fully_replicated
    monkeypatch.undo()
    np.testing.assert_array_equal(windows_of(collected), expected)
    np.testing.assert_array_equal(expected, [3, 5, 9, 2**40])
