"""Pretraining at the sizes of the Miras paper: any model of the zoo at 170m, 340m, 780m or 1300m.

    miras tokenize hf:HuggingFaceFW/fineweb-edu,sample-100BT:train --tokenizer tokenizer.model
        --out data/fineweb-edu
    miras plan experiments/pretrain.py:memory=yaad,size=1300m --topology v5e:16x16
    miras train experiments/pretrain.py:memory=yaad,size=1300m --mesh.fsdp 256

What the paper says (Miras, arXiv 2504.13173, Section 6 and Table 5): FineWeb-Edu, windows of 4,096
tokens; depth, width, heads and peak learning rates of 170m, 340m and 780m; 15, 15, 30 and 100
billion tokens. What it leaves to Titans' recipe (arXiv 2501.00663, Section 5.1): Llama 2's
vocabulary of 32,000 tokens, AdamW with a cosine, weight decay 0.1, half a million tokens a step,
and the learning rate of 1300m. What neither says, and is chosen here: warm-up over the first
hundredth of the steps, a cosine that ends at a tenth of the peak, b1 = 0.9 and b2 = 0.95, gradients
clipped to norm 1, and the SwiGLU. Its width gives every model the parameters of Yaad of the same
size, so that baselines and hybrids compare at equal parameters; `equal=false` leaves it as it is in
`miras_jax/nn/sizes.py`.

Nothing here has been trained yet: there are no scores to reach.
"""

from miras_jax.nn import sizes
from miras_jax.training import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LogConfig,
    OptimizerConfig,
    TrainConfig,
)

WINDOW = 4096
ROWS = 128  # 524,288 tokens a step

# Tokens to train on and peak learning rate.
RECIPES = {
    "170m": (15e9, 3e-3),
    "340m": (15e9, 1.5e-3),
    "780m": (30e9, 1.25e-3),
    "1300m": (100e9, 4e-4),
}


def config(memory: str = "yaad", size: str = "170m", equal: str = "true") -> TrainConfig:
    """The run of one model at one size."""
    if size not in RECIPES:
        raise ValueError(f"size must be one of {', '.join(RECIPES)}, got {size!r}")
    if equal not in ("true", "false"):
        raise ValueError(f"equal must be true or false, got {equal!r}")
    tokens, learning_rate = RECIPES[size]
    model = sizes.SIZES[size](memory)
    if equal == "true" and memory != "yaad":
        model = sizes.equal_parameters(model, sizes.parameters(sizes.SIZES[size]("yaad")))
    steps = round(tokens / (ROWS * WINDOW))
    return TrainConfig(
        model=model,
        data=DataConfig(source="data/fineweb-edu", validation=None, window=WINDOW, batch_size=ROWS),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, warmup_steps=steps // 100, weight_decay=0.1
        ),
        evaluation=EvaluationConfig(every=1000, batches=8),
        checkpoint=CheckpointConfig(every=1000, keep=3),
        log=LogConfig(every=10),
        steps=steps,
        directory=f"runs/{memory}-{size}",
    )
