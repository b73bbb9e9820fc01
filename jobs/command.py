"""Click commands made from options: a flag for each field of a pydantic model.

A YAML file (`--config`) may give any of them but --overwrite; a flag beats the file.
"""

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import UsageError
from pipeline.options import AUTO, Options, RunOptions
from pipeline.storage.redact import redacted_traceback

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec

WIDTH = 100
_NAME_WIDTH = 30

Model = TypeVar("Model", bound=Options)
Run = TypeVar("Run", bound=RunOptions)


# The order of the headings in the help; those that are none of these are of a job itself.
_HEADINGS = ("Input", "Output", "Training", "", "Model", "Sampling", "Cluster", "Other")


class ExampleFirst(click.Command):
    """A command whose help shows what it does and its example before its options."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes usage, text, example, and options (of a group, its commands too)."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_epilog(ctx, formatter)
        self.format_options(ctx, formatter)


class JobGroup(ExampleFirst, click.Group):
    """A group of commands of jobs."""


class JobCommand(ExampleFirst):
    """A command that remembers the model of its options, which of them is an argument, and of a
    job that fills a run directory how its options define it."""

    name: str

    def __init__(
        self,
        name: str,
        model: type[Options],
        argument: str | None,
        define: "Callable[[Any], JobSpec] | None" = None,
        **rest: Any,
    ) -> None:
        super().__init__(name, **rest)
        self.model, self.argument, self._define = model, argument, define

    def define(self, options: Options) -> "JobSpec":
        """Returns the job of these options. Raises UsageError."""
        assert self._define is not None
        return self._define(options)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options of each heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):  # the usage names it
                continue
            if (line := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(_heading(self.model, parameter.name or ""), []).append(line)
        longest = max(len(name) for lines in groups.values() for name, _ in lines)
        width = min(longest, _NAME_WIDTH)  # the text of a longer one begins a line lower
        for heading in sorted(groups, key=_HEADINGS.index):
            with formatter.section(heading or f"Options of {self.name}"):
                aligned = [(name.ljust(width), text) for name, text in groups[heading]]
                formatter.write_dl(aligned, col_max=width)


def command(
    name: str,
    model: type[Model],
    run: Callable[[Model], None],
    *,
    help: str,
    example: str,
    argument: str | None = None,
    define: "Callable[[Any], JobSpec] | None" = None,
) -> JobCommand:
    """Returns a click command whose options are the fields of a model; one may be an argument."""

    def callback(config: str | None, **flags: Any) -> None:
        values = _from_file(config) if config else {}
        values |= {key: value for key, value in flags.items() if value is not None}
        options = parse(model, values)
        try:
            run(options)
        except Exception as error:
            if options.debug:
                click.echo(redacted_traceback(error), err=True)
            raise

    fields = model.model_fields
    parameters: list[click.Parameter] = [
        click.Argument([key]) if key == argument else _option(key, fields[key])
        for key in sorted(fields, key=lambda key: _place(model, key))
    ]
    parameters.append(
        click.Option(["--config"], metavar="FILE", help="YAML file of options; flags beat it")
    )
    return JobCommand(
        name,
        model,
        argument,
        define,
        params=parameters,
        callback=callback,
        help=help,
        short_help=help,
        epilog=f"Example: {example}",
        context_settings={"max_content_width": WIDTH, "help_option_names": ["-h", "--help"]},
    )


def batch_command(
    name: str,
    model: type[Run],
    define: "Callable[[Run], JobSpec]",
    *,
    help: str,
    example: str,
) -> JobCommand:
    """Returns the command of a job that fills a run directory; `define` makes it of its options."""

    def run(options: Run) -> None:
        from pipeline.batch.run import run_job

        run_job(define, options)

    return command(name, model, run, help=help, example=example, define=define)


def _owner(model: type[Options], key: str) -> int:
    """Returns which of the classes of a model, itself the first, declares an option."""
    return next(i for i, cls in enumerate(model.__mro__) if key in inspect.get_annotations(cls))


def _heading(model: type[Options], key: str) -> str:
    """Returns the heading of an option: that of the class which declares it, "" where that is the
    job's own. An option that a job only gives another default stays where it was."""
    if key not in model.model_fields:  # --config and --help
        return Options.heading
    owners = (vars(cls) for cls in model.__mro__ if key in inspect.get_annotations(cls))
    return str(next((owner["heading"] for owner in owners if "heading" in owner), ""))


