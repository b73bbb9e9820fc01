"""Options of the jobs over images, as pydantic models: type, bounds, default and help together."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Options of every job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quiet: bool = Field(False, description="print results and errors only")
    debug: bool = Field(False, description="show tracebacks")


class ProgressOptions(Options):
    """Options of jobs that run on a cluster."""

    json_lines: bool = Field(
        False, alias="json", description="progress and result as JSON lines on stdout"
    )

    @property
    def progress(self) -> Literal["text", "json", "quiet"]:
        """How a job shows its progress."""
        return "json" if self.json_lines else "quiet" if self.quiet else "text"


class PixelOptions(Options):
    """Where images come from and how they become pixels."""

    input: str = Field(description="file, folder, glob or comma-list, local or a URI")
    format: Literal["auto", "images", "parquet", "webdataset", "tokens"] = Field(
        "auto", description="of the input"
    )
    image_column: str | None = Field(
        None, description="of images or tokens; in tars an extension [default: by type]"
    )
    limit: int | None = Field(None, ge=1, description="first N rows only")
    resize: Literal["exact", "fast"] = Field(
        "exact", description="fast: decode JPEGs at reduced size first"
    )
    crop: Literal["squash", "center"] = Field("squash", description="how to make images square")


class InputOptions(PixelOptions):
    """What of the input's tables goes into the results."""

    id_column: str | None = Field(None, description="column that names rows [default: file#row]")
    keep_columns: str | None = Field(
        None, description="comma-list of columns to pass through [default: all]"
    )


class RayOptions(ProgressOptions):
    """Where and how widely a job runs; results do not depend on these."""

    address: str | None = Field(
        None, description="Ray cluster [default: RAY_ADDRESS, or a private local one]"
    )
    cpu_actors: int | None = Field(None, ge=1, description="reading actors [default: by CPUs]")


class ClusterOptions(RayOptions):
    """The same of a job that cuts its input; results depend on how."""

    shard_size: int | None = Field(
        None, ge=1, description="rows of an output part; a tar makes one [default: by job]"
    )


class StorageOptions(Options):
    storage_options: dict[str, Any] | None = Field(
        None, description="fsspec options, JSON; flat, or by location: input, output, model"
    )


class ModelOptions(ProgressOptions, StorageOptions):
    """The model, and how it computes."""

    model: str = Field("embedded", description="model folder, local or a URI, or a hub id")
    random_weights: bool = Field(
        False, description="--model is small, medium or large, untrained: for benchmarks"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on cuda, float32 on cpu"
    )
    batch_size: int | None = Field(
        None, ge=1, description="sequences computed together [default: by memory]"
    )
    model_actors: int | None = Field(
        None, ge=1, description="model actors [default: one a GPU, or one a core]"
    )


class RunOptions(ClusterOptions, StorageOptions):
    """Options of a job that fills a run directory."""

    max_error_fraction: float = Field(
        0.1, ge=0, le=1, description="share of bad rows to stop at, exit code 3"
    )
    overwrite: bool = Field(False, description="replace the run in --output")
    output: str = Field(description="run directory, local or URI; the same command resumes")


class ImageJobOptions(InputOptions, RunOptions):
    """Options of a job from images to a run directory."""


class SamplingOptions(Options):
    """How pixels are drawn."""

    temperature: float = Field(1.0, gt=0, description="below 1: safer colors")
    top_k: int | None = Field(None, ge=1, description="draw from the k likeliest colors")
    top_p: float | None = Field(
        None, gt=0, le=1, description="from the fewest colors of chance p together"
    )
    seed: int = Field(0, description="of the random draws")
    score: bool = Field(False, description="add nats per generated pixel, column nll")
    best_of: int | None = Field(
        None, ge=1, description="draw N of each, keep the likeliest; implies --score"
    )

    @property
    def scored(self) -> bool:
        """Whether results come with their nats."""
        return self.score or self.best_of is not None

    @property
    def sampling_results(self) -> dict[str, Any]:
        """What of these results depend on."""
        drawn = self.model_dump(include={"seed", "temperature", "top_k", "top_p"})
        return {**drawn, "score": self.scored, "best_of": self.best_of}


class TrainingOptions(PixelOptions, StorageOptions):
    """Options of the jobs that train a model, in one process."""

    output: str = Field(description="local folder for the model and its log")
    epochs: int | None = Field(None, ge=1, description="end after N passes over the images")
    steps: int | None = Field(None, ge=1, description="end after N steps")
    minutes: float | None = Field(
        None, gt=0, description="end after X minutes; give one of the three"
    )
    batch_size: int = Field(8, ge=1, description="images a step")
    learning_rate: float = Field(2e-3, gt=0, description="highest, after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="on matrices")
    warmup_steps: int = Field(100, ge=0, description="steps to the highest learning rate")
    eval_input: str | None = Field(None, description="held-out images for a final figure")
    seed: int = Field(0, ge=0, description="of new weights, order and flips")
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the saved weights"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of matrix products")
