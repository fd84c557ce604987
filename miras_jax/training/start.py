"""The state that a run begins with, where it begins with the weights of a checkpoint."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from miras_jax.data import TrainingText
from miras_jax.nn import ModelConfig
from miras_jax.nn.lora import A, B, merged
from miras_jax.nn.names import from_tensors, tensors
from miras_jax.training.config import TrainConfig
from miras_jax.training.errors import UserError
from miras_jax.training.source import Shape, Source, keys_of, open_source
from miras_jax.training.state import State, create_state, shardings_of

# What may differ from the checkpoint's model as long as the shapes of its parameters agree: how it
# is computed, and how far it sees.
CHANGEABLE = ("dtype", "remat", "chunk_size", "window", "segment")


@dataclasses.dataclass(frozen=True)
class Fit:
    """Names of parameters: `loaded`, `new` to the checkpoint, and `left` there."""

    loaded: list[str]
    new: list[str]
    left: list[str]


def begin(config: TrainConfig, abstract: State, corpus: TrainingText) -> tuple[State, str]:
    """Makes the first state out of `config.start.checkpoint`.

    Every array is read or born where `abstract` says, and no other parameter is made first.

    Returns:
      The state, and what was loaded, for people.

    Raises:
      UserError: there is no such checkpoint, it does not fit (names the first difference), or the
        text is of another vocabulary.
    """
    source, wanted = open_source(config.start.checkpoint), tensors(abstract.params)
    check_vocabulary(config, source, corpus)
    adapters = {name for name in wanted if name.endswith((A, B))}
    merge = source.lora != config.trainable.lora
    there = source.shapes
    if merge:  # the run's own LoRA, if it has one, begins on top of what was learned
        there = {name: shape for name, shape in there.items() if not name.endswith((A, B))}
    fit = compare({name: x.shape for name, x in wanted.items()}, there)
    if not config.start.partial:
        _check_fit(config, source, {n: x.shape for n, x in wanted.items()}, there, adapters)
    elif not fit.loaded:
        raise UserError(f"nothing of start.checkpoint {config.start.checkpoint!r} fits")

    said = describe(config, fit, adapters)
    if config.start.optimizer == "kept":
        _check_same_trained(config, source, abstract)
        return _at_the_beginning(source.read_state(abstract)), said
    values = _read(source, {name: wanted[name] for name in fit.loaded}, merge)
    params, rest = _fresh(config, abstract, fit.new)
    params = from_tensors(abstract.params, values | params)
    return dataclasses.replace(rest, params=params), said


def check_vocabulary(config: TrainConfig, source: Source, corpus: TrainingText) -> None:
    """Refuses text in tokens that mean something else to the model."""
    known = source.metadata.get("vocabulary")
    if known is not None and known != corpus.vocabulary and not config.start.partial:
        name = next(n for n, value in corpus.vocabulary.items() if known.get(n) != value)
        raise UserError(
            f"data.source {config.data.source!r} is not of the vocabulary of"
            f" {config.start.checkpoint}: its {name} is {corpus.vocabulary[name]!r}, there it is"
            f" {known.get(name)!r}; tokenize it with the tokenizer of the checkpoint"
        )


def compare(wanted: dict[str, Shape], there: dict[str, Shape]) -> Fit:
    """Sorts the parameters by whether the checkpoint has them in the same shape."""
    loaded = [name for name, shape in wanted.items() if there.get(name) == shape]
    return Fit(
        loaded,
        new=[name for name in wanted if name not in {*loaded}],
        left=[name for name in there if name not in {*loaded}],
    )


def _check_fit(
    config: TrainConfig,
    source: Source,
    wanted: dict[str, Shape],
    there: dict[str, Shape],
    adapters: set[str],
) -> None:
    """Refuses the first parameter that differs, and what else makes another model."""
    known = dataclasses.asdict(ModelConfig()) | source.model
    asked = json.loads(json.dumps(dataclasses.asdict(config.model)))
    differing = [name for name in asked if known[name] != asked[name]]
    fixed = [name for name in differing if name not in CHANGEABLE]
    found = _first_difference(wanted, there, adapters)
    if not found and not fixed:
        return
    name = next(iter(fixed or differing), None)
    of_model = [f"model.{name} is {asked[name]!r} here and {known[name]!r} there"] if name else []
    raise UserError(
        f"start.checkpoint {config.start.checkpoint!r} does not fit: {', '.join(found + of_model)};"
        f" a run may change {', '.join(f'model.{n}' for n in CHANGEABLE)} where no shape changes,"
        " and takes what fits with --start.partial"
    )


def _first_difference(
    wanted: dict[str, Shape], there: dict[str, Shape], adapters: set[str]
) -> list[str]:
    """Says which parameter is first not the same here and there; LoRA may always be new."""
    for name, shape in wanted.items():
        if name not in adapters and there.get(name) != shape:
            found = f"{there[name]} there" if name in there else "not there"
            return [f"parameter {name} is {shape} here and {found}"]
    for name, shape in there.items():
        if name not in wanted:
            return [f"parameter {name} is {shape} there and not of the model here"]
    return []


def _read(
    source: Source, wanted: dict[str, jax.ShapeDtypeStruct], merge: bool
) -> dict[str, jax.Array]:
    """The parameters by name; with `merge` the checkpoint's LoRA is added to its kernels."""
    stems = [n.removesuffix(A) for n in source.shapes if n.endswith(A)] if merge else []
    stems = [stem for stem in stems if f"{stem}.kernel" in wanted]
    if not stems:
        return source.read(wanted)
    shapes, asked = source.shapes, dict(wanted)
    for stem in stems:
        kernel = wanted[f"{stem}.kernel"]
        whole = NamedSharding(kernel.sharding.mesh, PartitionSpec())
        for name in (stem + A, stem + B):
            asked[name] = jax.ShapeDtypeStruct(shapes[name], kernel.dtype, sharding=whole)
    places = {name: x.sharding for name, x in wanted.items()}
    add = jax.jit(lambda values: merged(values, source.lora.scale), out_shardings=places)
    return add(source.read(asked))


