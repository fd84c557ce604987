"""How good a model is on the held-out texts of its run."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.data import (
    TrainingText,
    is_completions,
    order0_entropy,
    order1_entropy,
    validation_batches,
)
from miras_jax.nn import LanguageModel
from miras_jax.nn.partition import BATCH
from miras_jax.training.batches import local_rows, put
from miras_jax.training.config import TrainConfig
from miras_jax.training.step import evaluation_step
from miras_jax.training.task_runs import TaskText, make_task_evaluation


def make_evaluation(
    config: TrainConfig, corpus: TrainingText, mesh: Mesh
) -> Callable[[LanguageModel], dict[str, float]]:
    """Returns a function from parameters to the figures of the held-out texts.

    Bits per byte are all nats, those of separators too, over ln 2 and the number of bytes of text.
    Where tokens are bytes, two entropies of the very text that is read stand beside them, which
    need no model. Texts with names have figures of their own, and together the ones without.
    """
    if isinstance(corpus, TaskText):
        return make_task_evaluation(config, corpus.task, mesh)
    window, batch_size = config.data.window, config.data.batch_size
    limit = config.evaluation.batches
    read = limit and limit * batch_size * window + 1
    floors = {}
    if corpus.vocabulary["kind"] == "bytes":
        texts = {n: text for n, text in corpus.validation.items() if not is_completions(text)}
        floors = {name: entropies(text[:read]) for name, text in texts.items()}
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    sums = jax.jit(functools.partial(evaluation_step, accumulation=config.accumulation))

    def evaluate_one(params: LanguageModel, name: str) -> tuple[float, float, float]:
        batches = validation_batches(
            corpus.validation[name], window=window, batch_size=batch_size, limit=limit
        )
        here = local_rows(rows, batch_size)
        pieces = ({name: x[here] for name, x in batch.items()} for batch in batches)
        totals = jax.device_get([sums(params, put(x, rows, batch_size, here)) for x in pieces])
        nats, tokens = (math.fsum(total[key] for total in totals) for key in ("nats", "tokens"))
        return nats, tokens, corpus.text_bytes(name, int(tokens), window)

    def evaluate(params: LanguageModel) -> dict[str, float]:
        figures: dict[str, float] = {}
        totals = {name: evaluate_one(params, name) for name in corpus.validation}
        if "" not in totals:
            totals[""] = tuple(map(math.fsum, zip(*totals.values(), strict=True)))
        for name, (nats, tokens, size) in totals.items():
            found = {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}
            prefix = f"eval/{name}/" if name else "eval/"
            found |= floors.get(name, {})
            figures |= {prefix + figure: value for figure, value in found.items()}
        return figures

    return evaluate


def entropies(tokens: np.ndarray) -> dict[str, float]:
    """Order-1 and order-0 entropy of the bytes among `tokens`, ids of `ByteTokenizer`."""
    data = tokens[tokens < 256].astype(np.uint8).tobytes()
    text = data.decode("utf-8", errors="ignore")  # the end may be within a character
    return {
        "order1_bits_per_byte": order1_entropy(text),
        "order0_bits_per_byte": order0_entropy(text),
    }
