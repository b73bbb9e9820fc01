"""The record: names, types and meanings of columns, in results and in blocks between stages.

Results carry the `huggingface` schema metadata, so that `datasets` shows images as images and
keeps label names. A block between two stages carries the columns whose names start with PREFIX
beside the columns passed through from the input.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.storage.redact import redacted_line
from pipeline.storage.retry import is_of_the_node, is_transient

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def tokens_type(n_positions: int) -> pa.DataType:
    """Returns the type of one image's palette indices, in raster order."""
    return pa.list_(pa.uint16(), n_positions)


def samples_type(n_positions: int) -> pa.DataType:
    """Returns the type of any number of images' palette indices."""
    return pa.list_(tokens_type(n_positions))


def logits_type(num_labels: int) -> pa.DataType:
    """Returns the type of the logits of all classes."""
    return pa.list_(pa.float32(), num_labels)


# Columns of results.
ID = "id"
TOKENS = "tokens"
SAMPLES = "samples"
IMAGES = "images"
PROMPT = "prompt"
ORIGINAL = "original"
PROMPT_LENGTH = "prompt_length"
PICTURE = "image"
NLL = "nll"
BITS_PER_PIXEL = "bits_per_pixel"
NLL_MAP = "nll_map"
EMBEDDING = "embedding"
SAMPLE_INDEX = "sample_index"
PREDICTED_LABEL = "predicted_label"
PREDICTED_NAME = "predicted_name"
PROBABILITY = "probability"
LOGITS = "logits"


@dataclass(frozen=True)
class Column:
    """A column of a result: its name, its type, what it holds."""

    name: str
    type: pa.DataType
    meaning: str


# The jobs that write run directories.
JOBS = ("quantize", "complete", "sample", "embed", "score", "classify")


def quantize_columns(n_positions: int) -> tuple[Column, ...]:
    """Lists what quantize adds to id and the columns passed through."""
    meaning = "palette indices of the quantized image, raster order"
    return (Column(TOKENS, tokens_type(n_positions), meaning),)


def complete_columns(
    n_positions: int, *, prompts: bool = False, scored: bool = False
) -> tuple[Column, ...]:
    """Lists what complete adds.

    Args:
        prompts: the input is the prompts alone, of images that nobody has.
        scored: with the nll of each completion, the lowest first, and which of those drawn it is.
    """
    quantized = () if prompts else quantize_columns(n_positions)
    original = () if prompts else (Column(ORIGINAL, IMAGE, "PNG of the quantized input"),)
    scores = (
        Column(NLL, pa.list_(pa.float32()), "nats per generated pixel of each completion, mean"),
        Column(
            SAMPLE_INDEX, pa.list_(pa.int32()), "which of those drawn each completion is, from 0"
        ),
    )
    return (
        *quantized,
        Column(SAMPLES, samples_type(n_positions), "palette indices of each completion"),
        Column(IMAGES, pa.list_(IMAGE), "PNG of each completion"),
        Column(PROMPT, IMAGE, "PNG of what the model was given"),
        *original,
        Column(PROMPT_LENGTH, pa.int32(), "positions given to the model"),
        *(scores if scored else ()),
    )


def sample_columns(
    n_positions: int, *, scored: bool = False, best: bool = False
) -> tuple[Column, ...]:
    """Lists what sample makes; `scored`: with the nll of each image; `best`: each is the best of
    several, and its index is there."""
    index = Column(SAMPLE_INDEX, pa.int32(), "which of those drawn for the row it is, from 0")
    return (
        Column(TOKENS, tokens_type(n_positions), "palette indices of the image, raster order"),
        Column(PICTURE, IMAGE, "PNG of the image"),
        *(score_columns(n_positions) if scored else ()),
        *((index,) if best else ()),
    )


def score_columns(n_positions: int, *, mapped: bool = False) -> tuple[Column, ...]:
    """Lists what score adds; `mapped`: with the nll of every pixel."""
    columns = (
        Column(NLL, pa.float32(), "nats per pixel: negative log-likelihood, mean over pixels"),
        Column(BITS_PER_PIXEL, pa.float32(), "the same in bits"),
        Column(NLL_MAP, pa.list_(pa.float32(), n_positions), "nats of each pixel, raster order"),
    )
    return columns if mapped else columns[:2]


def embedding_name(layer: int, n_layers: int) -> str:
    """Names the column of a layer's features, one of `n_layers` that are asked for."""
    return EMBEDDING if n_layers == 1 else f"{EMBEDDING}_{layer}"


def embed_columns(layers: Sequence[int], n_embd: int, dtype: pa.DataType) -> tuple[Column, ...]:
    """Lists what embed adds: for each layer the features of that width."""
    return tuple(
        Column(
            embedding_name(layer, len(layers)),
            pa.list_(dtype, n_embd),
            f"features at layer {layer}, mean over positions",
        )
        for layer in layers
    )


def classify_columns(num_labels: int, *, named: bool) -> tuple[Column, ...]:
    """Lists what classify adds; `named`: the model has names for its classes."""
    columns = [
        Column(PREDICTED_LABEL, pa.int64(), "the most probable class"),
        Column(PREDICTED_NAME, pa.string(), "its name"),
        Column(PROBABILITY, pa.float32(), "its probability"),
        Column(LOGITS, logits_type(num_labels), "logits of all classes"),
    ]
    return tuple(column for column in columns if named or column.name != PREDICTED_NAME)


