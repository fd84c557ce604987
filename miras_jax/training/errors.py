"""The ways in which a run ends early, each with the exit code that the command line returns."""

import signal


class UserError(ValueError):
    """The request cannot be carried out; the message is one line that says what to change."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss, the gradient or the update is no longer finite; nothing of that step was saved."""

    exit_code = 1
    agreed = True  # all processes of a job raise it at the same step


class SaveError(RuntimeError):
    """Something of the run could not be written: a full disk, a quota, a folder gone."""

    exit_code = 3


class InputError(RuntimeError):
    """The data did not come, or could not be read, while training; its cause is chained.

    Attributes:
      stuck: a thread still reads, perhaps for ever. Python waits for such threads before it ends;
        `miras` does not.
    """

    exit_code = 4

    def __init__(self, message: str, stuck: bool = False):
        super().__init__(message)
        self.stuck = stuck


class StoppedError(RuntimeError):
    """A signal asked the run to stop; the running step was finished and saved."""

    agreed = True

    def __init__(self, message: str, signum: int, stuck: bool = False):
        super().__init__(message)
        self.exit_code = 128 + signal.Signals(signum)
        self.stuck = stuck  # as `InputError`


# How the libraries that write say that there is no room, whatever stands round it.
NO_ROOM = ("No space left on device", "Disk quota exceeded", "File too large")


def reason(error: BaseException) -> str:
    """Says in a few words why something could not be written."""
    said = " ".join(str(error).split())
    for words in NO_ROOM:
        if words in said:
            return words
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {said[:200]}"
