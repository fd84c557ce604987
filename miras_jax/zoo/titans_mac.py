"""Titans, memory as context (MAC). Behrouz et al., 2025 (arXiv 2501.00663, Eqs. 21-25).

    h = M_{s-1}(q(x))                    what segment s recalls of the segments before it
    y = Attention([p_1 .. p_P] || h || x)
    M_s learns y                         o = norm(y) * silu(norm(M(y)))

Departs: see `miras_jax.nn.titans`; the memory is the zoo's `titans`.
"""

import dataclasses

from miras_jax.zoo import titans
from miras_jax.zoo.row import equations

ROW = dataclasses.replace(
    titans.ROW,
    name="titans_mac",
    block="mac",
    architecture=f"{titans.ROW.architecture}; segments of pairs",
    source="arXiv 2501.00663, Eqs. 21-25",
    recurrence=equations(__doc__),
)
