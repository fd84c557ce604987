"""A training run from its configuration to its last checkpoint, to be read downward."""

import contextlib
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
    count_rows,
    is_completions,
    keep_vocabulary,
    load_text,
    order0_entropy,
    order1_entropy,
    saved_vocabulary,
    too_long,
    train_iterator,
    validation_batches,
)
from miras_jax.memory import Memory
from miras_jax.nn import LanguageModel, generate
from miras_jax.nn.partition import BATCH
from miras_jax.training import agreement, before_after, checkpoint
from miras_jax.training.batches import local_rows, put
from miras_jax.training.compiled import keep_compiled
from miras_jax.training.config import DataConfig, TrainConfig, validate
from miras_jax.training.diagnostics import make_diagnosis
from miras_jax.training.errors import DivergedError, InputError, StoppedError, UserError
from miras_jax.training.ledger import Ledger
from miras_jax.training.metrics import Monitor, Record, read_records
from miras_jax.training.profiling import ProfileWindow
from miras_jax.training.program import jit_step
from miras_jax.training.reading import Reader
from miras_jax.training.signals import stop_signals
from miras_jax.training.start import begin
from miras_jax.training.state import State, abstract_state, init_state, make_mesh, shardings_of
from miras_jax.training.step import evaluation_step
from miras_jax.training.task_runs import (
    TaskText,
    make_task_evaluation,
    names_task,
    read_task,
)
from miras_jax.training.tasks import PrepareTasks, make_tasks, tasks_are_due
from miras_jax.training.trackers import check_trackers, open_trackers
from miras_jax.training.trainable import check_patterns
from miras_jax.training.watch import end_together


