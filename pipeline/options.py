"""Options of the jobs over images, as pydantic models: type, bounds, default and help together.

Each class names the heading under which `--help` shows its own fields. The default that it shows
can be typed; what is found where an option is not given stands in its description.
"""

import sys
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from igpt_core.files.model_files import EMBEDDED

AUTO = BeforeValidator(lambda value: None if value == "auto" else value)
# A number that is found automatically (None) where it is not given, or given as `auto`.
AutoInt = Annotated[int | None, AUTO]


MaxErrorFraction = Annotated[
    float, Field(ge=0, le=1, description="abort when more of the rows fail, exit code 3")
]


class Options(BaseModel):
    """Options of every job."""

    heading: ClassVar[str] = "Other"
    model_config = ConfigDict(extra="forbid", frozen=True)

    quiet: bool = Field(False, description="print results and errors only")
    debug: bool = Field(False, description="show tracebacks")


class ProgressOptions(Options):
    """Options of jobs that show how far they are."""

    heading: ClassVar[str] = "Other"
    json_lines: bool = Field(
        False, alias="json", description="print progress and result as JSON lines"
    )

    @property
    def progress(self) -> Literal["text", "json", "quiet"]:
        """Tells how a job shows its progress."""
        return "json" if self.json_lines else "quiet" if self.quiet else "text"


class PixelOptions(Options):
    """Where images come from and how they become pixels."""

    heading: ClassVar[str] = "Input"
    input: str = Field(description="file, folder, glob or comma-list, local or a URI")
    format: Literal["auto", "images", "parquet", "webdataset", "tokens"] = Field(
        "auto", description="images, parquet, webdataset or tokens; auto: as found"
    )
    image_column: str | None = Field(
        None, description="column or extension of images; else the only one or img"
    )
    url_column: str | None = Field(
        None, description="column of web addresses of images, in CSV, Parquet, .txt (url)"
    )
    limit: int | None = Field(None, ge=1, description="read the first N rows only")
    resize: Literal["exact", "fast"] = Field(
        "exact", description="fast: decode JPEGs at a reduced size first"
    )
    crop: Literal["squash", "center"] = Field("squash", description="how images become square")
    max_image_bytes: int = Field(
        256 << 20, ge=1, description="larger encoded images are error rows"
    )


class InputOptions(PixelOptions):
    """What of the input's tables goes into the results."""

    heading: ClassVar[str] = "Input"
    id_column: str | None = Field(
        None, description="column that names the rows; else file#row, of images the path"
    )
    keep_columns: str | None = Field(
        None, description="comma-list of columns to pass through; else all"
    )
    label_from_folder: bool = Field(
        False, description="add column label: the folder of each image file"
    )


class RayOptions(ProgressOptions):
    """Where and how widely a job runs; results do not depend on these."""

    heading: ClassVar[str] = "Cluster"
    address: str | None = Field(
        None, description="Ray head, host:6379; else RAY_ADDRESS, or a local Ray"
    )
    cpu_actors: AutoInt = Field(
        None, ge=1, description="readers; auto: as needed, up to one per CPU"
    )


class ClusterOptions(RayOptions):
    """The same of a job that cuts its input; results depend on how."""

    heading: ClassVar[str] = "Cluster"

    shard_size: AutoInt = Field(
        None, ge=1, description="rows per part; auto: up to 1024, or 4 batches"
    )


class StorageOptions(Options):
    """How locations that are not local are reached."""

    heading: ClassVar[str] = "Other"

    storage_options: dict[str, Any] | None = Field(
        None, description="fsspec options, for all or under input, output, model"
    )


class ModelOptions(ProgressOptions, StorageOptions):
    """The model, and how it computes."""

    heading: ClassVar[str] = "Model"

    model: str = Field("embedded", description="model folder, URI or hub id")
    random_weights: bool = Field(
        False, description="--model is small, medium or large, untrained: for benchmarks"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model computes")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="float32, bfloat16, float16; auto: bfloat16 if native"
    )
    batch_size: AutoInt = Field(
        None, ge=1, description="sequences per batch; auto: 16 to 32, on GPUs what fits"
    )
    model_actors: AutoInt = Field(
        None, ge=1, description="actors with a model; auto: one per GPU or core"
    )


