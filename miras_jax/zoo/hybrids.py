"""The hybrids of Miras, "-H": Behrouz et al., 2025 (arXiv 2504.13173, section 5).

Layers of the memory alternate with sliding-window attention, each followed by its SwiGLU, as in
Samba (Ren et al., 2024, arXiv 2406.07522). Departs: as the models without "-H" (`moneta`, `yaad`,
`memora`); the window, which the paper does not state, is Samba's 2,048.
"""

import dataclasses

from miras_jax.zoo import memora, moneta, yaad

ROWS = tuple(
    dataclasses.replace(
        row,
        name=f"{row.name}_h",
        block="hybrid",
        architecture=f"{row.architecture}; window of pairs",
        source=f"{row.source}; arXiv 2406.07522",
    )
    for row in (moneta.ROW, yaad.ROW, memora.ROW)
)
