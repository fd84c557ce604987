"""Titans, memory as a gate (MAG). Behrouz et al., 2025 (arXiv 2501.00663, Eqs. 26-28).

    y = SWA([p_1 .. p_P] || x)          o = norm(y) * silu(norm(M(x)))

Memory and sliding-window attention read the same tokens side by side. Departs: see
`miras_jax.nn.titans`; the memory is the zoo's `titans`.
"""

import dataclasses

from miras_jax.zoo import titans
from miras_jax.zoo.row import equations

ROW = dataclasses.replace(
    titans.ROW,
    name="titans_mag",
    block="mag",
    architecture=f"{titans.ROW.architecture}; window of pairs",
    source="arXiv 2501.00663, Eqs. 26-28",
    recurrence=equations(__doc__),
)
