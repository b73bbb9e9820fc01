"""Devices and dtypes: by the names that `from_pretrained` of transformers takes, and the best."""

from collections.abc import Mapping

import torch

from igpt_core.model.processor import multiplies_bfloat16

Device = torch.device | str | int
DeviceMap = Device | Mapping[str, Device] | None

_ANY_GPU = ("auto", "balanced", "balanced_low_0", "sequential")


def find_device(device: Device | None, device_map: DeviceMap) -> torch.device:
    """Returns the one device of a model, the CPU unless one is given.

    Raises TypeError for two, and for a map that spreads a model over several.
    """
    if device_map is None:
        return torch.device("cpu" if device is None else device)
    if device is not None:
        raise TypeError("from_pretrained: expected device or device_map, found both: give one")
    if isinstance(device_map, Mapping):
        places = {*device_map.values()}
        if len(places) != 1:
            raise TypeError(
                "from_pretrained: expected a device_map to one device, found one to "
                f"{len(places)}; next: device_map='auto'"
            )
        (device_map,) = places
    if device_map in _ANY_GPU:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device_map)


def best_device(device: Device | None) -> torch.device:
    """Returns the device that is given, else a GPU where there is one.

    Raises ValueError for a GPU that is not there, and for what is no device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError):  # torch's take several lines, or list every kind
        raise ValueError(f"expected a device such as 'cpu' or 'cuda:0', found {device!r}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"expected a GPU for device {str(found)!r}, found none that torch can use; next: "
            "device='cpu', or none"
        )
    return found


def best_dtype(device: str) -> torch.dtype:
    """Returns bfloat16 for "cuda" and for a processor that multiplies it itself, of this machine;
    else float32."""
    return torch.bfloat16 if device == "cuda" or multiplies_bfloat16() else torch.float32


def find_dtype(
    dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None
) -> torch.dtype | None:
    """Returns a dtype of weights; None for those that are stored.

    Raises TypeError for two, and for what is no floating dtype.
    """
    if dtype is not None and torch_dtype is not None:
        raise TypeError("from_pretrained: torch_dtype is the former name of dtype: give one")
    given = torch_dtype if dtype is None else dtype
    if given is None or given == "auto":
        return None
    found: object = given
    if isinstance(given, str):
        found = getattr(torch, given.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(
            "from_pretrained: expected dtype to be auto, float32, bfloat16, float16 or float64, "
            f"found {given!r}"
        )
    return found
