"""Model folders in Hugging Face's layout, in and out: strict about what the weights must be.

A folder holds config.json, a file of weights and, where images are to be quantized,
preprocessor_config.json with the palette and the image size.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from igpt_core.config import CONFIG_FILE, ImageGPTConfig, read_config
from igpt_core.image_processor import PREPROCESSOR_FILE, ImageGPTImageProcessor
from igpt_core.model_files import CheckpointError as CheckpointError
from igpt_core.model_files import is_remote, model_files
from igpt_core.model_files import resolve as resolve
from igpt_core.palette import Palette
from igpt_core.weights import SAFETENSORS_FILE, WEIGHTS_FILES, mismatch, read_weights, rename

# Fields of config.json that say how the file came about and change no result.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class PreTrained(nn.Module):
    """What the model classes share: made as `cls(config)`, they come from and go to folders."""

    config: ImageGPTConfig

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """The model of a folder, in eval mode.

        Args:
            path_or_uri: a local folder, "embedded", or the URI of a folder on any fsspec
                filesystem, of which the files needed are fetched once per node.
            dtype: of the weights; that of the stored ones unless given.
            storage_options: for the URI's filesystem.

        Raises:
            CheckpointError: no such folder, a file missing or damaged, or weights that do not
                fit config.json. Weights of other heads than the class has are left out.
        """
        model, weights = cls._read(path_or_uri, storage_options)
        if dtype is None:
            dtype = weights[next(iter(model.state_dict()))].dtype
        # One by one, so that beside the mapped file there is only what the model keeps.
        for name in list(weights):
            weights[name] = weights.pop(name).to(device, dtype, copy=True)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    @classmethod
    def check_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ImageGPTConfig:
        """The configuration of a folder that `from_pretrained` would load: no weight is read.

        Raises CheckpointError as `from_pretrained` does.
        """
        return cls._read(path_or_uri, storage_options)[0].config

    @classmethod
    def _read(
        cls, path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
    ) -> tuple[Self, dict[str, Tensor]]:
        """The model without weights, and the weights of the folder, which fit it."""
        where = os.fspath(path_or_uri)
        config_file, weights_file = model_files(
            path_or_uri, (CONFIG_FILE,), WEIGHTS_FILES, storage_options=storage_options
        )
        config = read_config(config_file, where=where)
        try:
            with torch.device("meta"), _NoDraws():  # shapes only: nothing is allocated
                model = cls(config)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
        wanted = model.state_dict()
        weights = rename(read_weights(weights_file, where=where), wanted)
        if problem := mismatch(weights, wanted):
            raise CheckpointError(f"{where}: its weights do not fit {cls.__name__}: {problem}")
        return model, weights

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors; see `save_checkpoint`."""
        save_checkpoint(self, path)


class _NoDraws(TorchFunctionMode):
    """Leaves out random initialisation: on shapes alone it is of no use and costs seconds, as
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


def save_checkpoint(
    model: PreTrained,
    path: str | os.PathLike[str],
    *,
    palette: Palette | None = None,
    image_size: int | None = None,
) -> None:
    """Write a model folder, which transformers reads as well, in the dtype of the model.

    Everything is written below a temporary name first. Then old weights are removed and the files
    renamed, the weights last: a killed save leaves the old model or one without weights.

    Args:
        path: a local folder, made if need be; a model that is in it is replaced.
        palette: n_colors colours, for preprocessor_config.json. Without it that file is not
            written, and stays if it is there.
        image_size: side of the images of preprocessor_config.json; the root of n_positions
            unless given.

    Raises:
        CheckpointError: a URI, or a palette or image size that does not fit the model.
    """
    folder = Path(path)
    if is_remote(os.fspath(path)):
        raise CheckpointError(f"expected a local folder to save a model in, found {path}")
    texts = {CONFIG_FILE: _config_text(model)}
    if palette is not None:
        texts[PREPROCESSOR_FILE] = _preprocessor_text(model.config, palette, image_size)
    elif image_size is not None:
        raise CheckpointError("image_size is stored with the palette: give both or none")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        for name, text in texts.items():
            Path(temporary, name).write_text(text, encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, Path(temporary, SAFETENSORS_FILE), metadata={"format": "pt"})
        # safetensors lets only the owner read; others are to load the model too
        shutil.copymode(Path(temporary, CONFIG_FILE), Path(temporary, SAFETENSORS_FILE))
        for name in WEIGHTS_FILES:
            (folder / name).unlink(missing_ok=True)
        for name in (*texts, SAFETENSORS_FILE):
            os.replace(Path(temporary, name), folder / name)


def load_palette(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Palette:
    """The palette of a model folder (its `clusters`), or of an `.npy` file, see `Palette.load`.

    Raises CheckpointError; ValueError for a file that is not a palette.
    """
    where = os.fspath(path_or_uri)
    if where.endswith(".npy"):
        folder, name = os.path.split(where)
        (file,) = model_files(folder or ".", (name,), storage_options=storage_options)
        try:
            return Palette.load(file)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    processor = ImageGPTImageProcessor.from_pretrained(where, storage_options=storage_options)
    try:
        if processor.clusters is None:
            raise ValueError("expected clusters, the palette, found none")
        return Palette(processor.clusters)
    except ValueError as error:
        raise CheckpointError(f"{where}: {PREPROCESSOR_FILE}: {error}") from error


def load_image_size(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> int:
    """The side in pixels of the images of a model folder, which must be square."""
    where = os.fspath(path_or_uri)
    processor = ImageGPTImageProcessor.from_pretrained(where, storage_options=storage_options)
    size = processor.size
    if size["height"] != size["width"]:
        raise CheckpointError(f"{where}: {PREPROCESSOR_FILE}: expected a square, found {size}")
    return size["height"]


def model_fingerprint(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> str:
    """32 hex digits over the configuration and the weights.

    The same for both file formats and any place; another where a field or a weight's name, dtype,
    shape or bits differ. Reads all the weights.
    """
    where = os.fspath(path_or_uri)
    config_file, weights_file = model_files(
        path_or_uri, (CONFIG_FILE,), WEIGHTS_FILES, storage_options=storage_options
    )
    fields = read_config(config_file, where=where).to_dict()
    fields = {name: value for name, value in fields.items() if name not in _BOOKKEEPING}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    weights = read_weights(weights_file, where=where)
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _config_text(model: PreTrained) -> str:
    fields = model.config.to_dict()
    fields.pop("torch_dtype", None)  # the former name of dtype
    fields["architectures"] = [type(model).__name__]
    fields["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return ImageGPTConfig.from_dict(fields).to_json()


def _preprocessor_text(config: ImageGPTConfig, palette: Palette, image_size: int | None) -> str:
    if len(palette) != config.n_colors:
        raise CheckpointError(
            f"expected a palette of the model's {config.n_colors} colours, found {len(palette)}"
        )
    size = isqrt(config.n_positions) if image_size is None else image_size
    if size**2 > config.n_positions or (image_size is None and size**2 != config.n_positions):
        raise CheckpointError(
            f"expected an image_size whose square is at most the model's {config.n_positions} "
            f"positions, found {image_size}"
        )
    processor = ImageGPTImageProcessor(palette.colors, size=size)
    return json.dumps(processor.to_dict(), indent=2, sort_keys=True) + "\n"
