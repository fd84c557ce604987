"""The account of batches: the same however a run is cut, another where a batch is."""

import numpy as np

from miras_jax.training.ledger import Ledger

BATCHES = [np.array(rows) for rows in ([5, 2**40, 3, 9], [7, 1, 2, 4], [8, 6, 0, 11])]


def test_a_restart_goes_on_and_every_change_shows():
    whole, first = Ledger(), Ledger()
    records = [whole.enter(batch) for batch in BATCHES]
    first.enter(BATCHES[0])
    again = Ledger.restored(first.saved())
    assert [again.enter(batch) for batch in BATCHES[1:]] == records[1:]
    for others in (BATCHES[:2], [*BATCHES, BATCHES[2]], [BATCHES[n] for n in (1, 0, 2)]):
        other = Ledger()
        for batch in others:  # one left out, one twice, another order
            other.enter(batch)
        assert other.checksum != whole.checksum
