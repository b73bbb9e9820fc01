"""Any checkpoint that this library reads, as one safetensors folder that transformers loads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from igpt_core.conversion.openai import is_openai, read_openai
from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import is_remote, model_files, resolve_revision
from igpt_core.heads import HEADS
from igpt_core.images.image_processor import PREPROCESSOR_FILE, ImageGPTImageProcessor
from igpt_core.images.model_palette import load_palette
from igpt_core.model.checkpoint import ImageGPTPreTrainedModel
from igpt_core.model.config import CONFIG_FILE, ImageGPTConfig, read_config
from igpt_core.model.saving import check_colors, make_processor, save_folder
from igpt_core.model.weights import find_weights, read_weights

KMEANS_FILE = "kmeans_centers.npy"  # the palette beside OpenAI's checkpoints

_HEAD_OF_WEIGHT = {"lm_head.weight": "causal", "score.weight": "classification"}


@dataclass(frozen=True)
class Converted:
    """What was written."""

    architecture: str  # the class that config.json names
    config: ImageGPTConfig
    n_weights: int
    dtype: torch.dtype
    processor: ImageGPTImageProcessor | None  # of preprocessor_config.json, where there is one


def convert_checkpoint(
    source: str,
    output: str | os.PathLike[str],
    *,
    palette: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Converted:
    """Reads a checkpoint strictly and writes it as a model folder, with all the heads it has.

    Args:
        source: a TensorFlow checkpoint of OpenAI's (its prefix, `.../model.ckpt-131000`), or a
            model folder with weights of any format, in one file or in shards: local, a URI or a
            hub id.
        output: a local folder, see `save_folder`.
        palette: an `.npy` file or a model folder; unless given, what the source's
            preprocessor_config.json holds, or else `kmeans_centers.npy` beside it.
        dtype: of the weights; that of the stored ones unless given.
        overwrite: replace a model that is in `output`.
        storage_options: for the URI's filesystem.

    Raises:
        CheckpointError: an output that is taken, a source that is damaged or holds another model,
            or a palette that does not fit it.
        TypeError: a dtype that is no float one, which would leave nothing of the weights.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"convert_checkpoint: expected a float dtype for weights, found {dtype}")
    _check_output(output, overwrite=overwrite)
    if is_openai(source) and not Path(source).is_dir():
        architecture = HEADS["causal"].__name__
        config, weights = read_openai(source, storage_options=storage_options)
        folder, name = os.path.split(source)
        beside: tuple[str, ...] = (KMEANS_FILE, name.removesuffix(".index") + ".index")
    else:
        folder = source = resolve_revision(source, (CONFIG_FILE,))
        architecture, config, weights = _read_folder(source, storage_options)
        beside = (PREPROCESSOR_FILE, KMEANS_FILE, CONFIG_FILE)
    processor = _processor(config, folder or ".", beside, palette, storage_options)
    dtype = dtype or next(iter(weights.values())).dtype
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    save_folder(output, config, weights, architecture=architecture, processor=processor)
    n_weights = sum(weight.numel() for weight in weights.values())
    return Converted(architecture, config, n_weights, dtype, processor)


def _check_output(output: str | os.PathLike[str], *, overwrite: bool) -> None:
    folder = Path(output)
    if is_remote(os.fspath(output)) or (folder.exists() and not folder.is_dir()):
        raise CheckpointError(f"expected a local folder to write a model in, found {output}")
    if (folder / CONFIG_FILE).exists():
        if not overwrite:
            raise CheckpointError(
                f"{output} holds a model; next: another output, or overwrite to replace it"
            )
    elif folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise CheckpointError(f"{output} is not empty and holds no model; next: another output")


def _read_folder(
    source: str, storage_options: Mapping[str, Any] | None
) -> tuple[str, ImageGPTConfig, dict[str, Tensor]]:
    """Reads the class that the folder is for, its configuration, its weights with all heads."""
    config_file, weights_file = find_weights(source, CONFIG_FILE, storage_options=storage_options)
    config = read_config(config_file, where=source)
    stored = read_weights(weights_file, where=source)
    classes = [HEADS[head] for name, head in _HEAD_OF_WEIGHT.items() if name in stored]
    declared = _declared_class(config)
    if declared in classes or not classes:
        classes.insert(0, declared or HEADS[None])
    weights: dict[str, Tensor] = {}
    for cls in classes:
        weights |= cls.fit(config, stored, where=source)[1]
    return classes[0].__name__, config, weights


def _declared_class(config: ImageGPTConfig) -> type[ImageGPTPreTrainedModel] | None:
    """Returns the class that config.json says the weights are for: without its head, a folder is
    not whole."""
    names = getattr(config, "architectures", None) or ()
    return next((cls for cls in HEADS.values() if cls.__name__ in names), None)


def _processor(
    config: ImageGPTConfig,
    folder: str,
    beside: Sequence[str],
    palette: str | None,
    storage_options: Mapping[str, Any] | None,
) -> ImageGPTImageProcessor | None:
    """Makes the processor to write: the source's own, with the palette that is given.

    Args:
        folder: of the source.
        beside: files that may be in it, the preferred first; the last one is there, so that
            another is only passed over where it does not exist.
    """
    (file,) = model_files(folder, beside, storage_options=storage_options)
    own = colors = None
    if file.name == PREPROCESSOR_FILE:
        own = ImageGPTImageProcessor.from_pretrained(folder, storage_options=storage_options)
    if palette is not None:
        colors = load_palette(palette, storage_options)
    elif file.name == KMEANS_FILE:
        colors = load_palette(file)
    try:
        if own is None:
            return None if colors is None else make_processor(config, colors)
        if colors is not None:
            own.clusters = colors.colors
        check_colors(config, own)
    except CheckpointError as error:
        raise CheckpointError(f"{palette or f'{folder}/{file.name}'}: {error}") from error
    return own
