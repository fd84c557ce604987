"""The ways in which a run ends early, each with the exit code that the command line returns."""

import signal


class UserError(ValueError):
    """The request cannot be carried out; the message is one line that says what to change."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss, the gradient or the update is no longer finite; nothing of that step was saved."""

    exit_code = 1
    agreed = True  # all processes of a job raise it at the same step


class StoppedError(RuntimeError):
    """A signal asked the run to stop; the running step was finished and saved."""

    agreed = True

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signal.Signals(signum)