class RunOptions(ClusterOptions, StorageOptions):
    """Options of a job that fills a run directory."""

    heading: ClassVar[str] = "Output"

    max_error_fraction: MaxErrorFraction = 0.1
    overwrite: bool = Field(False, description="replace the run in --output, each time")
    output: str = Field(description="run directory; the same command resumes")


class ImageJobOptions(InputOptions, RunOptions):
    """Options of a job from images to a run directory."""


class SamplingOptions(Options):
    """How pixels are drawn."""

    heading: ClassVar[str] = "Sampling"

    temperature: float = Field(1.0, gt=0, description="softmax temperature")
    top_k: int | None = Field(None, ge=1, description="top-k sampling")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus (top-p) sampling")
    seed: int = Field(0, description="seed of the random draws")
    window: AutoInt = Field(
        None, ge=1, le=32, description="pixels guessed per pass; auto: more than 1 for few rows"
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto", description="auto: as --dtype; int8: half the memory, GPUs alone"
    )
    score: bool = Field(False, description="add nats per generated pixel, column nll")
    best_of: int | None = Field(
        None, ge=1, description="draw N of each, keep those with the lowest NLL; implies --score"
    )

    @property
    def cache_dtype(self) -> str | None:
        """Returns the name of a dtype of keys and values beside --dtype, None for the same."""
        return None if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @property
    def scored(self) -> bool:
        """Tells whether results come with their nats."""
        return self.score or self.best_of is not None

    @property
    def sampling_results(self) -> dict[str, Any]:
        """Returns those of the options that results depend on."""
        drawn = self.model_dump(include={"seed", "temperature", "top_k", "top_p"})
        return {**drawn, "score": self.scored, "best_of": self.best_of}


class TrainingOptions(PixelOptions, StorageOptions):
    """Options of the jobs that train a model."""

    heading: ClassVar[str] = "Training"

    output: str = Field(description="local folder for the model and its log")
    epochs: int | None = Field(None, ge=1, description="end after N passes over the images")
    steps: int | None = Field(None, ge=1, description="end after N steps")
    minutes: float | None = Field(
        None, gt=0, description="end after X minutes; give one of the three"
    )
    batch_size: int = Field(8, ge=1, description="images per step")
    learning_rate: float = Field(2e-3, gt=0, description="highest learning rate")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of matrices")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices of the blocks, AdamW for the rest"
    )
    warmup_steps: int = Field(100, ge=0, description="steps to the highest learning rate")
    eval_input: str | None = Field(None, description="validation images to evaluate on")
    max_error_fraction: MaxErrorFraction = 0.1
    seed: int = Field(0, ge=0, description="seed of new weights, order and flips")
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="dtype of the saved weights"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="dtype of matrix products"
    )
    compile: bool = Field(False, description="compile the step; needs g++")
    workers: int = Field(1, ge=1, description="processes that share each batch, on Ray")
    address: str | None = Field(
        None, description="Ray head of the workers, host:6379; else RAY_ADDRESS, or a local Ray"
    )


def note_default_model(options: Options) -> None:
    """Prints on stderr that the shipped model is used, where a job that uses one names none; with
    --quiet nothing."""
    uses_model = "model" in type(options).model_fields
    if uses_model and not {"model", "palette"} & options.model_fields_set and not options.quiet:
        print(
            f"no --model given: using {EMBEDDED}, the small one that ships with igpt (8 million "
            "parameters, 32 x 32 pixels in 512 colors, trained on CIFAR-10); for another: --model "
            "with a folder, a URI or a hub id",
            file=sys.stderr,
            flush=True,
        )
