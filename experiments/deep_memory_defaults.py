"""Variants of the deep memories beside the zoo's defaults, at the size of the quick start.

    miras train experiments/deep_memory_defaults.py --model.memory NAME --directory runs/NAME

NAME is a model of the zoo or one of the variants below. About three minutes a run on two CPU
cores; docs/decisions/deep-memory-defaults.md holds what they reached.
"""

import dataclasses
import runpy
from pathlib import Path

from miras_jax import zoo
from miras_jax.memory import KL, Gate, GradientDescent, Huber, L2Decay, Lq, log_decay


def variant(name: str, of: str, **choices) -> None:
    """A model of the zoo with some of its memory's choices replaced."""
    row = zoo.row(of)
    zoo.register(
        dataclasses.replace(row, name=name, memory=dataclasses.replace(row.memory, **choices))
    )


plain = GradientDescent(step=zoo.get("yaad").algorithm.step)
zero = L2Decay(anchor="zero")
variant("yaad_switch", "yaad", bias=Huber(kind="switch"))
variant("yaad_plain", "yaad", retention=zero, algorithm=plain)
variant("moneta_dual", "moneta", retention=Lq(form="dual", decay=log_decay()), read="chunk")
double = GradientDescent(step=Gate(initial=0.1), normalized=True)
variant("moneta_double_step", "moneta", algorithm=double)
variant("memora_signed", "memora", retention=KL(signed=True, decay=log_decay()))

quickstart = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = dataclasses.replace(quickstart, directory="runs/deep_memory_defaults")
