"""What a run or a command ends with, each with its exit code.

IgptError             what stops a command; the message is one line: expected, found, next move
  UsageError          2: a mistake in the command or its input, found before work begins
  RunFailed           1: the run stopped before its end; what is done is kept
    StageGaveUp       1: a stage can do no shard with the options of this run
  OverErrorBudget     3: more failed rows than --max-error-fraction allows
EndOfRun              raised in a stage, reaches the driver as StageGaveUp
  DoesNotFit          a model batch needs more memory than the device has
Superseded            raised in a stage: the run directory is another run's now
"""


class IgptError(Exception):
    """What stops a command, as one line that says what was expected, what was found and what to do
    next."""

    exit_code: int = 1


class UsageError(IgptError):
    """A mistake in the command or its input, found before work begins."""

    exit_code = 2


class RunFailed(IgptError):
    """The run stopped before its end."""


class StageGaveUp(RunFailed):
    """A stage can do no shard with the options of this run. The message says what to do."""


class OverErrorBudget(IgptError):
    """More rows failed than --max-error-fraction allows."""

    exit_code = 3


class EndOfRun(Exception):
    """What a stage cannot do for any shard with the options of this run. The message is one line
    and says what to do."""


class DoesNotFit(EndOfRun):
    """A model batch needs more memory than the device has. The message names one that fits."""


class Superseded(Exception):
    """A run directory is another run's now."""
