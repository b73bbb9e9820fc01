"""The command line: `igpt JOB OPTIONS`."""

import atexit
import gc
import importlib.metadata
import signal
import sys
from collections.abc import Sequence

import click

from igpt_core.errors import CheckpointError
from jobs import (
    cache,
    classify,
    complete,
    convert,
    demo,
    embed,
    export,
    finetune,
    palette,
    plan,
    probe,
    quantize,
    report,
    retry_failed,
    sample,
    score,
    status,
    submit,
    train,
    verify,
)
from pipeline.errors import IgptError, RunFailed, UsageError
from pipeline.storage.redact import redacted, redacted_error

COMMANDS = (
    demo.COMMAND,
    palette.COMMAND,
    quantize.COMMAND,
    complete.COMMAND,
    sample.COMMAND,
    embed.COMMAND,
    score.COMMAND,
    classify.COMMAND,
    probe.COMMAND,
    plan.COMMAND,
    train.COMMAND,
    finetune.COMMAND,
    convert.COMMAND,
    export.COMMAND,
    report.COMMAND,
    status.COMMAND,
    verify.COMMAND,
    retry_failed.COMMAND,
    cache.COMMAND,
    submit.COMMAND,
)


@click.group(
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    commands=COMMANDS,
)
@click.version_option(importlib.metadata.version("igpt"), prog_name="igpt")
def igpt() -> None:
    """ImageGPT as a distributed batch pipeline: images in, Parquet out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 failed, 2 a usage error, 3 over the error budget."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers end a run so
    atexit.register(gc.freeze)  # else Python looks through all of Ray for half a second at the end
    try:
        igpt.main(words, prog_name="igpt", standalone_mode=False)
    except IgptError as error:
        _stop(str(error), error.exit_code)
    except CheckpointError as error:
        _stop(str(error), UsageError.exit_code)
    except click.ClickException as error:
        _stop(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted; next: the same command again", RunFailed.exit_code)
    except Exception as error:
        _stop(redacted_error(error), RunFailed.exit_code)


def _stop(message: str, code: int) -> None:
    click.echo(f"igpt: {redacted(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
