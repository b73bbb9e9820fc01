"""What the arguments of the image processor may be: its own, and others of transformers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from igpt_core.errors import check_whole, one_of
from igpt_core.images.image_inputs import is_tensor, to_numpy
from igpt_core.images.palette import FloatArray

COMPAT = ("5", "4.34")  # the versions of transformers whose results can be had

# Arguments and fields of transformers beside ours, with what this class always does.
FIXED: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "do_center_crop": False,
    "do_pad": False,
    "do_convert_rgb": True,
    "default_to_square": True,
    "device": "cpu",
    "data_format": "channels_first",
    "input_data_format": None,
    "return_tensors": None,
}
_VALUES = "do_normalize=False with do_color_quantize=False, and values made of those"
_INSTEAD = {
    "do_rescale": "leave it out: floats from 0 to 1 are read as such",
    **dict.fromkeys(("rescale_factor", "image_mean", "image_std"), _VALUES),
    "do_center_crop": "the crop of a PIL image before",
    **dict.fromkeys(
        ("data_format", "input_data_format", "return_tensors"), "an argument of each call"
    ),
}
# Those that change no result: sizes of what is refused above, speed, and names of classes.
_WITHOUT_EFFECT = {
    *("crop_size", "pad_size", "disable_grouping", "use_fast", "backend"),
    *("processor_class", "image_processor_type", "feature_extractor_type"),
}
_OWN = ("clusters", "do_resize", "size", "resample", "do_normalize", "do_color_quantize", "compat")
# Those of a file that say how its results came about, not which they are.
_OF_A_RUN = {"device", "do_convert_rgb"}
KNOWN = {*_OWN, *FIXED, *_WITHOUT_EFFECT}


class Size(dict[str, int]):
    """Sides of images as {"height": H, "width": W}, which are attributes too."""

    @property
    def height(self) -> int:
        """Returns the height in pixels."""
        return self["height"]

    @property
    def width(self) -> int:
        """Returns the width in pixels."""
        return self["width"]


def constructor_arguments(stored: Any) -> dict[str, Any]:
    """Picks the constructor's arguments from preprocessor_config.json: fields that neither
    transformers nor this class knows are left out."""
    if not isinstance(stored, Mapping):
        raise ValueError(f"expected an object, found {type(stored).__name__}")
    known = {*_OWN, *FIXED} - _OF_A_RUN
    return {n: value for n, value in stored.items() if value is not None and n in known}


def check_others(arguments: Mapping[str, Any]) -> None:
    """Checks that arguments of transformers ask for what this class does.

    Raises TypeError for an unknown one, ValueError for another value.
    """
    for name, value in arguments.items():
        if name in FIXED:
            # One number may stand for those of all channels.
            if value is not None and set(np.ravel(value)) != set(np.ravel(FIXED[name])):
                move = _INSTEAD.get(name, "leave it out")
                raise ValueError(
                    f"expected {name} {FIXED[name]}, found {value}: nothing else is done here; "
                    f"next: {move}"
                )
        elif name not in _WITHOUT_EFFECT:
            raise TypeError(f"{name} is no argument of an ImageGPT image processor")


def check_choice(name: str, value: Any, expected: Sequence[str | None]) -> Any:
    """Checks an argument; raises ValueError for another value than those expected."""
    if value not in expected:
        words = one_of([repr(word) for word in expected])
        raise ValueError(f"expected {name} {words}, found {value!r}")
    return value


def as_clusters(clusters: Any) -> FloatArray:
    if is_tensor(clusters):
        clusters = to_numpy(clusters)
    array = np.array(clusters, np.float32)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise ValueError(f"expected clusters of shape (K, 3), found {array.shape}")
    return array


def as_size(size: Any) -> Size:
    """Reads the sides of images, each 1 or more; raises ValueError for anything else."""
    if isinstance(size, list | tuple) and len(size) == 2:
        sides = {"height": size[0], "width": size[1]}
    elif hasattr(size, "__index__"):  # the layout of the first checkpoints
        sides = {"height": size, "width": size}
    else:
        sides = size
    try:
        sides = {name: check_whole(name, side, least=1) for name, side in dict(sides).items()}
    except (TypeError, ValueError):
        sides = {}
    if set(sides) != {"height", "width"}:
        raise ValueError(f'expected size {{"height": H, "width": W}} or one int, found {size!r}')
    return Size(height=sides["height"], width=sides["width"])


def as_resample(resample: Any) -> Image.Resampling:
    """Reads the number of one of Pillow's filters: true is none, though Pillow takes it for 1."""
    return Image.Resampling(check_whole("resample", resample))


def as_compat(compat: Any) -> str:
    """Reads a version of transformers; raises ValueError for one whose results are not had."""
    return str(check_choice("compat", compat, COMPAT))


# How values become attributes of the processor, of those which not every value may be.
READERS: dict[str, Callable[[Any], Any]] = {
    "clusters": lambda clusters: None if clusters is None else as_clusters(clusters),
    "size": as_size,
    "resample": as_resample,
    "compat": as_compat,
}