def _fresh(
    config: TrainConfig, abstract: State, names: list[str]
) -> tuple[dict[str, jax.Array], State]:
    """The parameters `names` of a run without a checkpoint, and its state without any; the other
    parameters are never made."""

    def pick(state: State) -> tuple[dict[str, Any], State]:
        params = tensors(state.params)
        return {name: params[name] for name in names}, dataclasses.replace(state, params=None)

    places = pick(shardings_of(abstract))
    create = jax.jit(lambda key: pick(create_state(config, key)), out_shardings=places)
    return create(jax.random.key(config.seed))


def _check_same_trained(config: TrainConfig, source: Source, abstract: State) -> None:
    """Refuses to keep the moments of other parameters than are trained here."""
    there, where = source.state, config.start.checkpoint
    if not there:
        raise UserError(f"start.optimizer kept: {where} is an exported folder and has no moments")
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    here = {keys_of(path): x.shape for path, x in leaves}
    for keys in [*here, *there]:
        if here.get(keys) != there.get(keys):
            which = "not here" if keys not in here else "not there"
            which = "of another shape" if keys in here.keys() & there.keys() else which
            raise UserError(
                f"start.optimizer kept needs the trainable parameters of {where}, but"
                f" {'.'.join(keys).removesuffix('.value')} is {which}; ask for the same or for a"
                " fresh optimizer"
            )
    if source.lora != config.trainable.lora:
        raise UserError(
            f"start.optimizer kept needs the LoRA of {where}, {source.lora}, but it is"
            f" {config.trainable.lora}; ask for the same or for a fresh optimizer"
        )


def _at_the_beginning(state: State) -> State:
    """The state at step 0 of this run's schedule, with the moments that it has."""

    def of_schedule(path: Any, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"

    # Two arrays, not one twice: both are donated.
    step, count = (jax.device_put(np.zeros((), np.int32), state.step.sharding) for _ in range(2))
    return dataclasses.replace(
        state, step=step, opt=optax.tree.set(state.opt, of_schedule, count=count)
    )


def describe(config: TrainConfig, fit: Fit, adapters: set[str]) -> str:
    """Says what was loaded, what is new and what was left."""

    def short(names: list[str]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    other = [name for name in fit.new if name not in adapters]
    said = f"begins with {len(fit.loaded)} parameters of {config.start.checkpoint}"
    for names, what in ((other, "new"), (fit.left, "left")):
        if names:
            said += f"; {what} {len(names)}: {short(names)}"
    if found := adapters.intersection(fit.new):
        said += f"; new {len(found)} matrices of LoRA"
    return said