def train(
    config: TrainConfig,
    *,
    command: str = "miras train EXPERIMENT.py",
    generate_command: str = "miras generate RUN",
    prepare_tasks: PrepareTasks | None = None,
) -> Record:
    """Trains until `config.steps`, from the latest checkpoint in `config.directory`, if any.

    The first Ctrl-C or SIGTERM lets the running step end, saves and raises; a second one ends the
    process as soon as Python runs again, which may be after a compilation.

    Args:
      config: the run; see each field.
      command: what the user typed, for the line that says how to go on.
      generate_command: the same for the line that says how to sample.
      prepare_tasks: makes of `config.evaluation.tasks` a function from parameters to figures, as
        `miras train` does with those of `miras_jax.evals`; training itself knows no evaluators.

    Returns:
      The record of the last evaluation: `step`, `eval/loss` (nats per token),
      `eval/bits_per_byte`, and of bytes the entropies beside it; where held-out texts have names,
      the same of each as `eval/NAME/...`. Of a task `eval/loss` and `eval/accuracy`.

    Raises:
      UserError: the request cannot be carried out; nothing was changed.
      DivergedError: the loss or a norm is not finite; nothing of that step was saved.
      StoppedError: a signal ended the run; the state was saved.
      InputError: the next batch did not come, or could not be read; the state was saved.
      SaveError: a checkpoint or a record could not be written.
    """
    agreement.same("their configuration", checkpoint.settings(config), "start all with the same")
    with agreement.together():
        validate(config)
        if agreement.index() == 0:
            check_trackers(config.log.trackers)
    with agreement.together():
        mesh = make_mesh(config.mesh)
        corpus = read_corpus(config)
        run_tasks = make_tasks(config, corpus, prepare_tasks)
    found = {"sha256": corpus.sha256, "version": corpus.version}
    agreement.same(f"the text of {corpus.name!r}", found, "give all of them the same files")
    directory, data = pathlib.Path(config.directory), config.data

    abstract = abstract_state(config, mesh)
    check_patterns(abstract.params, config.trainable)
    shardings = shardings_of(abstract)
    rows = NamedSharding(mesh, PartitionSpec(BATCH))

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(stop_signals())
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(checkpoint.open_checkpoints(config))
        # Entered when nothing is left that all processes must close together.
        stack.enter_context(end_together())
        with agreement.together():
            checkpoint.check_same_run(checkpoints, config, corpus)
        stack.enter_context(keep_compiled(directory))
        start = checkpoints.latest.step if checkpoints.latest else 0
        agreement.same("the run", {"its last checkpoint": start}, "wait until all see the same")
        if start >= config.steps:
            if jax.process_index() == 0:
                print(f"nothing to do: {directory} has {start} of {config.steps} steps")
            return close(config, corpus, command, generate_command, start)

        mine = local_rows(rows, data.batch_size)
        batches = train_iterator(
            corpus.parts,
            window=data.window,
            batch_size=data.batch_size,
            seed=data.seed,
            rows=mine,
        )
        # The iterator is moved before it is read: grain iterators that have begun do not go back.
        begun_with = ""
        if start:
            state = checkpoint.restore(checkpoints, abstract, batches)
        elif config.start.checkpoint is not None:
            state, begun_with = begin(config, abstract, corpus)
        else:
            state = init_state(config, abstract)
        reader = stack.enter_context(
            Reader(batches, data.timeout, data.source, lambda: signals.received is not None)
        )
        ledger = Ledger.restored(checkpoint.saved_metadata(checkpoints).get("ledger", {}))
        advance = jit_step(config, shardings)
        # The backward pass takes twice the products of the forward pass.
        training_flops = 3 * config.model.flops_per_token(data.window)
        evaluate = make_evaluation(config, corpus, mesh)
        if config.start.checkpoint is not None:
            old = before_after.old_text(config)
            if not isinstance(old, str):
                evaluate_old = make_evaluation(config, old, mesh)
                evaluate = before_after.with_old_text(evaluate, evaluate_old)
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
                ledger=ledger,
                max_skipped=config.max_skipped if config.on_nonfinite == "skip" else 0,
            )
        )
        profile = stack.enter_context(
            ProfileWindow(
                directory / "profile", config.log.profile_at, config.log.profile_steps, monitor.say
            )
        )
        monitor.say(opening(config, corpus, mesh, abstract, start))
        votes = agreement.Votes(mesh)
        if begun_with:
            monitor.say(begun_with)
            monitor.evaluation(0, evaluate(state.params))

        def save(step: int) -> None:
            monitor.drain()
            kept = {**metadata, "ledger": ledger.saved()}
            checkpoint.save(checkpoints, state, reader, kept, step)
            monitor.pause()

        try:
            for step in range(start + 1, config.steps + 1):
                with monitor.reading():
                    batch = reader.read(step)
                inputs = {name: x for name, x in batch.items() if name != "index"}
                arrays = put(inputs, rows, data.batch_size, mine)
                profile.before(step, state)
                state, metrics = advance(state, arrays)
                monitor.push(step, metrics, batch["index"])
                if profile.after(step, state):
                    monitor.pause()

                last, stopping = step == config.steps, votes.cast(signals.received)
                if last or step % config.evaluation.every == 0:
                    monitor.drain()
                    figures = evaluate(state.params)
                    if run_tasks and (last or tasks_are_due(config, step)):
                        figures |= run_tasks(state.params)
                    monitor.evaluation(step, figures)
                    monitor.pause()
                if diagnose and step % config.log.diagnostics_every == 0:
                    monitor.drain()
                    texts = arrays["tokens"], arrays.get("segment_ids")
                    monitor.diagnosis(step, diagnose(state.params, *texts))
                    monitor.pause()
                if last or stopping or checkpoints.should_save(step):
                    save(step)
                if stopping and not last:
                    checkpoint.wait(checkpoints)
                    raise StoppedError(
                        f"stopped and saved at step {step} of {config.steps}; to go on: {command}",
                        stopping,
                    )
            checkpoint.wait(checkpoints)
        except DivergedError as error:
            checkpoint.wait(checkpoints)
            good = checkpoints.latest.path if checkpoints.latest else "none yet"
            raise DivergedError(f"{error}; last good checkpoint: {good}") from None
        except InputError as error:
            # The state is that of the step before; of several processes none can save alone.
            before, saved = step - 1, checkpoints.latest.step if checkpoints.latest else 0
            if saved < before and jax.process_count() == 1:
                save(saved := before)
            checkpoint.wait(checkpoints)
            if signals.received is not None:
                raise StoppedError(
                    f"stopped and saved at step {saved} of {config.steps}; to go on: {command}",
                    signals.received,
                    stuck=error.stuck,
                ) from None
            raise InputError(
                f"{error}; saved at step {saved} of {config.steps}; to go on: {command}",
                stuck=error.stuck,
            ) from error.__cause__

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
    sums = jax.jit(evaluation_step)

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
        f"{nothing_to_diagnose}{too_long(corpus, config.data.window)}"
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
    ids = list(
        generate(model, prompt, steps=config.evaluation.sample_tokens, key=key, temperature=0.8)
    )
    return tokenizer.decode(ids)
