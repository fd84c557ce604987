"""Sliding-window attention. Beltagy et al., 2020 (arXiv 2004.05150); as a layer: Mistral, Samba.

    y_t = sum_{t - W < i <= t} softmax_i(q_t . k_i / sqrt(K)) v_i

The transformer's attention (rotary positions, no convolution, no output gate) over the last W
tokens. Its state does not grow. W = 2,048 is Samba's (arXiv 2406.07522).
"""

from miras_jax.memory import SlidingWindowAttention
from miras_jax.zoo.row import Row, equations
from miras_jax.zoo.transformer import ROW as TRANSFORMER

ROW = Row(
    name="sliding_window_attention",
    memory=SlidingWindowAttention(window=2048),
    layer=TRANSFORMER.layer,
    architecture="window of pairs",
    bias="l2",
    retention="none",
    algorithm="non-parametric",
    source="arXiv 2004.05150, 2406.07522",
    recurrence=equations(__doc__),
)
