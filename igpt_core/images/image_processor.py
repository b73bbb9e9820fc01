"""ImageGPTImageProcessor: images in, `input_ids` or `pixel_values` of a batch out."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from igpt_core.errors import CheckpointError
from igpt_core.files.loading import FetchOptions, refuse_push, refuse_without_meaning
from igpt_core.files.model_files import at_revision, model_files
from igpt_core.images.batch_feature import TENSOR_TYPES
from igpt_core.images.batch_feature import BatchFeature as BatchFeature
from igpt_core.images.image_inputs import rgb_images
from igpt_core.images.palette import FloatArray, Palette, pack_rgb, pixels_to_unit
from igpt_core.images.pixels import Pixels, resize_rgb
from igpt_core.images.processor_arguments import (
    FIXED,
    KNOWN,
    READERS,
    Size,
    as_clusters,
    as_compat,
    as_resample,
    as_size,
    check_choice,
    check_others,
    constructor_arguments,
)

if TYPE_CHECKING:
    import torch

PREPROCESSOR_FILE = "preprocessor_config.json"


class ImageGPTImageProcessor:
    """Resize, normalize and color-quantize images; a drop-in for transformers' class.

    Args, each of which `preprocess` can override for one call:
        clusters: colors (K, 3) in [-1, 1], array or nested list; K up to 65,536.
        do_resize: resize both axes to `size`.
        size: {"height": H, "width": W}, (H, W), or one int for a square; default 256 x 256 (the
            published checkpoints set 32 x 32).
        resample: Pillow's filter.
        do_normalize: pixel values 0..255 become float32 in [-1, 1]; otherwise see `compat`.
            Clusters are compared with what comes out.
        do_color_quantize: return tokens, `input_ids`, rather than pixel values.
        compat: the version of transformers whose results are returned, where they differ. "5":
            without do_normalize pixel values are float32 in [0, 1], and without do_color_quantize
            they are `pixel_values`. "4.34": without do_normalize they are uint8 in 0..255, and
            without do_color_quantize they are `input_ids` too. (4.57, which is not to be had, has
            `pixel_values` and 0..255.) Saved unless it is "5".
        kwargs: what else transformers takes, where it asks for what this class does anyway.

    All are attributes too. Values that are set later are converted and checked as arguments are;
    attributes by the names of `kwargs` say what this class always does.

    Any image becomes 8-bit RGB first, see `rgb_images`. On RGB images that leaves the results of
    transformers' Pillow backend; it differs on purpose in this:
    gray, transparent, CMYK and other images work; EXIF orientation is applied; float arrays in
    [0, 1] are scaled to 0..255 and rounded (there they come out black); `data_format` is
    obeyed; exactly equal distances give the lowest index.
    """

    model_input_names = ("input_ids",)

    clusters: FloatArray | None
    size: Size
    resample: Image.Resampling

    def __init__(
        self,
        clusters: npt.ArrayLike | None = None,
        do_resize: bool = True,
        size: dict[str, int] | int | None = None,
        resample: int = Image.Resampling.BILINEAR,
        do_normalize: bool = True,
        do_color_quantize: bool = True,
        *,
        compat: str = "5",
        **kwargs: Any,
    ) -> None:
        check_others(kwargs)
        # Converted for type checkers: `__setattr__` does so in any case.
        self.clusters = None if clusters is None else as_clusters(clusters)
        self.do_resize = do_resize
        self.size = as_size(256 if size is None else size)
        self.resample = as_resample(resample)
        self.do_normalize = do_normalize
        self.do_color_quantize = do_color_quantize
        self.compat = compat
        self._palette: Palette | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED:
            check_others({name: value})  # it is so, and there is nothing to keep
        else:
            read = READERS.get(name)
            super().__setattr__(name, read(value) if read else value)

    def __getattr__(self, name: str) -> Any:
        if name in FIXED:
            return FIXED[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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
        *,
        compat: str | None = None,
        device: "str | torch.device | None" = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Preprocesses an image or a batch of images.

        Args:
            images: paths of local files, encoded bytes, PIL images, arrays or tensors, one or
                many: see `rgb_images`.
            do_resize, size, resample, do_normalize, do_color_quantize, clusters, compat: override
                what the processor was made with.
            return_tensors: "pt", "np", or None for a list with an array for each image.
            data_format: "channels_first" (also None) or "channels_last", of pixel values.
            input_data_format: the same, of arrays; default: see `rgb_images`.
            device: where the tensors of "pt" are put; images are processed on the CPU.
            kwargs: as for the constructor.

        Returns:
            `input_ids` (B, H * W) int64; or, without quantizing, `pixel_values` (B, 3, H, W) or
            (B, H, W, 3) float32, for another name and dtype see `compat`.

        Raises:
            ImageError: an image cannot be read or decoded. ValueError, TypeError: wrong arguments.
        """
        check_others(kwargs)
        check_choice("return_tensors", return_tensors, TENSOR_TYPES)
        for name, value in (("data_format", data_format), ("input_data_format", input_data_format)):
            check_choice(name, value, ("channels_first", "channels_last", None))
        if return_tensors != "pt" and str(device or "cpu") != "cpu":
            raise ValueError(
                f"expected return_tensors 'pt' with device {device}, found {return_tensors!r}"
            )
        batch = self._resized(
            rgb_images(images, input_data_format=input_data_format), do_resize, size, resample
        )
        compat = self.compat if compat is None else as_compat(compat)
        normalize = self.do_normalize if do_normalize is None else do_normalize
        values = (_values(pixels, normalize, compat) for pixels in batch)
        key = "input_ids"
        if self.do_color_quantize if do_color_quantize is None else do_color_quantize:
            colors = self.clusters if clusters is None else as_clusters(clusters)
            if colors is None:
                raise ValueError(
                    "expected clusters for color quantization, found none: "
                    "pass clusters (K, 3), or do_color_quantize=False"
                )
            results: list[npt.NDArray[Any]] = [
                self._encode(pixels, colors) if normalize else _nearest(pixels, v, colors)
                for pixels, v in zip(batch, values, strict=True)
            ]
        else:
            key = "pixel_values" if compat == "5" else key
            results = list(values)
            if data_format != "channels_last":
                results = [np.ascontiguousarray(np.moveaxis(v, -1, 0)) for v in results]
        features = BatchFeature({key: results}, return_tensors)
        return features if device is None else features.to(device)

    __call__ = preprocess

    def _resized(
        self,
        images: Iterable[Image.Image],
        do_resize: bool | None,
        size: dict[str, int] | int | None,
        resample: int | None,
    ) -> list[Pixels]:
        """Resizes RGB images to pixels (H, W, 3), as this call or the processor says."""
        kernel = self.resample if resample is None else as_resample(resample)
        target = self.size if size is None else as_size(size)
        resized = self.do_resize if do_resize is None else do_resize
        batch: list[Pixels] = []
        for rgb in images:
            height = target["height"] if resized else rgb.height
            width = target["width"] if resized else rgb.width
            batch.append(resize_rgb(rgb, height, width, resample=kernel))
        if not batch:
            raise ValueError("expected at least one image, found none")
        return batch

    def _encode(self, pixels: Pixels, clusters: FloatArray) -> npt.NDArray[np.int64]:
        """Finds the nearest clusters (H * W,) of normalized pixels (H, W, 3)."""
        palette = Palette(clusters)
        if self._palette is None or not np.array_equal(palette.colors, self._palette.colors):
            self._palette = palette  # kept: it holds the lookup table
        return self._palette.encode(pixels).reshape(-1).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of preprocessor_config.json, clusters as a nested list."""
        compat = {} if self.compat == "5" else {"compat": self.compat}
        return compat | {
            "clusters": None if self.clusters is None else self.clusters.tolist(),
            "do_color_quantize": self.do_color_quantize,
            "do_normalize": self.do_normalize,
            "do_resize": self.do_resize,
            "image_processor_type": "ImageGPTImageProcessor",
            "resample": int(self.resample),
            "size": dict(self.size),
        }

    def to_json_string(self) -> str:
        """Writes the text of preprocessor_config.json, keys sorted."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes what `to_json_string` returns into a file of a folder that is there."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False
    ) -> list[str]:
        """Writes preprocessor_config.json into a local folder, made if need be; returns its path,
        in a list.

        Raises TypeError for `push_to_hub`.
        """
        refuse_push(push_to_hub)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / PREPROCESSOR_FILE)
        return [str(folder / PREPROCESSOR_FILE)]

    @classmethod
    def from_dict(
        cls,
        image_processor_dict: Mapping[str, Any],
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Makes a processor of what `to_dict` gave, or transformers: fields that neither knows are
        left out.

        Args:
            image_processor_dict: fields by name.
            return_unused_kwargs: return a pair, the processor and those of `kwargs` that are no
                arguments of the constructor, in place of a TypeError for these.
            kwargs: arguments of the constructor, which beat the fields.

        Raises TypeError and ValueError as the constructor does.
        """
        unused = {n: v for n, v in kwargs.items() if return_unused_kwargs and n not in KNOWN}
        given = {name: value for name, value in kwargs.items() if name not in unused}
        made = cls(**constructor_arguments(image_processor_dict) | given)
        # Typed as what nearly every caller gets.
        return (made, unused) if return_unused_kwargs else made  # type: ignore[return-value]

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Reads a file as `to_json_file` writes it; raises CheckpointError, or OSError for none."""
        file = Path(json_file)
        return cls._read(file, where=str(file.parent))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads preprocessor_config.json of a model folder, or a file of that kind, of any version
        of transformers.

        Args:
            pretrained_model_name_or_path, storage_options, revision: as for
                `ImageGPTPreTrainedModel.from_pretrained`; or a local file.
            kwargs: arguments of the constructor, which beat what is stored, and
                `return_unused_kwargs`, see `from_dict`; `subfolder`, and `cache_dir`, `token`,
                `local_files_only` and `force_download` of the Hub; those of transformers that
                change nothing here.

        Raises:
            CheckpointError: see `model_files`; or a file that asks for what this class cannot do.
            TypeError, ValueError: wrong arguments, or ones that ask to load in a way that is not
                there.
        """
        fetch = FetchOptions.taken_from(kwargs)
        refuse_without_meaning(kwargs)
        cls.from_dict({}, **kwargs)  # raises for wrong ones, of which the file is not to blame
        if not fetch.subfolder and os.path.isfile(pretrained_model_name_or_path):
            file = Path(pretrained_model_name_or_path)
            return cls._read(file, where=str(file.parent), **kwargs)
        where = at_revision(pretrained_model_name_or_path, revision)
        (file,) = model_files(
            where, (PREPROCESSOR_FILE,), storage_options=storage_options, fetch=fetch
        )
        return cls._read(file, where=where, **kwargs)

    @classmethod
    def _read(cls, file: Path, *, where: str, **kwargs: Any) -> Self:
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")), **kwargs)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where}: {file.name}: {error}") from error


ImageGPTFeatureExtractor = ImageGPTImageProcessor
"""The image processor under the name that transformers 4 had for it."""


def _values(pixels: Pixels, normalize: bool, compat: str) -> npt.NDArray[Any]:
    if normalize:
        return pixels_to_unit(pixels)
    return pixels if compat == "4.34" else pixels.astype(np.float32) / np.float32(255)


def _nearest(
    pixels: Pixels, values: npt.NDArray[Any], clusters: FloatArray
) -> npt.NDArray[np.int64]:
    """Finds the nearest clusters (H * W,), of any range, of the values of pixels (H, W, 3)."""
    colors, first, inverse = np.unique(pack_rgb(pixels), return_index=True, return_inverse=True)
    x = values.reshape(-1, 3)[first].astype(np.float64)
    c = clusters.astype(np.float64)
    nearest = np.empty(len(colors), np.int64)
    step = max(1, (1 << 22) // len(c))  # 32 MiB of distances at a time
    for start in range(0, len(colors), step):
        part = x[start : start + step]
        nearest[start : start + step] = ((c**2).sum(axis=1) - 2 * part @ c.T).argmin(axis=1)
    return nearest[inverse].reshape(-1)
