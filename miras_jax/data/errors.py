"""What is wrong with a request for data, in one line that says what to change."""

import importlib
from types import ModuleType


class DataError(ValueError):
    """The data cannot be read or written as asked; the command line ends with `exit_code`."""

    exit_code = 2


def need(module: str, extra: str = "data") -> ModuleType:
    """Imports a library of one of the package's extras.

    Raises:
      DataError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # a library that the library itself misses
        raise DataError(
            f"this needs the library {module.partition('.')[0]}:"
            f" pip install 'miras_jax[{extra}]', or pip install -e '.[{extra}]' in a checkout"
        ) from None
