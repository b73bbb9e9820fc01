"""Writing model folders that transformers reads: at every moment the old model, none, or the new.

A folder holds config.json, model.safetensors and, where there is a palette,
preprocessor_config.json.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isqrt
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import is_remote
from igpt_core.images.image_processor import PREPROCESSOR_FILE, ImageGPTImageProcessor
from igpt_core.images.palette import Palette
from igpt_core.model.config import CONFIG_FILE, ImageGPTConfig
from igpt_core.model.weights import SAFETENSORS_FILE, weights_files

_TEMPORARY = ".saving-"  # before the name of a folder that a save writes in


def save_folder(
    path: str | os.PathLike[str],
    config: ImageGPTConfig,
    weights: Mapping[str, Tensor],
    *,
    architecture: str,
    processor: ImageGPTImageProcessor | None = None,
) -> None:
    """Writes a model folder.

    Everything is written below a temporary name first. Then old weights are removed and the files
    renamed, the weights last: a killed save leaves the old model or one without weights. What it
    leaves beside them the next save removes.

    Args:
        path: a local folder, made if need be; a model that is in it is replaced.
        weights: name to tensor, of one dtype.
        architecture: the name of the class that the weights are for.
        processor: for preprocessor_config.json. Without it that file is not written, and stays
            if it is there.

    Raises:
        CheckpointError: a URI, or a processor of another number of colors than the model has.
    """
    folder = Path(path)
    if is_remote(os.fspath(path)):
        raise CheckpointError(f"expected a local folder to save a model in, found {path}")
    texts = {CONFIG_FILE: _config_text(config, weights, architecture)}
    if processor is not None:
        check_colors(config, processor)
        texts[PREPROCESSOR_FILE] = json.dumps(processor.to_dict(), indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        _at_work(folder),
        tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary,
    ):
        for name, text in texts.items():
            Path(temporary, name).write_text(text, encoding="utf-8")
        stored = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        save_file(stored, Path(temporary, SAFETENSORS_FILE), metadata={"format": "pt"})
        # safetensors lets only the owner read; others are to load the model too
        shutil.copymode(Path(temporary, CONFIG_FILE), Path(temporary, SAFETENSORS_FILE))
        for file in weights_files(folder):
            file.unlink()
        for name in (*texts, SAFETENSORS_FILE):
            os.replace(Path(temporary, name), folder / name)


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Marks this save as one at work in a folder, by a shared lock, which a process that dies lets
    go of; removes first what dead ones have left, where no other is at work."""
    if os.name != "posix":  # no such locks: what is left stays
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # others are at work, or the filesystem has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def make_processor(
    config: ImageGPTConfig, palette: Palette, image_size: int | None = None
) -> ImageGPTImageProcessor:
    """Makes the processor of images for a model.

    Args:
        palette: n_colors colors.
        image_size: side of the images; the root of n_positions unless given.

    Raises CheckpointError for a palette or an image size that does not fit the model.
    """
    size = isqrt(config.n_positions) if image_size is None else image_size
    if size**2 > config.n_positions or (image_size is None and size**2 != config.n_positions):
        raise CheckpointError(
            f"expected an image_size whose square is at most the model's {config.n_positions} "
            f"positions, found {image_size}"
        )
    processor = ImageGPTImageProcessor(palette.colors, size=size)
    check_colors(config, processor)
    return processor


def check_colors(config: ImageGPTConfig, processor: ImageGPTImageProcessor) -> None:
    """Raises CheckpointError where the processor's palette is not of the model's size."""
    if processor.clusters is not None and len(processor.clusters) != config.n_colors:
        raise CheckpointError(
            f"expected a palette of the model's {config.n_colors} colors, found "
            f"{len(processor.clusters)}"
        )


def _config_text(config: ImageGPTConfig, weights: Mapping[str, Tensor], architecture: str) -> str:
    fields = config.to_dict()
    fields.pop("torch_dtype", None)  # the former name of dtype
    fields["architectures"] = [architecture]
    fields["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    return ImageGPTConfig.from_dict(fields).to_json()
