"""ImageGPTImageProcessor: images in, `input_ids` or `pixel_values` of a batch out."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import at_revision, model_files
from igpt_core.images.image_inputs import is_tensor, rgb_images
from igpt_core.images.palette import FloatArray, Palette, pack_rgb, pixels_to_unit
from igpt_core.images.pixels import Pixels, resize_rgb

if TYPE_CHECKING:
    import torch

PREPROCESSOR_FILE = "preprocessor_config.json"

# Arguments and fields of transformers beside ours, with what this class always does.
_FIXED: dict[str, Any] = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_center_crop": False,
    "do_pad": False,
}
# Those that change no result here: every image becomes RGB, on the CPU, one by one.
_WITHOUT_EFFECT = {
    *("do_convert_rgb", "crop_size", "pad_size", "default_to_square", "image_seq_length"),
    *("device", "disable_grouping", "processor_class"),
    *("image_processor_type", "feature_extractor_type"),
}


class BatchFeature(dict[str, Any]):
    """A processor's result: a dict whose entries are attributes too, for `model(**inputs)`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here, only {', '.join(self)}") from None

    def to(
        self, device: "str | torch.device | None" = None, *, dtype: "torch.dtype | None" = None
    ) -> Self:
        """Moves the tensors to a device and casts those of floats, in place; returns itself."""
        for name, value in self.items():
            if is_tensor(value):
                self[name] = value.to(device, dtype if value.is_floating_point() else None)
        return self


