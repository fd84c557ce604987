"""Compiled programs are kept while tests run: the runs of these compile the same few."""

import jax
import pytest

from miras_jax.training import train
from tests.training.forks import Forks
from tests.training.toy import toy


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(names[1], 0.1)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs `miras` in processes that may be killed."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def finished_toy(tmp_path_factory):
    """The toy, trained to its end in one go: its folder is only read."""
    config = toy(tmp_path_factory.mktemp("finished"))
    train(config)
    return config
