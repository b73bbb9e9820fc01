"""igpt complete: finish images from their upper part."""

from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field

from jobs.command import batch_command
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions, ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from pipeline.batch.job import JobSpec
    from pipeline.inputs.source import Source


class CompleteOptions(SamplingOptions, ModelOptions, ImageJobOptions):
    keep: Annotated[str, BeforeValidator(str)] = Field(
        "0.5", description="known: 0.5 of the rows, 16rows, 500pixels, or all"
    )
    samples: int = Field(1, ge=1, description="completions of each image")
    mask: str | None = Field(
        None, description="image, or folder of one per id; black pixels are known too"
    )
    prompt_column: str | None = Field(
        None, description="column of prompt tokens, in place of images"
    )


def define(options: CompleteOptions) -> "JobSpec":
    from igpt_core.generation.known_pixels import prompt_length
    from pipeline import rows
    from pipeline.batch.job import JobSpec, find_input
    from pipeline.batch.model import drawing_of, model_of, sampling_batches
    from pipeline.inputs.masks import find_mask
    from pipeline.stages.generate import Complete
    from pipeline.storage.filesystem import options_for

    is_part = options.keep.strip() == "all"
    prompts = is_part or options.prompt_column is not None
    if options.mask is not None and options.prompt_column is not None:
        raise UsageError("give either --mask or --prompt-column, found both")
    if is_part:
        _refuse_beside_all(options)
    model = model_of(options)
    size = model.quantizer.image_size
    try:
        masked = options.mask is not None
        given = 0 if prompts else prompt_length(options.keep, size, masked=masked)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if options.best_of is not None and options.best_of < options.samples:
        raise UsageError(
            f"--best-of {options.best_of} is below --samples {options.samples}: expected as many "
            "drawn as are kept"
        )
    drawn = options.best_of or options.samples
    mask = find_mask(options.mask, options_for(options.storage_options, "input"))
    drawing = drawing_of(options, options.samples, drawn)

    def find_given() -> "Source":
        return find_input(options, prompt_column=options.prompt_column)

    def find_parts() -> "Source":
        source = find_given()
        if source.format == "tokens":
            raise UsageError(
                f"--keep all is for images, {options.input} holds tokens; next: --prompt-column "
                f"{source.image_column} for tokens that begin images"
            )
        return source

    return JobSpec(
        name="complete",
        options=options,
        columns=rows.complete_columns(size**2, prompts=prompts, scored=options.scored),
        quantizer=model.quantizer,
        find_source=find_parts if is_part else find_given,
        model=model,
        images_per_batch=sampling_batches(model, options, drawn, cache_dtype=options.cache_dtype),
        sequences=drawn,
        generates=True,
        results={
            "keep": "all" if is_part else given,
            "samples": options.samples,
            "mask": mask and mask.identity,
            "prompt_column": options.prompt_column,
            # Without the column the samples of an earlier igpt lie in another order.
            "sample_index": options.scored or None,
            **options.sampling_results,
        },
        stages=lambda job: [
            job.read_images(mask=mask.location if mask else None, prompts=prompts),
            job.model_stage(Complete, drawing=drawing, prompt_length=given),
            job.write_parts(),
        ],
    )


def _refuse_beside_all(options: CompleteOptions) -> None:
    """Raises UsageError for an option that goes by whole images, or by what else is known."""
    given = {
        "--mask": options.mask is not None,
        "--prompt-column": options.prompt_column is not None,
        "--crop center": options.crop != "squash",
        "--resize fast": options.resize != "exact",
    }
    found = [name for name, is_given in given.items() if is_given]
    if found:
        raise UsageError(
            f"--keep all takes images as they are for the known part, so {found[0]} has no meaning "
            "beside it; next: leave out one of them"
        )


COMMAND = batch_command(
    "complete",
    CompleteOptions,
    define,
    help="Finish images from their upper part: quantize, complete, write Parquet and a report.",
    example="igpt complete --input photos/ --output out/photos --samples 4 --top-k 100",
)