class ImageGPTImageProcessor:
    """Resize, normalize and color-quantize images; a drop-in for transformers' class.

    Args, each of which `preprocess` can override for one call:
        clusters: colors (K, 3) in [-1, 1], array or nested list; K up to 65,536.
        do_resize: resize both axes to `size`.
        size: {"height": H, "width": W}, (H, W), or one int for a square; default 256 x 256 (the
            published checkpoints set 32 x 32).
        resample: Pillow's filter.
        do_normalize: pixel values 0..255 become [-1, 1], otherwise [0, 1]; clusters are
            compared with what comes out.
        do_color_quantize: return `input_ids` rather than `pixel_values`.
        kwargs: what else transformers takes, where it asks for what this class does anyway.

    Any image becomes 8-bit RGB first, see `rgb_images`. On RGB images that leaves the results of
    transformers' Pillow backend; it differs on purpose in this:
    gray, transparent, CMYK and other images work; EXIF orientation is applied; float arrays in
    [0, 1] are scaled to 0..255 and rounded (there they come out black); `data_format` is
    obeyed; exactly equal distances give the lowest index.
    """

    model_input_names = ("input_ids",)

    def __init__(
        self,
        clusters: npt.ArrayLike | None = None,
        do_resize: bool = True,
        size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        do_normalize: bool = True,
        do_color_quantize: bool = True,
        **kwargs: Any,
    ) -> None:
        _check_others(kwargs)
        self.clusters = None if clusters is None else _as_clusters(clusters)
        self.do_resize = do_resize
        self.size = _as_size(256 if size is None else size)
        self.resample = Image.Resampling(resample)
        self.do_normalize = do_normalize
        self.do_color_quantize = do_color_quantize
        self._palette: Palette | None = None

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int] | int | None = None,
        resample: int | None = None,
        do_normalize: bool | None = None,
        do_color_quantize: bool | None = None,
        clusters: npt.ArrayLike | None = None,
        return_tensors: str | None = None,
        data_format: str | None = "channels_first",
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocess an image or a batch of images.

        Args:
            images: PIL images, encoded bytes, arrays or tensors, one or many: see `rgb_images`.
            do_resize, size, resample, do_normalize, do_color_quantize, clusters: override what
                the processor was made with.
            return_tensors: "pt", "np", or None for a list with an array for each image.
            data_format: "channels_first" or "channels_last", of `pixel_values`.
            input_data_format: the same, of arrays; default: see `rgb_images`.
            kwargs: as for the constructor.

        Returns:
            `input_ids` (B, H * W) int64, or `pixel_values` (B, 3, H, W) or (B, H, W, 3) float32.

        Raises:
            ImageError: an image cannot be decoded. ValueError, TypeError: wrong arguments.
        """
        _check_others(kwargs)
        for name, value in (("data_format", data_format), ("input_data_format", input_data_format)):
            if value not in ("channels_first", "channels_last", None):
                raise ValueError(
                    f"expected {name} 'channels_first' or 'channels_last', found {value!r}"
                )
        normalize = self.do_normalize if do_normalize is None else do_normalize
        filter_ = self.resample if resample is None else resample
        target = self.size if size is None else _as_size(size)
        resized = self.do_resize if do_resize is None else do_resize

        batch: list[Pixels] = []
        for rgb in rgb_images(images, input_data_format=input_data_format):
            height = target["height"] if resized else rgb.height
            width = target["width"] if resized else rgb.width
            batch.append(resize_rgb(rgb, height, width, resample=filter_))
        if not batch:
            raise ValueError("expected at least one image, found none")

        if self.do_color_quantize if do_color_quantize is None else do_color_quantize:
            colors = self.clusters if clusters is None else _as_clusters(clusters)
            if colors is None:
                raise ValueError(
                    "expected clusters for color quantization, found none: "
                    "pass clusters (K, 3), or do_color_quantize=False"
                )
            quantized = [self._quantize(pixels, colors, normalize) for pixels in batch]
            return BatchFeature(input_ids=_stack(quantized, return_tensors))
        values = [pixels_to_unit(p) if normalize else _to_fraction(p) for p in batch]
        if data_format != "channels_last":
            values = [np.ascontiguousarray(np.moveaxis(v, -1, 0)) for v in values]
        return BatchFeature(pixel_values=_stack(values, return_tensors))

    __call__ = preprocess

    def _quantize(
        self, pixels: Pixels, clusters: FloatArray, normalize: bool
    ) -> npt.NDArray[np.int64]:
        """Quantizes pixels (H, W, 3) to tokens (H * W,)."""
        if not normalize:
            return _nearest_to_fractions(pixels, clusters)
        palette = Palette(clusters)
        if self._palette is None or not np.array_equal(palette.colors, self._palette.colors):
            self._palette = palette  # kept: it holds the lookup table
        return self._palette.encode(pixels).reshape(-1).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json, clusters as a nested list."""
        return {
            "clusters": None if self.clusters is None else self.clusters.tolist(),
            "do_color_quantize": self.do_color_quantize,
            "do_normalize": self.do_normalize,
            "do_resize": self.do_resize,
            "image_processor_type": "ImageGPTImageProcessor",
            "resample": int(self.resample),
            "size": dict(self.size),
        }

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes preprocessor_config.json into the folder `path`, made if need be."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        (folder / PREPROCESSOR_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads preprocessor_config.json of a model folder, of any transformers version.

        Args:
            path_or_uri, storage_options, revision: as for `PreTrained.from_pretrained`.
            kwargs: arguments of the constructor, which beat what is stored.

        Raises:
            CheckpointError: see `model_files`; or a file that asks for what this class cannot do.
        """
        where = at_revision(path_or_uri, revision)
        (file,) = model_files(where, (PREPROCESSOR_FILE,), storage_options=storage_options)
        try:
            return cls(**_arguments(json.loads(file.read_text(encoding="utf-8"))) | kwargs)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {PREPROCESSOR_FILE}: {error}") from error


ImageGPTFeatureExtractor = ImageGPTImageProcessor
"""The image processor under the name that transformers 4 had for it."""


def _arguments(stored: Any) -> dict[str, Any]:
    """Picks the constructor's arguments from preprocessor_config.json: fields that neither
    transformers nor this class knows are left out."""
    if not isinstance(stored, dict):
        raise ValueError(f"expected an object, found {type(stored).__name__}")
    ours = ("clusters", "do_resize", "size", "resample", "do_normalize", "do_color_quantize")
    return {
        name: value
        for name, value in stored.items()
        if value is not None and (name in ours or name in _FIXED)
    }


def _check_others(arguments: Mapping[str, Any]) -> None:
    """Checks that arguments of transformers ask for what this class does.

    Raises TypeError for an unknown one, ValueError for another value.
    """
    for name, value in arguments.items():
        if name in _FIXED:
            # One number may stand for those of all channels.
            if value is not None and set(np.ravel(value)) != set(np.ravel(_FIXED[name])):
                raise ValueError(f"expected {name} {_FIXED[name]}, found {value}")
        elif name not in _WITHOUT_EFFECT:
            raise TypeError(f"{name} is no argument of an ImageGPT image processor")


def _as_clusters(clusters: Any) -> FloatArray:
    if is_tensor(clusters):
        clusters = clusters.numpy(force=True)
    array = np.array(clusters, np.float32)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array):
        raise ValueError(f"expected clusters of shape (K, 3), found {array.shape}")
    return array


def _as_size(size: Any) -> dict[str, int]:
    if isinstance(size, int):  # the layout of the first checkpoints
        size = {"height": size, "width": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    try:
        sides = dict(size)
    except (TypeError, ValueError):
        sides = {}
    if set(sides) != {"height", "width"} or not all(
        isinstance(side, int) and side > 0 for side in sides.values()
    ):
        raise ValueError(f'expected size {{"height": H, "width": W}} or one int, found {size!r}')
    return {"height": sides["height"], "width": sides["width"]}


def _to_fraction(pixels: Pixels) -> FloatArray:
    return pixels.astype(np.float32) / np.float32(255)


def _nearest_to_fractions(pixels: Pixels, clusters: FloatArray) -> npt.NDArray[np.int64]:
    """Finds the nearest clusters, of any range, of pixels / 255: quantizes without normalizing."""
    colors, first, inverse = np.unique(pack_rgb(pixels), return_index=True, return_inverse=True)
    x = _to_fraction(pixels).reshape(-1, 3)[first].astype(np.float64)
    c = clusters.astype(np.float64)
    nearest = np.empty(len(colors), np.int64)
    step = max(1, (1 << 22) // len(c))  # 32 MiB of distances at a time
    for start in range(0, len(colors), step):
        part = x[start : start + step]
        nearest[start : start + step] = ((c**2).sum(axis=1) - 2 * part @ c.T).argmin(axis=1)
    return nearest[inverse].reshape(-1)


def _stack(arrays: list[npt.NDArray[Any]], return_tensors: str | None) -> Any:
    if return_tensors not in ("pt", "np", None):
        raise ValueError(f"expected return_tensors 'pt', 'np' or None, found {return_tensors!r}")
    if return_tensors is None:
        return arrays
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"expected images of one size for a batch, found {shapes}: "
            "turn do_resize on, or return_tensors off"
        )
    stacked = np.stack(arrays)
    if return_tensors == "np":
        return stacked
    import torch

    return torch.from_numpy(stacked)
