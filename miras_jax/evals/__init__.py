"""Evaluators: perplexity, multiple choice, last words, and the tasks of lm-evaluation-harness."""

from miras_jax.evals.device import Model
from miras_jax.evals.errors import EvaluationError
from miras_jax.evals.perplexity import perplexity, rolling_windows
from miras_jax.evals.result import Result
from miras_jax.evals.scoring import Scores, score
from miras_jax.evals.suite import Evaluator, Subject, prepare, prepare_for_training
from miras_jax.evals.texts import Document, of_texts, read_documents

__all__ = [
    "Document",
    "EvaluationError",
    "Evaluator",
    "Model",
    "Result",
    "Scores",
    "Subject",
    "of_texts",
    "perplexity",
    "prepare",
    "prepare_for_training",
    "read_documents",
    "rolling_windows",
    "score",
]
