"""What a job computes with, as the driver knows it: the model, the palette, device and dtype."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from igpt_core.errors import NoHeadError
from igpt_core.files.model_files import EMBEDDED, resolve_revision
from igpt_core.heads import HEADS
from igpt_core.images.image_processor import PREPROCESSOR_FILE
from igpt_core.images.palette import Palette
from igpt_core.model.checkpoint import load_image_size, load_palette, model_fingerprint
from igpt_core.model.config import CONFIG_FILE, VARIANTS, ImageGPTConfig
from pipeline.engine import cluster
from pipeline.engine.batch_size import CPU, Memory, forward_images, free_gpu_bytes, sampling_images
from pipeline.engine.progress import Mode
from pipeline.errors import UsageError
from pipeline.options import ModelOptions
from pipeline.stages.model_batches import RANDOM
from pipeline.storage.filesystem import absolute_model, options_for


@dataclass(frozen=True)
class Quantizer:
    """What makes tokens of pixels: where the palette lies, and the size of the images."""

    location: str
    palette: Palette
    image_size: int


@dataclass(frozen=True)
class Model:
    """A model as the driver knows it: without its weights."""

    location: str
    config: ImageGPTConfig
    fingerprint: str
    quantizer: Quantizer


@dataclass(frozen=True)
class Compute:
    """Where a model computes ("cpu" or "cuda"), and the name of the dtype."""

    device: str
    dtype: str


def find_quantizer(location: str, image_size: int | None, options: Mapping[str, Any]) -> Quantizer:
    """The palette and image size of a model folder, or of a palette file and a given size."""
    location = resolve_revision(absolute_model(location), (PREPROCESSOR_FILE,))
    palette = load_palette(location, storage_options=options)
    if image_size is None:
        image_size = load_image_size(location, storage_options=options)
    return Quantizer(location, palette, image_size)


# The next move where a model lacks a head.
_HEADLESS: dict[str | None, str] = {
    "causal": "has no next-pixel head; next: a model of igpt train or a published one (igpt "
    "finetune takes this one with --next-pixel-weight 0)",
    "classification": "has no classification head; next: igpt finetune gives it one",
}


def find_model(location: str, options: Mapping[str, Any], *, head: str | None = "causal") -> Model:
    """The model of a folder, checked but not loaded.

    Args:
        head: of igpt_core.heads.HEADS, which the folder must have.

    Raises CheckpointError for a folder that holds none, UsageError for one that lacks the head
    or whose palette or image size does not fit.
    """
    given, location = location, resolve_revision(absolute_model(location), (CONFIG_FILE,))
    try:
        config = HEADS[head].check_pretrained(location, storage_options=options)
    except NoHeadError as error:
        raise UsageError(f"{given} {_HEADLESS[head]}") from error
    quantizer = find_quantizer(location, None, options)
    if quantizer.image_size**2 > config.n_positions or len(quantizer.palette) > config.n_colors:
        raise UsageError(
            f"{given} has {config.n_positions} positions and {config.n_colors} colors, its "
            f"preprocessor_config.json {quantizer.image_size} x {quantizer.image_size} pixels and "
            f"{len(quantizer.palette)} colors; next: a model folder whose files fit"
        )
    return Model(location, config, model_fingerprint(location, options), quantizer)


def model_of(options: ModelOptions, *, head: str | None = "causal") -> Model:
    """The model that the options of a job name; see `find_model`."""
    if options.random_weights:
        return _random_model(options.model, head)
    return find_model(options.model, options_for(options.storage_options, "model"), head=head)


def _random_model(variant: str, head: str | None) -> Model:
    """A model of a published size as every actor makes it, with the shipped palette."""
    if variant not in VARIANTS or head == "classification":
        raise UsageError(
            f"--random-weights needs --model {', '.join(VARIANTS)} and a job without classes, "
            f"found {variant}"
        )
    location = f"{RANDOM}{variant}"
    return Model(location, VARIANTS[variant], location, find_quantizer(EMBEDDED, None, {}))


def find_compute(options: ModelOptions, *, grows: bool = False) -> Compute:
    """Where and in what to compute, on the cluster that is joined. Raises UsageError.

    Args:
        grows: whether GPUs that are not there may come; see `cluster.may_grow`.
    """
    device = options.device
    if device == "auto":
        if cluster.is_empty():
            raise UsageError(
                "expected --device where the cluster has no CPU and no GPU yet, found none; next: "
                "--device cuda --model-actors N, for which its autoscaler brings N GPUs, or "
                "--device cpu"
            )
        device = "cuda" if cluster.gpus() else "cpu"
    elif device == "cuda" and not cluster.gpus() and not (grows and options.model_actors):
        more = "--model-actors N, for which its autoscaler brings N GPUs, or " if grows else ""
        raise UsageError(f"expected a GPU for --device cuda, found none; next: {more}--device cpu")
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    return Compute(device, dtype)


def forward_batches(model: Model, options: ModelOptions) -> Callable[[Compute], int]:
    """Images that are looked at together: as the options say, or what memory holds."""

    def images(compute: Compute) -> int:
        return options.batch_size or forward_images(
            model.config,
            model.quantizer.image_size**2,
            dtype=compute.dtype,
            memory=memory(compute, options.progress),
        )

    return images


def sampling_batches(model: Model, options: ModelOptions, n: int) -> Callable[[Compute], int]:
    """Images that are decoded together, each with the n that are drawn of it.

    Raises UsageError where a batch as the options give it does not hold one.
    """
    given = options.batch_size
    if given is not None and given < n:
        raise UsageError(
            f"--batch-size {given} is below the {n} images that are drawn of each row "
            "(--samples, --best-of): they are computed together"
        )

    def images(compute: Compute) -> int:
        if given is not None:
            return given // n
        positions, room = model.quantizer.image_size**2, memory(compute, options.progress)
        return sampling_images(model.config, positions, n=n, dtype=compute.dtype, memory=room)

    return images


def memory(compute: Compute, progress: Mode) -> Memory:
    """Of the device, on the cluster that is joined. Raises RunFailed; see `free_gpu_bytes`."""
    if compute.device == "cpu":
        return CPU
    return Memory.of_gpu(free_gpu_bytes(progress=progress))