ERRORS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("error", pa.string()),
        pa.field("message", pa.string()),
    ]
)

# Columns of a block between stages. No column of the input may start like this.
PREFIX = "__igpt_"
ROW_ID = PREFIX + "id"  # string
SOURCE = PREFIX + "source"  # string: file (and row) that it came from, for error reports
ROW_TOKENS = PREFIX + "tokens"  # `tokens_type`, null in a failed row
KNOWN_PIXELS = PREFIX + "known_pixels"  # fixed-size list of bool: known beyond the prompt
SAMPLED_TOKENS = PREFIX + "sampled_tokens"  # int32: tokens that the model sampled for the row
PASSES = PREFIX + "passes"  # int32: passes of the model from which these were drawn
ERROR_STAGE = PREFIX + "error_stage"  # string, null in a good row; so are the next two
ERROR_CLASS = PREFIX + "error"
ERROR_MESSAGE = PREFIX + "error_message"


def schema_for(
    job: str, columns: Sequence[Column], *, passthrough: pa.Schema | None = None
) -> pa.Schema:
    """Makes the schema of a job's results: id, the columns passed through, the job's own; with
    the `huggingface` metadata of all of them.

    `passthrough` may carry that metadata of the input: label names stay. Raises UsageError where
    a column passed through has the name of an output column.
    """
    passthrough = pa.schema([]) if passthrough is None else passthrough
    taken = {ID} | {column.name for column in columns}
    clashes = [name for name in passthrough.names if name in taken or name.startswith(PREFIX)]
    if clashes:
        advice = "--id-column id, or " if "id" in clashes else ""
        raise UsageError(
            f"the input's column {', '.join(clashes)} has the name of an output column of {job}; "
            f"next: {advice}--keep-columns with the columns to keep, without it"
        )
    own = [pa.field(column.name, column.type) for column in columns]
    schema = pa.schema([pa.field(ID, pa.string()), *passthrough, *own])
    return schema.with_metadata(hub_metadata(schema, known=hub_features(passthrough)))


def described(schema: pa.Schema, columns: Sequence[Column]) -> list[dict[str, str]]:
    """Describes the columns of a job's results for people: name, type and meaning of each."""
    meanings = {ID: "unique, stable name of the row", **{c.name: c.meaning for c in columns}}
    return [
        {
            "name": field.name,
            "type": str(field.type),
            "meaning": meanings.get(field.name, "as in the input"),
        }
        for field in schema
    ]


def hub_features(schema: pa.Schema) -> dict[str, Any]:
    """Reads the features in a schema's `huggingface` metadata, by column; {} without any."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return {}
    try:
        features = json.loads(raw)["info"]["features"]
    except (ValueError, KeyError, TypeError):  # another writer's metadata is no reason to stop
        return {}
    if not isinstance(features, Mapping):
        return {}
    return {name: features[name] for name in schema.names if name in features}


def hub_metadata(
    schema: pa.Schema, *, known: Mapping[str, Any] | None = None
) -> dict[bytes, bytes]:
    """Makes the schema metadata from which `datasets` takes its features.

    `known` ones stay as they are, the others follow from the Arrow type. Columns of a type without
    a feature are left for it to infer.
    """
    known = known or {}
    features = {f.name: known.get(f.name) or _feature(f.type) for f in schema}
    named = {name: feature for name, feature in features.items() if feature is not None}
    return {b"huggingface": json.dumps({"info": {"features": named}}).encode()}


_VALUES: dict[pa.DataType, str] = {
    pa.string(): "string",
    pa.large_string(): "large_string",
    pa.binary(): "binary",
    pa.large_binary(): "large_binary",
    pa.bool_(): "bool",
    pa.float16(): "float16",
    pa.float32(): "float32",
    pa.float64(): "float64",
    **{t: str(t) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{t: str(t) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
}


def _feature(type_: pa.DataType) -> dict[str, Any] | None:
    if type_ == IMAGE:
        return {"_type": "Image"}
    if type_ in _VALUES:
        return {"dtype": _VALUES[type_], "_type": "Value"}
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        inner = _feature(type_.value_type)
        if inner is None:
            return None
        length = type_.list_size if pa.types.is_fixed_size_list(type_) else -1
        return {"feature": inner, "length": length, "_type": "List"}
    return None


@dataclass(frozen=True)
class RowError:
    """Why a row has no result: the stage, the error's class, one line of message."""

    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, stage: str, error: BaseException) -> "RowError":
        """Makes one of an exception, as `named` does.

        Raises the exception itself where it is a transient fault of the store, one of this machine,
        or one of the options: no row fails for that.
        """
        if is_transient(error) or is_of_the_node(error) or isinstance(error, UsageError):
            raise error
        return cls.named(stage, error)

    @classmethod
    def named(cls, stage: str, error: BaseException) -> "RowError":
        """Makes one of an exception whatever it is; the message holds no secret and no
        traceback."""
        return cls(stage, type(error).__name__, redacted_line(error))
