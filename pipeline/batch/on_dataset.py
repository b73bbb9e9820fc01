"""A job's stages over the images of a user's own Ray dataset."""

from ray.data import Dataset

from pipeline.batch.job import Job, JobSpec
from pipeline.engine.stage import Stage, over
from pipeline.errors import UsageError
from pipeline.shards import Plan
from pipeline.stages.dataset_rows import FinishRows, TokenizeRows

_BATCHES = 4  # model batches that a stage is handed at once
_ROWS = 256  # the same of a job without a model


def map_images(
    dataset: Dataset,
    spec: JobSpec,
    *,
    image_column: str,
    id_column: str | None,
) -> Dataset:
    """Returns a dataset, lazy, with the columns of a job in place of the images.

    Args:
        dataset: on the Ray that this process has joined.
        spec: of the job; its input and its output mean nothing here.
        image_column: see `TokenizeRows`.
        id_column: names rows; a job that draws needs it, as what it draws depends on it.

    Raises UsageError for options that do not fit, and for columns that are known to be missing.
    """
    known = dataset.schema(fetch_if_missing=False)  # without running anything
    missing = {image_column, id_column} - {None, *(known.names if known else ())}
    if known is not None and missing:
        raise UsageError(
            f"expected column {' and '.join(map(str, missing))}, the dataset has "
            f"{', '.join(known.names)}; next: image_column and id_column of these"
        )
    if spec.generates and id_column is None:
        raise UsageError(f"{spec.name} needs id_column: what it draws for a row depends on its id")
    compute = spec.find_compute(None)
    # No CPUs are requested: whoever made the dataset may chain any number of stages, whose tasks
    # would wait for ever for what actors hold.
    resources = spec.resources(compute, request_cpus=False)
    job = Job(spec, "", Plan("dataset", 1, ()), compute, resources)
    read, *inner, _ = spec.stages(job)
    palette = {name: read.arguments[name] for name in ("palette", "image_size", "model_options")}
    tokenize = {name: read.arguments[name] for name in ("resize", "crop", "prompts")}
    tokenize |= {"image_column": image_column, "id_column": id_column}
    finish = {"job": spec.name, "columns": [column.name for column in spec.columns]}
    stages = [
        Stage(TokenizeRows, tokenize | palette, resources.reading),
        *inner,
        Stage(FinishRows, finish | palette, resources.writing),
    ]
    return over(dataset, stages, batch_rows=_BATCHES * compute.images if compute else _ROWS)
