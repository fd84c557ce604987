"""Text in, batches of tokens out: corpora, tokenizers, entropy floors and Grain pipelines."""

from miras_jax.data.entropy import order0_entropy, order1_entropy
from miras_jax.data.pipeline import train_iterator, validation_batches
from miras_jax.data.sources import Corpus, load_corpus
from miras_jax.data.tokenizer import ByteTokenizer, Tokenizer

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "Tokenizer",
    "load_corpus",
    "order0_entropy",
    "order1_entropy",
    "train_iterator",
    "validation_batches",
]
