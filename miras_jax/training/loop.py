"""A training run from its configuration to its last checkpoint, to be read downward."""

import contextlib
import pathlib

import jax
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.data import keep_vocabulary, train_iterator
from miras_jax.nn.partition import BATCH
from miras_jax.training import agreement, before_after, checkpoint
from miras_jax.training.batches import local_rows, put
from miras_jax.training.compiled import keep_compiled
from miras_jax.training.config import TrainConfig, validate
from miras_jax.training.corpus import read_corpus
from miras_jax.training.diagnostics import make_diagnosis
from miras_jax.training.errors import DivergedError, InputError, StoppedError
from miras_jax.training.evaluation import make_evaluation
from miras_jax.training.ledger import Ledger
from miras_jax.training.metrics import Monitor, Record
from miras_jax.training.profiling import ProfileWindow
from miras_jax.training.program import jit_step
from miras_jax.training.reading import Reader
from miras_jax.training.signals import stop_signals
from miras_jax.training.start import begin
from miras_jax.training.state import abstract_state, init_state, make_mesh, shardings_of
from miras_jax.training.summary import close, diagnoses, opening
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
        # Moved to its place before the reader takes it over.
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
