"""igpt complete: finish images from their upper part."""

import torch
from pydantic import Field

from igpt_core.kv_cache import KVCache
from jobs.command import command
from pipeline import cluster, rows
from pipeline.job import Compute, Model, find_compute, find_model, prepare, start
from pipeline.options import ImageJobOptions, ModelOptions
from pipeline.stage import Stage
from pipeline.stages.generate import Complete
from pipeline.storage import UsageError, options_for


class CompleteOptions(ModelOptions, ImageJobOptions):
    keep: float = Field(0.5, gt=0, lt=1, description="share of the rows that are given")
    samples: int = Field(1, ge=1, description="completions of each image")
    temperature: float = Field(1.0, gt=0, description="below 1: safer colours")
    top_k: int | None = Field(None, ge=1, description="draw from the k likeliest colours")
    top_p: float | None = Field(None, gt=0, le=1, description="from the fewest that reach p")
    seed: int = Field(0, description="of the run")


def run(options: CompleteOptions) -> None:
    model_options = options_for(options.storage_options, "model")
    begun = start(options)
    model = find_model(options.model, model_options)
    given = prompt_length(options.keep, model.quantizer.image_size)
    with cluster.connected(options.address):
        compute = find_compute(options)
        images = images_per_batch(options, model, compute)
        job = prepare(
            "complete",
            begun,
            columns=rows.complete_columns(model.quantizer.image_size**2),
            quantizer=model.quantizer,
            model=model,
            compute=compute,
            results={
                "batch_size": images * options.samples,
                **options.model_dump(
                    include={"keep", "samples", "temperature", "top_k", "top_p", "seed"}
                ),
            },
            default_shard_size=lambda n: cluster.shard_size(n, images, compute.device),
        )
        arguments = {
            "model": model.location,
            "device": compute.device,
            "dtype": compute.dtype,
            "images_per_batch": images,
            "n_samples": options.samples,
            "prompt_length": given,
            "seed": options.seed,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "model_options": model_options,
        }
        job.run(
            [
                job.read_images(),
                Stage(Complete, arguments, job.allotment.model),
                job.write_parts(),
            ]
        )


# Memory that the cache of one model batch may take, and sequences beyond which no more is gained.
CACHE_BYTES = {"cuda": 8 << 30, "cpu": 1 << 30}
MOST_SEQUENCES = {"cuda": 512, "cpu": 16}


def images_per_batch(options: CompleteOptions, model: Model, compute: Compute) -> int:
    """Images decoded together, an image's samples among them."""
    sequences = options.batch_size
    if sequences is not None and sequences < options.samples:
        raise UsageError(
            f"--batch-size {sequences} is below --samples {options.samples}: an image's samples "
            "are computed together"
        )
    if sequences is None:
        row = KVCache.bytes_per_row(
            model.config, model.quantizer.image_size**2, getattr(torch, compute.dtype)
        )
        sequences = min(CACHE_BYTES[compute.device] // row, MOST_SEQUENCES[compute.device])
    return max(sequences // options.samples, 1)


def prompt_length(keep: float, image_size: int) -> int:
    """Positions given: whole rows. Raises UsageError where that is none or all of them."""
    given = round(keep * image_size)
    if not 0 < given < image_size:
        raise UsageError(
            f"--keep {keep} of {image_size} rows is {given}: expected at least one row given and "
            "one to paint"
        )
    return given * image_size


COMMAND = command(
    "complete",
    CompleteOptions,
    run,
    help="Finish images from their upper part: quantize, complete, write Parquet and a report.",
    example="igpt complete --input photos/ --output out/photos --samples 4 --top-k 100",
)
