"""CheckpointError, the error of every reader of checkpoints, and library errors that end in it;
NonFiniteError; checks of arguments."""

import operator
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # it takes seconds to import
    from torch import Tensor

# What libraries that fetch files raise that is no OSError: no credentials, no connection ...
_LIBRARY_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),  # s3://
    ("aiohttp", "ClientError"),  # https://
    ("google.auth.exceptions", "GoogleAuthError"),  # gs://
    ("azure.core.exceptions", "AzureError"),  # abfs://
    ("httpx", "HTTPError"),  # the Hugging Face Hub, with one or the other
    ("httpx2", "HTTPError"),
    ("huggingface_hub.errors", "XetDownloadError"),
)

ANY: tuple[Any, ...] = (...,)  # of an argument that changes nothing, whatever its value is


class CheckpointError(ValueError):
    """A model folder that cannot be read or written; the message is one line."""


class NoFileError(CheckpointError):
    """A model folder that lacks a file, as far as can be told; others are there."""


class NoHeadError(CheckpointError):
    """A model folder that lacks nothing but the head that was asked for."""


class NonFiniteError(FloatingPointError):
    """A model whose results are NaN or infinite in its dtype; the message is one line.

    No image causes it: the model overflows, or its weights are damaged.
    """

    @classmethod
    def of(cls, results: str, dtype: object) -> Self:
        """Makes the error of `results`, a word in the plural, of a model that computes in `dtype`,
        a torch.dtype or its name."""
        name = str(dtype).removeprefix("torch.")
        # bfloat16 reaches as far as float32.
        move = "dtype bfloat16 or float32" if name == "float16" else "a model with sound weights"
        return cls(f"expected finite {results}, found NaN or infinite ones in {name}; next: {move}")


def fetch_errors() -> tuple[type[Exception], ...]:
    """Returns the classes of what fetching a file may raise."""
    return (OSError, ValueError, RuntimeError, *library_errors())


def library_errors() -> tuple[type[Exception], ...]:
    """Returns the classes that libraries which fetch files raise and that are no OSError."""
    return loaded_classes(_LIBRARY_ERRORS)


def loaded_classes(names: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    """Returns classes by module and name, without those of libraries that are not loaded: these
    have raised nothing."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return tuple(error for error in found if error is not None)


def one_of(names: Sequence[str]) -> str:
    """Joins names as `a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def refuse_unserved(
    function: str,
    arguments: dict[str, Any],
    neutral: Mapping[str, tuple[Any, ...]],
    instead: Mapping[str, str],
) -> None:
    """Takes those without a meaning out of keyword arguments.

    Args:
        neutral: the values of each that ask for nothing which is not so anyway, or ANY.
        instead: what to do in the place of others, where there is something.

    Raises TypeError for one that asks for what is not there.
    """
    for name in [name for name in neutral if name in arguments]:
        value = arguments.pop(name)
        if neutral[name] is ANY or _is_one_of(value, neutral[name]):
            continue
        raise TypeError(
            f"{function}: expected no {name}, as there is none here, found {_short(value)}; next: "
            f"{instead.get(name, 'leave it out')}"
        )


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Compares by type too, since 1 is no True; an empty list is one of any class."""
    if isinstance(value, Sequence) and not value:
        return [] in neutral
    return any(value is each or (type(value) is type(each) and value == each) for each in neutral)


def _short(value: Any) -> str:
    return " ".join(reprlib.repr(value).split())


def check_whole(name: str, value: Any, *, least: int | None = None) -> int:
    """Returns a whole number of any kind as an int: products of numpy's and torch's wrap around.

    Raises TypeError for what is no whole number, ValueError for one below the least.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None:
        raise TypeError(f"{name} must be a whole number, found {_short(value)}")
    if least is not None and whole < least:
        raise ValueError(f"{name} must be {least} or more, found {whole}")
    return whole


def whole_tensor(name: str, value: Any, *, below: int | None = None) -> "Tensor":
    """Returns a tensor of any integer dtype as int64: most operations take no other, and narrow
    ones do not hold the start token.

    Args:
        below: where it is given, the numbers are held against [0, below), for which the host waits
            for a GPU.

    Raises TypeError for what is no tensor, ValueError for another dtype or numbers out of range.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"expected {name} as a tensor, found {type(value).__name__}; next: "
            f"torch.as_tensor({name})"
        )
    dtype = value.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise ValueError(f"expected {name} of an integer dtype, found {dtype}; next: {name}.long()")
    whole = value.long()
    if below is not None and whole.numel():
        low, high = (int(end) for end in whole.aminmax())
        if low < 0 or high >= below:
            raise ValueError(f"expected {name} from 0 to {below - 1}, found {low} to {high}")
    return whole
