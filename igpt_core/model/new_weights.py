"""Weights that a folder lacks, or has in another shape: which are new, and what they begin with."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from igpt_core.errors import CheckpointError
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.weights import rename, tensors_of

Model = TypeVar("Model", bound=nn.Module)
Make = Callable[[ImageGPTConfig], Model]  # a class, or a class with arguments of its own


def new_tensors(
    model: nn.Module, stored: Mapping[str, Tensor], may_lack: Collection[str], *, mismatched: bool
) -> dict[str, str]:
    """Returns the names of the tensors that a folder `may_lack` and lacks, with the reason; and
    where they may be `mismatched` those of another shape than the model's."""
    wanted = tensors_of(model)
    there = rename(stored, wanted)
    new = {name: "is not in it" for name in may_lack if name in wanted and name not in there}
    for name, tensor in wanted.items() if mismatched else ():
        found, expected = tuple(there.get(name, tensor).shape), tuple(tensor.shape)
        if found != expected:
            new[name] = f"is of shape {found}, not {expected},"
    return new


def initial(model: nn.Module, names: Collection[str], config: ImageGPTConfig) -> dict[str, Tensor]:
    """Returns new tensors: those that a model has, and of one of shapes alone normal ones."""
    held = tensors_of(model)
    found = {name: held[name].detach() for name in names}
    std = config.initializer_range
    return {
        name: nn.init.normal_(torch.empty(tensor.shape), std=std) if tensor.is_meta else tensor
        for name, tensor in found.items()
    }


def warn_of(new: Mapping[str, str], *, where: str, dtypes: Collection[torch.dtype]) -> None:
    """Warns the caller of `from_pretrained` of each new tensor, and of training in float16."""
    for name, why in new.items():
        warnings.warn(f"{where}: {name} {why} and is new: train it", stacklevel=3)
    if new and torch.float16 in dtypes:
        warnings.warn(
            f"{where}: float16 weights are NaN after a step of AdamW, whose epsilon is 0 in it; "
            "next: dtype=torch.float32",
            stacklevel=3,
        )


def on_meta(make: Make[Model], config: ImageGPTConfig, where: str = "config") -> Model:
    """Makes a model of shapes only: nothing is allocated. Raises CheckpointError."""
    try:
        with torch.device("meta"), _NoDraws():
            return make(config)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


class _NoDraws(TorchFunctionMode):
    """Leaves out random initialization: on shapes alone it is of no use and costs seconds, as
    torch imports its symbolic shapes for it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
