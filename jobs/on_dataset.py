"""Jobs from Python: what they do to images, on your own Ray dataset."""

from collections.abc import Mapping
from typing import Any

from ray.data import Dataset

from jobs.batch_jobs import BATCH_JOBS
from jobs.command import parse
from pipeline.batch.on_dataset import map_images
from pipeline.errors import UsageError
from pipeline.options import ImageJobOptions

JOBS = tuple(name for name, job in BATCH_JOBS.items() if issubclass(job.model, ImageJobOptions))
# Of what is around a job: where rows come from and where they go is the dataset's affair.
_NOT_HERE = {"input", "output", "format", "limit", "image_column", "id_column", "keep_columns"}
_NOT_HERE |= {"mask", "prompt_column", "shard_size", "overwrite", "max_error_fraction", "address"}
_NOT_HERE |= {"max_image_bytes", "label_from_folder", "url_column"}


def on_dataset(
    job: str,
    dataset: Dataset,
    options: Mapping[str, Any] | None = None,
    *,
    image_column: str = "image",
    id_column: str | None = None,
) -> Dataset:
    """Does to the images of a Ray dataset what a job does, lazily.

    Args:
        job: quantize, complete, embed, score or classify.
        dataset: rows with a column of images, among any others.
        options: of the job by the names that they have on the command line, such as
            {"model": "small/", "layers": "middle"}; those of input, output and cluster apart.
        image_column: encoded images (binary, or a struct with `bytes`), arrays (H, W, C) as
            ray.data.read_images makes them, or tokens.
        id_column: names rows; for `complete`, whose samples depend on a row's id, it must be given.

    Returns:
        The dataset, lazy, with the columns of the job's results in place of the images, and
        `error`: null, or why a row has no result. Rows stay what they are in number.

    Raises:
        UsageError: an option that is wrong, or a model that does not fit.
    """
    if job not in JOBS:
        raise UsageError(f"expected a job of {', '.join(JOBS)}, found {job}")
    given = {key.replace("-", "_"): value for key, value in (options or {}).items()}
    wrong = sorted(_NOT_HERE & given.keys())
    if wrong:
        raise UsageError(f"option {wrong[0]} has no meaning for a dataset; next: leave it out")
    parsed = parse(BATCH_JOBS[job].model, {"input": "", "output": "", **given})
    spec = BATCH_JOBS[job].define(parsed)
    return map_images(dataset, spec, image_column=image_column, id_column=id_column)