def _place(model: type[Options], key: str) -> tuple[bool, int]:
    """Returns where an option stands under its heading: what must be given first, then in the order
    in which the model inherits them."""
    return not model.model_fields[key].is_required(), _owner(model, key)


def notes(options: Options) -> Callable[[str], None]:
    """Returns what prints a line on stderr, or nothing with --quiet."""
    return lambda line: None if options.quiet else click.echo(line, err=True)


def parse(model: type[Model], values: dict[str, Any]) -> Model:
    """Makes options of plain values. Raises UsageError, one line for all that is wrong."""
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    if "json_lines" in values:
        values["json"] = values.pop("json_lines")
    if isinstance(values.get("storage_options"), str):
        try:
            values["storage_options"] = json.loads(values["storage_options"])
        except ValueError:
            # The text may hold a secret: it is not repeated.
            raise UsageError("--storage-options must be a JSON object, found other text") from None
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_complaint(item) for item in error.errors())) from None


def words_of(values: Mapping[str, Any], model: type[Options], argument: str | None) -> list[str]:
    """Returns the words that give these values on the command line, but for defaults; `parse` makes
    the same options of them.

    Args:
        argument: which option stands alone, at the end.
    """
    words = []
    for key, field in model.model_fields.items():
        value = values[key]
        if key == argument or value == field.default:
            continue
        flag = "--" + (field.alias or key).replace("_", "-")
        if value is True:
            words.append(flag)
        else:
            words.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    return words if argument is None else [*words, "--", str(values[argument])]


def _complaint(error: Any) -> str:
    name = "--" + "-".join(str(part) for part in error["loc"][:1]).replace("_", "-")
    if error["type"] == "missing":
        return f"{name} is missing; see --help"
    if error["type"] == "extra_forbidden":
        return f"{name} is not an option of this job; see --help"
    if name == "--storage-options":
        return f"{name} must be a JSON object"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            values = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read --config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must hold `option: value` lines, found a {type(values)}")
    if "overwrite" in values:
        raise UsageError(
            f"--config {path} must not hold overwrite, which would clear what is done each time "
            "the command resumes; next: --overwrite as a flag"
        )
    return values


def _option(key: str, field: FieldInfo) -> click.Option:
    flag = "--" + (field.alias or key).replace("_", "-")
    kind = _plain_type(field.annotation)
    note = ""
    if field.is_required():
        note = " [required]"
    elif field.default not in (None, "") and kind is not bool:
        note = f" [default: {field.default}]"
    elif AUTO in field.metadata:
        note = " [default: auto]"
    settings: dict[str, Any] = {"help": f"{field.description}{note}", "default": None}
    if kind is bool:
        return click.Option([flag, key], is_flag=True, **settings)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        # One line where it can be: in the description, where that has them all.
        named = all(choice in str(field.description) for choice in choices)
        metavar = "NAME" if named else None
        return click.Option([flag, key], type=click.Choice(choices), metavar=metavar, **settings)
    metavar = {int: "N", float: "X"}.get(kind, "TEXT")
    if AUTO in field.metadata:
        kind = _NumberOrAuto()
    if typing.get_origin(kind) is dict:
        kind, metavar = str, "JSON"
    return click.Option([flag, key], type=kind, metavar=metavar, **settings)


class _NumberOrAuto(click.ParamType[int | str]):
    """A number, or `auto`, which beats a number in a file."""

    name = "number or auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | str:
        return "auto" if value == "auto" else click.INT.convert(value, param, ctx)


def _plain_type(annotation: Any) -> Any:
    """Returns int of `int | None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    return annotation
