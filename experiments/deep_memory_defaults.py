"""Variants of the deep memories beside the zoo's defaults, on text and in recall.

    miras train experiments/deep_memory_defaults.py --model.memory NAME --directory runs/NAME
    miras train experiments/deep_memory_defaults.py:on=recall --model.memory NAME

NAME is a model of the zoo or one of the variants below. The text is the quick start's, at its size:
about three minutes a run on two CPU cores. Recall is of four pairs that stand in 16 tokens (MQAR),
by two blocks of one memory of width 64 with chunks of 8 tokens: about two minutes.
docs/decisions/deep-memory-defaults.md holds what they reached.
"""

import dataclasses
import runpy
from pathlib import Path

from miras_jax import zoo
from miras_jax.memory import KL, Gate, GradientDescent, Huber, L2Decay, Lq, log_decay
from miras_jax.training import EvaluationConfig, LogConfig, TrainConfig
from miras_jax.zoo import LayerOptions


def variant(name: str, of: str, layer: LayerOptions | None = None, **choices) -> None:
    """A model of the zoo with some of its memory's choices, or its layer, replaced."""
    row = zoo.row(of)
    memory = dataclasses.replace(row.memory, **choices)
    zoo.register(dataclasses.replace(row, name=name, memory=memory, layer=layer or row.layer))


def step(initial: float) -> GradientDescent:
    """Normalised gradient descent with this step at first."""
    return GradientDescent(step=Gate(initial=initial), normalized=True)


# Values as the projection gives them, with the steps that suit these: the defaults of 2026-11-20.
free, positive = LayerOptions(), KL(decay=log_decay())
variant("moneta_free", "moneta", free, algorithm=step(0.05))
variant("yaad_free", "yaad", free, algorithm=step(0.1), bias=Huber())
variant("memora_free", "memora", free, algorithm=step(0.1), retention=positive, read="chunk")
# One thing of these changed.
plain = GradientDescent(step=Gate(initial=0.1))
variant("yaad_switch", "yaad_free", bias=Huber(kind="switch"))
variant("yaad_plain", "yaad_free", retention=L2Decay(anchor="zero"), algorithm=plain)
variant("moneta_dual", "moneta_free", retention=Lq(form="dual", decay=log_decay()), read="chunk")
variant("moneta_double_step", "moneta_free", algorithm=step(0.1))
variant("memora_signed", "memora_free", retention=KL(signed=True, decay=log_decay()))
# One thing of today's defaults changed.
variant("yaad_small", "yaad", algorithm=step(0.1))
variant("memora_small", "memora", algorithm=step(0.2))
variant("memora_large", "memora", algorithm=step(0.5))
variant("memora_positive", "memora", retention=positive)
for size in ("0.1", "0.001"):
    variant(f"yaad_decay_{size}", "yaad", retention=L2Decay(log_decay(initial=-float(size))))

here = Path(__file__)
quickstart = runpy.run_path(str(here.with_name("quickstart.py")))["config"]
recall = runpy.run_path(str(here.with_name("new_model.py")))["config"]()


def config(on: str = "text") -> TrainConfig:
    """The quick start's text, or the recall of docs/new_model.md."""
    directory = "runs/deep_memory_defaults"
    if on == "text":
        return dataclasses.replace(quickstart, directory=directory)
    changes = {
        "model": dataclasses.replace(recall.model, memory="yaad", chunk_size=8),
        "data": dataclasses.replace(recall.data, batch_size=64),
        "evaluation": EvaluationConfig(every=50, batches=8),
        "log": LogConfig(every=10),
    }
    return dataclasses.replace(recall, directory=directory, **changes)
