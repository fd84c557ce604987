"""What a run says when it begins and when it has ended."""

import pathlib
import textwrap

import jax
import numpy as np
from jax.sharding import Mesh

from miras_jax.data import DataError, TrainingText, saved_vocabulary, too_long
from miras_jax.memory import Memory
from miras_jax.nn import LanguageModel, generate
from miras_jax.training import before_after, checkpoint
from miras_jax.training.config import TrainConfig
from miras_jax.training.metrics import Record, read_records
from miras_jax.training.state import State


def opening(
    config: TrainConfig, corpus: TrainingText, mesh: Mesh, abstract: State, start: int
) -> str:
    """Returns the line that says what is trained, on what and from where, and another where no
    diagnosis can be made."""
    parameters = sum(x.size for x in jax.tree.leaves(abstract.params))
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    nothing_to_diagnose = ""
    if config.log.diagnostics_every and not diagnoses(config):
        nothing_to_diagnose = (
            f"\n{config.model.memory} keeps pairs and has no inner loop:"
            " log.diagnostics_every writes nothing"
        )
    return (
        f"{config.model.memory}, {parameters:,} parameters; {corpus.description};"
        f" {mesh.size} of {jax.device_count()} {jax.default_backend()} device(s), {shape};"
        f" {'continuing after step ' + str(start) if start else 'starting'} in {config.directory}"
        f"{nothing_to_diagnose}{too_long(corpus, config.data.window)}"
    )


def diagnoses(config: TrainConfig) -> bool:
    """Whether the run writes what inner loops do: attention alone has none."""
    return config.log.diagnostics_every > 0 and isinstance(config.model.build_memory(), Memory)


def close(
    config: TrainConfig,
    corpus: TrainingText,
    command: str,
    generate_command: str,
    step: int,
    params: LanguageModel | None = None,
) -> Record:
    """Prints how good the model is, what can be done next, and a sample if `params` are given."""
    if jax.process_index() > 0:
        return {}
    directory = pathlib.Path(config.directory)
    records = [r for r in read_records(directory / "metrics.jsonl") if "eval/loss" in r]
    final = records[-1] if records else {"step": step}
    if "eval/accuracy" in final:
        print(f"test examples after step {final['step']}: accuracy {final['eval/accuracy']:.3f}")
    elif records:
        floors = ""
        if "eval/order1_bits_per_byte" in final:
            floors = (
                f" (order-1 entropy {final['eval/order1_bits_per_byte']:.3f},"
                f" order-0 {final['eval/order0_bits_per_byte']:.3f})"
            )
        print(
            f"held-out text after step {final['step']}: {final['eval/bits_per_byte']:.3f}"
            f" bits per byte{floors}"
        )
    for line in before_after.lines(config, corpus, records):
        print(line)
    print(f"checkpoint: {checkpoint.find_checkpoint(directory)}")
    print(f"train on:   {command} --steps {2 * step}")
    if corpus.vocabulary["kind"] == "task":
        return final
    print(f'generate:   {generate_command} --prompt "The "', flush=True)
    # The sample is drawn on one device, which may have no room for weights that several hold.
    fits = config.mesh.size == 1 or (jax.default_backend() == "cpu" and jax.process_count() == 1)
    if params is not None and config.evaluation.sample_tokens and fits:
        try:
            print("sample:", textwrap.indent(sample(config, corpus, params), "  "), sep="\n")
        except DataError as error:  # the vocabulary's library is not installed
            print(f"no sample: {error}")
    return final


def sample(config: TrainConfig, corpus: TrainingText, params: LanguageModel) -> str:
    """Writes a text of `config.evaluation.sample_tokens` tokens, on one device: what follows a
    newline, or the separator where documents begin with it."""
    tokenizer = saved_vocabulary(corpus.vocabulary, corpus.vocabulary_folder).tokenizer
    model = jax.device_put(params, jax.devices()[0])
    first = [tokenizer.separator] if corpus.packed else tokenizer.encode("\n")
    prompt = np.asarray(first, np.int32)
    key = jax.random.key(config.seed)
    options = {"temperature": 0.8, "vocab_size": tokenizer.vocab_size}
    steps = config.evaluation.sample_tokens
    return tokenizer.decode(list(generate(model, prompt, steps=steps, key=key, **options)))
