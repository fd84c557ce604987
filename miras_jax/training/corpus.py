"""What a run reads: its text, or its task, opened and checked against the model."""

from miras_jax.data import TrainingText, count_rows, is_completions, load_text
from miras_jax.training.config import DataConfig, TrainConfig
from miras_jax.training.errors import UserError
from miras_jax.training.task_runs import names_task, read_task


def read_corpus(config: TrainConfig) -> TrainingText:
    """Opens the text and checks that every part fills a window and fits the model.

    Raises:
      UserError: if it cannot be read, is too short or has ids that the model does not know.
    """
    data = config.data
    if names_task(data.source):
        return read_task(config)
    if config.model.readout != "token":
        raise UserError(f"model.readout {config.model.readout!r} is for tasks, not for text")
    try:
        corpus = load_text(data.source, data.validation)
    except (ValueError, OSError) as error:
        name = _unreadable(data)
        raise UserError(f"data.{name} {getattr(data, name)!r}: {error}") from error
    texts = [("training", data.source, tokens) for tokens, _ in corpus.parts]
    for name, tokens in corpus.validation.items():
        texts.append((f"held-out {name}".rstrip(), data.validation or data.source, tokens))
    for name, source, tokens in texts:
        if not count_rows(tokens, data.window):
            if is_completions(tokens):
                raise UserError(
                    f"no prompt of the {name} text of {source!r} is shorter than data.window"
                    f" {data.window}: there is nothing to learn; ask for a longer window"
                )
            raise UserError(
                f"the {name} text of {source!r} has {tokens.size} tokens:"
                f" too few for data.window {data.window} and the token after it"
            )
    if config.model.vocab_size < (needed := corpus.vocabulary["vocab_size"]):
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is less than the tokenizer's {needed}"
        )
    return corpus


def _unreadable(data: DataConfig) -> str:
    """Names the field at fault where source and validation together cannot be loaded."""
    try:
        load_text(data.source)
    except (ValueError, OSError):
        return "source"
    return "validation"
