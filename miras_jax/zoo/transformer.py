"""Transformer. Vaswani et al., 2017 (arXiv 1706.03762); Miras Table 1, the non-parametric row.

    y_t = sum_{i<=t} softmax_i(q_t . k_i / sqrt(K)) v_i

The baseline: Llama's attention, rotary positions, no convolution, no output gate. Its state grows
with what it has read.
"""

from miras_jax.memory import Attention
from miras_jax.zoo.row import LayerOptions, Row, equations

ROW = Row(
    name="transformer",
    memory=Attention(),
    layer=LayerOptions(
        convolution=False,
        normalize=False,
        rotary=True,
        scale_query=True,
        output_norm=False,
        output_gate=False,
    ),
    architecture="growing set of pairs",
    bias="l2",
    retention="none",
    algorithm="non-parametric",
    source="arXiv 1706.03762",
    recurrence=equations(__doc__),
)
