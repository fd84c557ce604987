"""A training run from its configuration to its last checkpoint, to be read downward."""

import contextlib
import functools
import math
import pathlib
import textwrap
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from miras_jax.data import (
    DataError,
    TrainingText,
    keep_vocabulary,
    load_text,
    order0_entropy,
    order1_entropy,
    saved_vocabulary,
    train_iterator,
    validation_batches,
)
from miras_jax.memory import Memory
from miras_jax.nn import LanguageModel, generate
from miras_jax.nn.partition import BATCH
from miras_jax.training import checkpoint
from miras_jax.training.compiled import keep_compiled
from miras_jax.training.config import DataConfig, TrainConfig, validate
from miras_jax.training.diagnostics import make_diagnosis
from miras_jax.training.errors import DivergedError, StoppedError, UserError
from miras_jax.training.metrics import Monitor, Record, read_records
from miras_jax.training.optimizer import learning_rate, make_optimizer
from miras_jax.training.signals import stop_signals
from miras_jax.training.state import State, abstract_state, init_state, make_mesh, shardings_of
from miras_jax.training.step import evaluation_step, train_step
from miras_jax.training.task_runs import (
    TaskText,
    make_task_evaluation,
    names_task,
    read_task,
)
from miras_jax.training.trackers import check_trackers, open_trackers


def train(
    config: TrainConfig,
    *,
    command: str = "miras train EXPERIMENT.py",
    generate_command: str = "miras generate RUN",
) -> Record:
    """Trains until `config.steps`, from the latest checkpoint in `config.directory`, if any.

    The first Ctrl-C or SIGTERM lets the running step end, saves and raises; a second one ends the
    process as soon as Python runs again, which may be after a compilation.

    Args:
      config: the run; see each field.
      command: what the user typed, for the line that says how to go on.
      generate_command: the same for the line that says how to sample.

    Returns:
      The record of the last evaluation: `step`, `eval/loss` (nats per token),
      `eval/bits_per_byte`, and of bytes the entropies beside it; where held-out texts have names,
      the same of each as `eval/NAME/...`. Of a task `eval/loss` and `eval/accuracy`.

    Raises:
      UserError: the request cannot be carried out; nothing was changed.
      DivergedError: the loss or a norm is not finite; nothing of that step was saved.
      StoppedError: a signal ended the run; the state was saved.
    """
    validate(config)
    check_trackers(config.log.trackers)
    mesh = make_mesh(config.mesh)
    corpus = read_corpus(config)
    directory, data = pathlib.Path(config.directory), config.data

    optimizer, schedule = make_optimizer(config), learning_rate(config)
    abstract = abstract_state(config, mesh)
    shardings = shardings_of(abstract)
    rows = NamedSharding(mesh, PartitionSpec(BATCH))

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(stop_signals())
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(checkpoint.open_checkpoints(config))
        checkpoint.check_same_run(checkpoints, config, corpus)
        stack.enter_context(keep_compiled(directory))
        start = checkpoints.latest.step if checkpoints.latest else 0
        if start >= config.steps:
            print(f"nothing to do: {directory} has {start} of {config.steps} steps")
            return close(config, corpus, command, generate_command, start)

        batches = train_iterator(
            corpus.parts,
            window=data.window,
            batch_size=data.batch_size,
            seed=data.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        # The iterator is moved before it is read: grain iterators that have begun do not go back.
        if start:
            state = checkpoint.restore(checkpoints, abstract, batches)
        else:
            state = init_state(config, abstract)
        advance = jax.jit(
            functools.partial(
                train_step,
                optimizer=optimizer,
                schedule=schedule,
                accumulation=config.accumulation,
                shardings=shardings.params,
            ),
            donate_argnums=0,
            out_shardings=(shardings, None),
        )
        # The backward pass takes twice the products of the forward pass.
        training_flops = 3 * config.model.flops_per_token(data.window)
        evaluate = make_evaluation(config, corpus, mesh)
        diagnose = make_diagnosis(config, mesh) if diagnoses(config) else None
        metadata = checkpoint.describe(config, corpus)
        if jax.process_index() == 0:
            keep_vocabulary(corpus, config.directory)
        monitor = stack.enter_context(
            Monitor(
                directory / "metrics.jsonl",
                start=start,
                steps=config.steps,
                every=config.log.every,
                tokens=data.batch_size * data.window,
                flops_per_token=training_flops,
                devices=mesh.size,
                trackers=open_trackers(config, start) if jax.process_index() == 0 else (),
            )
        )
        monitor.say(opening(config, corpus, mesh, abstract, start))

        try:
            for step in range(start + 1, config.steps + 1):
                with monitor.reading():
                    batch = next(batches)
                arrays = {
                    name: jax.make_array_from_process_local_data(rows, batch[name])
                    for name in ("tokens", "targets", "mask", "segment_ids")
                    if name in batch
                }
                state, metrics = advance(state, arrays)
                monitor.push(step, metrics, batch["index"])

                last, stopping = step == config.steps, signals.received is not None
                if last or step % config.evaluation.every == 0:
                    monitor.drain()
                    monitor.evaluation(step, evaluate(state.params))
                    monitor.pause()
                if diagnose and step % config.log.diagnostics_every == 0:
                    monitor.drain()
                    read = arrays["tokens"], arrays.get("segment_ids")
                    monitor.diagnosis(step, diagnose(state.params, *read))
                    monitor.pause()
                if last or stopping or checkpoints.should_save(step):
                    monitor.drain()
                    checkpoint.save(checkpoints, state, batches, metadata, step)
                    monitor.pause()
                if stopping and not last:
                    checkpoints.wait()
                    raise StoppedError(
                        f"stopped and saved at step {step} of {config.steps}; to go on: {command}",
                        signals.received,
                    )
        except DivergedError as error:
            checkpoints.wait()
            good = checkpoints.latest.path if checkpoints.latest else "none yet"
            raise DivergedError(f"{error}; last good checkpoint: {good}") from None

    return close(config, corpus, command, generate_command, config.steps, state.params)


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
        if tokens.size <= data.window:
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
        floors = {name: entropies(text[:read]) for name, text in corpus.validation.items()}
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    sums = jax.jit(evaluation_step)

    def evaluate_one(params: LanguageModel, name: str) -> tuple[float, float, float]:
        batches = validation_batches(
            corpus.validation[name], window=window, batch_size=batch_size, limit=limit
        )
        totals = jax.device_get([sums(params, jax.device_put(batch, rows)) for batch in batches])
        nats, tokens = (math.fsum(total[key] for total in totals) for key in ("nats", "tokens"))
        return nats, tokens, corpus.text_bytes(name, int(tokens))

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


def diagnoses(config: TrainConfig) -> bool:
    """Whether the run writes what inner loops do: attention alone has none."""
    return config.log.diagnostics_every > 0 and isinstance(config.model.build_memory(), Memory)


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
        f"{nothing_to_diagnose}"
    )


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
    ids = list(
        generate(model, prompt, steps=config.evaluation.sample_tokens, key=key, temperature=0.8)
    )
    return tokenizer.decode(ids)
