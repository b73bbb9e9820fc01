"""What a job computes with, as the driver knows it: the model, device and dtype."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from igpt_core.files.model_files import EMBEDDED, resolve_revision
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.interface.batch_size import Memory, forward_images, sampling_images
from igpt_core.interface.model_folder import check_head, check_sizes
from igpt_core.model.checkpoint import model_fingerprint
from igpt_core.model.config import CONFIG_FILE, VARIANTS, ImageGPTConfig
from igpt_core.model.placement import best_dtype
from pipeline.batch.quantizer import Quantizer, find_quantizer
from pipeline.engine import allocation
from pipeline.engine.gpu import free_gpu_bytes
from pipeline.engine.progress import Mode
from pipeline.errors import UsageError
from pipeline.options import ModelOptions, SamplingOptions
from pipeline.stages.model_batches import RANDOM
from pipeline.stages.sampling import Drawing
from pipeline.storage.filesystem import absolute_model, options_for

CPU = Memory.of_cpu(1 << 30)  # every actor of a machine has such a share of its memory
_FEWER_SEQUENCES = 16


@dataclass(frozen=True)
class Model:
    """A model as the driver knows it: without its weights."""

    location: str
    config: ImageGPTConfig
    fingerprint: str
    quantizer: Quantizer


def find_model(location: str, options: Mapping[str, Any], *, head: str | None = "causal") -> Model:
    """Returns the model of a folder, checked but not loaded.

    Args:
        head: of igpt_core.heads.HEADS, which the folder must have.

    Raises CheckpointError for a folder that holds none, that lacks the head, or whose palette or
    image size does not fit.
    """
    location = resolve_revision(absolute_model(location), (CONFIG_FILE,))
    config = check_head(location, head, options)
    quantizer = find_quantizer(location, None, options)
    check_sizes(location, config, quantizer.palette, quantizer.image_size)
    return Model(location, config, model_fingerprint(location, options), quantizer)


def model_of(options: ModelOptions, *, head: str | None = "causal") -> Model:
    """Returns the model that the options of a job name; see `find_model`."""
    if options.random_weights:
        return _random_model(options.model, head)
    return find_model(options.model, options_for(options.storage_options, "model"), head=head)


def _random_model(variant: str, head: str | None) -> Model:
    """Returns a model of a published size with random weights, the same in every actor."""
    if variant not in VARIANTS or head == "classification":
        raise UsageError(
            f"--random-weights needs --model {', '.join(VARIANTS)} and a job without classes, "
            f"found {variant}"
        )
    location = f"{RANDOM}{variant}"
    return Model(location, VARIANTS[variant], location, find_quantizer(EMBEDDED, None, {}))


def find_device(options: ModelOptions, *, grows: bool = False) -> tuple[str, str]:
    """Returns the device ("cpu" or "cuda") and the name of the dtype in which a model computes on
    the cluster that is joined. Raises UsageError.

    Args:
        grows: whether GPUs that are not there may come; see `allocation.may_grow`.
    """
    device = options.device
    if device == "auto":
        if allocation.is_empty():
            raise UsageError(
                "expected --device where the cluster has no CPU and no GPU yet, found none; next: "
                "--device cuda --model-actors N, for which its autoscaler brings N GPUs, or "
                "--device cpu"
            )
        device = "cuda" if allocation.gpus() else "cpu"
    elif device == "cuda" and not allocation.gpus() and not (grows and options.model_actors):
        more = "--model-actors N, for which its autoscaler brings N GPUs, or " if grows else ""
        raise UsageError(f"expected a GPU for --device cuda, found none; next: {more}--device cpu")
    if options.dtype != "auto":
        return device, options.dtype
    # On CPUs by this machine's, for which those of the nodes are taken.
    return device, str(best_dtype(device)).removeprefix("torch.")


def forward_batches(model: Model, options: ModelOptions) -> Callable[[str, str, int | None], int]:
    """Returns how many images are looked at together, by device, dtype and rows: as the options
    say, or what memory holds."""

    def images(device: str, dtype: str, n_rows: int | None) -> int:
        return options.batch_size or forward_images(
            model.config,
            model.quantizer.image_size**2,
            dtype=getattr(torch, dtype),
            memory=memory(device, options.progress),
        )

    return images


def sampling_batches(
    model: Model, options: ModelOptions, n_drawn: int, *, cache_dtype: str | None
) -> Callable[[str, str, int | None], int]:
    """Returns how many images are decoded together, by device, dtype and rows, each with the
    samples that are drawn of it. `cache_dtype`: as of `SamplingOptions`.

    Raises UsageError where a batch as the options give it does not hold one image.
    """
    given = options.batch_size
    if given is not None and given < n_drawn:
        raise UsageError(
            f"--batch-size {given} is below the {n_drawn} samples that are drawn of each row "
            "(--samples, --best-of): they are computed together"
        )

    def images(device: str, dtype: str, n_rows: int | None) -> int:
        if given is not None:
            return given // n_drawn
        positions, room = model.quantizer.image_size**2, memory(device, options.progress)
        if device == "cpu":  # where nobody has counted the rows these may be few
            n_actors = allocation.auto_model_actors(device)
            room = shared_by(room, (n_rows or 0) * n_drawn, n_actors)
        return sampling_images(
            model.config,
            positions,
            n=n_drawn,
            dtype=getattr(torch, dtype),
            memory=room,
            kv_cache_dtype=None if cache_dtype is None else getattr(torch, cache_dtype),
        )

    return images


def drawing_of(options: SamplingOptions, n_samples: int, n_drawn: int) -> Drawing:
    """Returns how pixels are drawn: `n_samples` images are kept of the `n_drawn` of each row."""
    sampling = SamplingConfig(options.temperature, options.top_k, options.top_p)
    return Drawing(n_samples, n_drawn, options.scored, options.seed, sampling)


def shared_by(memory: Memory, n_sequences: int, n_actors: int) -> Memory:
    """Returns the same with fewer sequences together, but not below 16, where otherwise the actors
    would not have two batches each."""
    most = max(-(-n_sequences // (2 * n_actors)), _FEWER_SEQUENCES)
    return replace(memory, most_sequences=min(most, memory.most_sequences))


def memory(device: str, progress: Mode) -> Memory:
    """Returns the memory of a device of the cluster that is joined. Raises RunFailed; see
    `free_gpu_bytes`."""
    return CPU if device == "cpu" else Memory.of_gpu(free_gpu_bytes(progress=progress))
