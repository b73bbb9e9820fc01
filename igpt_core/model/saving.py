"""Writing model folders that transformers reads: at every moment the old model, none, or the new.

A folder holds config.json, model.safetensors and, where there is a palette,
preprocessor_config.json.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import is_remote
from igpt_core.images.image_processor import PREPROCESSOR_FILE, ImageGPTImageProcessor
from igpt_core.images.palette import Palette
from igpt_core.model.config import CONFIG_FILE, ImageGPTConfig
from igpt_core.model.weights import INDEX, PICKLE_FILE, SAFETENSORS_FILE, weights_files

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B", re.IGNORECASE)
_TEMPORARY = ".saving-"  # before the name of a folder that a save writes in


def save_folder(
    path: str | os.PathLike[str],
    config: ImageGPTConfig,
    weights: Mapping[str, Tensor],
    *,
    architecture: str,
    processor: ImageGPTImageProcessor | None = None,
    pickled: bool = False,
    max_shard_bytes: int | None = None,
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
        pickled: write pytorch_model.bin in place of safetensors.
        max_shard_bytes: write several files of weights, none with more but for one weight that is
            larger itself, and their index. One file unless given.

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
        written = _write_weights(Path(temporary), weights, pickled, max_shard_bytes)
        for file in weights_files(folder):
            file.unlink()
        for name in (*texts, *written):
            os.replace(Path(temporary, name), folder / name)


def _write_weights(
    folder: Path, weights: Mapping[str, Tensor], pickled: bool, max_shard_bytes: int | None
) -> list[str]:
    """Writes weights, and returns the names of the files, the one that is looked for last."""
    whole = PICKLE_FILE if pickled else SAFETENSORS_FILE
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in weights.items():
        size = sum(held.nbytes for held in shards[-1].values()) + tensor.nbytes
        if shards[-1] and max_shard_bytes is not None and size > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor.detach().cpu().contiguous()
    names = [whole]
    if len(shards) > 1:
        stem, _, suffix = whole.rpartition(".")
        names = [f"{stem}-{i:05}-of-{len(shards):05}.{suffix}" for i in range(1, len(shards) + 1)]
    for name, held in zip(names, shards, strict=True):
        if pickled:
            torch.save(held, folder / name)
        else:
            save_file(held, folder / name, metadata={"format": "pt"})
            # safetensors lets only the owner read; others are to load the model too
            shutil.copymode(folder / CONFIG_FILE, folder / name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
            "weight_map": {
                key: name for name, held in zip(names, shards, strict=True) for key in held
            },
        }
        names.append(whole + INDEX)
        (folder / names[-1]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names


def parsed_size(size: int | str | None) -> int | None:
    """Returns the bytes of a size such as 5000000, "200MB" or "5GiB"; None for none.

    Raises ValueError for what is no size.
    """
    if size is None or isinstance(size, int):
        return size
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError(f'expected a size in bytes or as "200MB" or "5GiB", found {size!r}')
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


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
