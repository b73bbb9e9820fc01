"""BatchFeature: what an image processor returns, a dict of a batch's arrays or tensors."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from igpt_core.images.image_inputs import is_tensor

if TYPE_CHECKING:
    import torch

TENSOR_TYPES = ("pt", "np", None)


class BatchFeature(dict[str, Any]):
    """A processor's result: a dict whose entries are attributes too, for `model(**inputs)`.

    Args:
        data: entries by name, or pairs.
        tensor_type: as for `convert_to_tensors`.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
        tensor_type: str | None = None,
    ) -> None:
        super().__init__(() if data is None else data)
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here, only {', '.join(self)}") from None

    @property
    def data(self) -> dict[str, Any]:
        """Returns the entries by name: this dict itself."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> Self:
        """Makes a tensor or array of each entry that is a list, an array or a tensor, in place;
        returns itself.

        Args:
            tensor_type: "pt" for torch, "np" for numpy; None leaves all as it is.

        Raises ValueError for another tensor_type, and for arrays of several shapes in one entry.
        """
        if tensor_type not in TENSOR_TYPES:
            raise ValueError(f"expected tensor_type 'pt', 'np' or None, found {tensor_type!r}")
        for name, value in self.items():
            if tensor_type and (isinstance(value, list | tuple | np.ndarray) or is_tensor(value)):
                self[name] = _converted(value, to_torch=tensor_type == "pt")
        return self

    def to(
        self,
        device: "str | int | torch.device | torch.dtype | None" = None,
        dtype: "torch.dtype | None" = None,
        *,
        non_blocking: bool = False,
    ) -> Self:
        """Moves the tensors to a device and casts those of floats, in place; returns itself.

        Args:
            device: none leaves them where they are; a dtype alone may stand here too.
            dtype: of the float tensors; arrays and lists stay as they are.
            non_blocking: copy from pinned memory while the program goes on.
        """
        import torch

        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.items():
            if is_tensor(value):
                cast = dtype if value.is_floating_point() else None
                self[name] = value.to(device=device, dtype=cast, non_blocking=non_blocking)
        return self


def _converted(value: Any, *, to_torch: bool) -> Any:
    if isinstance(value, list | tuple):
        value = _stacked(value)
    if not to_torch:
        return value.numpy(force=True) if is_tensor(value) else np.asarray(value)
    import torch

    return torch.as_tensor(value)


def _stacked(values: list[Any] | tuple[Any, ...]) -> Any:
    """Stacks arrays or tensors along a first axis; returns a list of other things as it is."""
    if not values or not all(isinstance(v, np.ndarray) or is_tensor(v) for v in values):
        return values
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"expected images of one size for a batch, found {shapes}: "
            "turn do_resize on, or return_tensors off"
        )
    if is_tensor(values[0]):
        import torch

        return torch.stack(list(values))
    return np.stack(values)
