"""igpt submit JOB: the same job on a cluster, through Ray's job API."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from jobs import (
    classify,
    complete,
    embed,
    export,
    finetune,
    palette,
    plan,
    quantize,
    retry_failed,
    sample,
    score,
    train,
)
from jobs.command import JobCommand, JobGroup, command, words_of
from pipeline.errors import IgptError, RunFailed, UsageError
from pipeline.options import RayOptions, TrainingOptions

if TYPE_CHECKING:
    from pipeline.submit.submit import Cluster


_JOBS = (
    palette.COMMAND,
    quantize.COMMAND,
    complete.COMMAND,
    sample.COMMAND,
    embed.COMMAND,
    score.COMMAND,
    classify.COMMAND,
    plan.COMMAND,
    export.COMMAND,
    retry_failed.COMMAND,
    train.COMMAND,
    finetune.COMMAND,
)


def run(job: JobCommand, name: list[str], options: RayOptions | TrainingOptions) -> None:
    """Submits a job whose options are checked, and tails its log unless --no-wait is given."""
    from pipeline.batch.record import in_any_folder
    from pipeline.submit.credentials import refuse_credentials
    from pipeline.submit.submit import check_versions, find_cluster

    if options.address is not None:
        raise UsageError(
            f"expected --address before the job: igpt submit --address {options.address} "
            f"{' '.join(name)} ..., found it among the job's own options"
        )
    values = in_any_folder(options.model_dump())
    refuse_credentials(values)
    own = click.get_current_context().find_object(dict) or {}
    cluster = find_cluster(own["address"])
    if note := check_versions(cluster):
        _say(note)
    typed = ["submit", *([f"--address={own['address']}"] if own["address"] else [])]
    id_ = cluster.submit([*name, *words_of(values, job.model, job.argument)], typed=typed)
    if own["no_wait"]:
        _say(f"to follow it: {cluster.command('logs --follow', id_)}")
        _say(f"to stop it: {cluster.command('stop', id_)}")
        click.echo(id_)
    else:
        _follow(cluster, id_)


def _follow(cluster: "Cluster", id_: str) -> None:
    from pipeline.submit.log import tail_logs

    stop = cluster.command("stop", id_)
    _say(f"job {id_} at {cluster.shown}; Ctrl-C leaves it alone, this stops it: {stop}")
    again = f"{cluster.command('logs --follow', id_)} follows it, {stop} stops it"
    try:
        result = tail_logs(cluster.client(), id_)
    except KeyboardInterrupt:
        raise RunFailed(f"job {id_} goes on at {cluster.shown}: {again}") from None
    except RunFailed as error:
        raise RunFailed(f"{error}; job {id_} may go on there: {again}") from error
    if result.code:
        failed = IgptError(f"job {id_}: {result.reason}")
        failed.exit_code = result.code
        raise failed


def _say(text: str) -> None:
    click.echo(f"igpt: {text}", err=True)


def _submitted(job: click.Command, *above: str) -> click.Command:
    """Returns the command that submits a job, with the same options; a group for a group."""
    assert job.name is not None
    name = [*above, job.name]
    if isinstance(job, click.Group):
        jobs = [_submitted(inner, *name) for inner in job.commands.values()]
        return JobGroup(
            job.name, commands=jobs, help=job.help, short_help=job.short_help, epilog=job.epilog
        )
    assert isinstance(job, JobCommand)
    submitted = command(
        job.name,
        job.model,
        partial(run, job, name),
        help=f"{job.help} Here on a cluster: see igpt submit --help.",
        example=f"igpt submit {' '.join(name)} ...",
        argument=job.argument,
    )
    submitted.short_help = job.short_help
    return submitted


class _Submit(JobGroup):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            raise UsageError(
                f"expected a job that runs on a cluster ({', '.join(self.commands)}), found "
                f"{args[0]}; next: one of these, or without submit, so that it runs here"
            )
        return super().resolve_command(ctx, args)


@click.pass_context
def _remember(context: click.Context, /, **own: Any) -> None:
    context.obj = own


COMMAND = _Submit(
    "submit",
    callback=_remember,
    commands=[_submitted(job) for job in _JOBS],
    params=[
        click.Option(
            ["--address"],
            metavar="URL",
            help="job server of the cluster, https://host:8265; else RAY_API_SERVER_ADDRESS, "
            "RAY_ADDRESS, or http://127.0.0.1:8265",
        ),
        click.Option(
            ["--no-wait"], is_flag=True, help="print the job's id and leave, do not follow its log"
        ),
    ],
    help="Run a job on a cluster through Ray's job API: check its options, ship the "
    "packages with it, follow its log. Local paths must be on storage that every node sees, "
    "credentials on the nodes.",
    short_help="Run a job on a cluster, through Ray's job API.",
    epilog="Example: igpt submit --address http://127.0.0.1:8265 complete --input s3://bucket/in "
    "--output s3://bucket/out",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
