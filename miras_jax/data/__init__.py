"""Text in, batches of tokens out: corpora, tokenizers, token sets, entropies, Grain pipelines."""

from miras_jax.data.completions import ExampleRows
from miras_jax.data.entropy import order0_entropy, order1_entropy
from miras_jax.data.errors import DataError
from miras_jax.data.pipeline import count_rows, is_completions, train_iterator, validation_batches
from miras_jax.data.shards import TokenSet
from miras_jax.data.sources import Corpus, load_corpus
from miras_jax.data.storage import Folder
from miras_jax.data.tokenization import tokenize
from miras_jax.data.tokenizer import ByteTokenizer, Tokenizer
from miras_jax.data.training_text import TrainingText, keep_vocabulary, load_text, too_long
from miras_jax.data.vocabulary import Vocabulary, load_vocabulary, saved_vocabulary

__all__ = [
    "ByteTokenizer",
    "Corpus",
    "DataError",
    "Folder",
    "ExampleRows",
    "TokenSet",
    "Tokenizer",
    "TrainingText",
    "Vocabulary",
    "count_rows",
    "is_completions",
    "keep_vocabulary",
    "load_corpus",
    "load_text",
    "load_vocabulary",
    "order0_entropy",
    "order1_entropy",
    "saved_vocabulary",
    "tokenize",
    "too_long",
    "train_iterator",
    "validation_batches",
]
