"""What is wrong with a request for an evaluation, in one line that says what to change."""


class EvaluationError(ValueError):
    """The evaluation cannot be made as asked; the command line ends with `exit_code`."""

    exit_code = 2
