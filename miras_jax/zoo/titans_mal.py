"""Titans, memory as a layer (MAL). Behrouz et al., 2025 (arXiv 2501.00663, Eqs. 29-31).

    y = M(x)          o = SWA([p_1 .. p_P] || y)

The memory first, sliding-window attention after it. Departs: a residual connection round each of
the two; persistent tokens in front of the attention only, the memory has its learned start.
"""

import dataclasses

from miras_jax.zoo import titans
from miras_jax.zoo.row import equations

ROW = dataclasses.replace(
    titans.ROW,
    name="titans_mal",
    block="mal",
    architecture=f"{titans.ROW.architecture}; window of pairs",
    source="arXiv 2501.00663, Eqs. 29-31",
    recurrence=equations(__doc__),
)
