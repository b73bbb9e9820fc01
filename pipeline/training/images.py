"""Images to train on, in memory: their tokens and, where asked for, their classes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import Crop, Resize
from pipeline import rows
from pipeline.errors import UsageError
from pipeline.inputs.source import find_source
from pipeline.readers.input_rows import MAX_IMAGE_BYTES
from pipeline.report.text import left_out_text
from pipeline.stages.blocks import tokens_of
from pipeline.stages.read_images import ReadImages
from pipeline.storage.redact import redacted
from pipeline.training.error_budget import check_error_budget

logger = logging.getLogger(__name__)

SHARD_SIZE = 1024
MAX_CLASSES = 1 << 16  # more are ids of something, and a head of as many fills the memory


@dataclass(frozen=True)
class Labels:
    """The classes (N,) int64 of images, and the names of all classes where the input has them."""

    classes: NDArray[np.int64]
    names: tuple[str, ...] | None

    def all_names(self) -> tuple[str, ...]:
        """Returns a name for each class; LABEL_0 ... up to the highest where the input has none.

        Raises UsageError where there are not two, or more than a column of classes has.
        """
        highest = int(self.classes.max())
        if self.names is None and highest >= MAX_CLASSES:
            raise UsageError(
                f"expected classes 0, 1, 2 ... up to {MAX_CLASSES - 1}, found label {highest}; "
                "next: --label-column with a column of classes"
            )
        names = self.names or tuple(f"LABEL_{i}" for i in range(highest + 1))
        if len(names) < 2:
            raise UsageError(
                f"expected labels of two classes at least, found {', '.join(names)} alone; next: "
                "an input with more classes, or another --label-column"
            )
        return names

    def check_against(self, names: Sequence[str]) -> None:
        """Raises UsageError unless these are among the classes of a classifier, so named."""
        if self.names is not None and self.names != tuple(names):
            raise UsageError(
                f"expected validation images of the classes {', '.join(names)}, found "
                f"{', '.join(self.names)}; next: an --eval-input of the same classes"
            )
        if self.classes.max() >= len(names):
            raise UsageError(
                f"expected validation images of the {len(names)} classes trained on, found label "
                f"{self.classes.max()}; next: an --eval-input of the same classes"
            )


@dataclass(frozen=True)
class TrainingImages:
    """Tokens (N, image_size ** 2) of every readable image of an input; labels where asked for; and
    how many images could not be read."""

    tokens: NDArray[np.uint16]
    labels: Labels | None
    n_failed: int = 0


def read_images(
    location: str,
    *,
    palette: str,
    image_size: int,
    resize: Resize = "exact",
    crop: Crop = "squash",
    limit: int | None = None,
    format: str = "auto",
    image_column: str | None = None,
    url_column: str | None = None,
    label_column: str | None = None,
    label_from_folder: bool = False,
    max_error_fraction: float = 1.0,
    max_image_bytes: int = MAX_IMAGE_BYTES,
    input_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    shown: bool = False,
) -> TrainingImages:
    """Reads every image of an input, or its ready tokens; those that fail are logged and left out.

    Args:
        location, format, image_column, url_column, limit: as `find_source` takes them.
        palette: location of a palette's file or of a model folder.
        resize, crop: as in `load_pixels`.
        label_column: a column of classes to read along: whole numbers from 0, in every row.
        label_from_folder: image files have one, by their folders.
        max_error_fraction: of the images that may fail.
        max_image_bytes: as of `read_shard`.
        shown: whether it is said how far counting is; see `find_source`.

    Raises UsageError; OverErrorBudget as soon as it is sure that more images fail than may.
    """
    source = find_source(
        location,
        format=format,
        image_column=image_column,
        url_column=url_column,
        keep_columns=[],
        label_column=label_column,
        label_from_folder=label_from_folder,
        limit=limit,
        storage_options=input_options,
        shown=shown,
    )
    if label_column is not None:
        _check_type(source.passthrough.field(label_column), location)
    fingerprint = load_palette(palette, storage_options=model_options).fingerprint
    source.check_tokens(image_size=image_size, palette=fingerprint)
    plan = source.cut(SHARD_SIZE)
    read = ReadImages(
        format=plan.format,
        image_column=plan.image_column,
        id_column=None,
        passthrough=plan.passthrough,
        palette=palette,
        image_size=image_size,
        resize=resize,
        crop=crop,
        max_image_bytes=max_image_bytes,
        input_options=input_options or {},
        model_options=model_options or {},
    )
    if plan.skipped:
        logger.warning("input %s, left out: %s", redacted(location), left_out_text(plan.skipped))
    blocks: list[pa.Table] = []
    n_failed = n_read = 0
    table = plan.to_table()
    for index in range(len(plan.shards)):
        block = read(table.slice(index, 1))
        good = pc.is_null(block[rows.ERROR_STAGE])
        for failed in block.filter(pc.invert(good)).to_pylist():
            logger.warning("%s left out: %s", failed[rows.SOURCE], failed[rows.ERROR_MESSAGE])
        blocks.append(block.filter(good))
        n_read += block.num_rows
        n_failed += block.num_rows - blocks[-1].num_rows
        if plan.rows is not None:  # else they are not counted before the end
            check_error_budget(
                n_failed, plan.rows, max_error_fraction, location, named="each is named above"
            )
    check_error_budget(n_failed, n_read, max_error_fraction, location, named="each is named above")
    found = pa.concat_tables(blocks)
    if not found.num_rows:
        raise UsageError(f"expected readable images at {location}, found none; check --input")
    labels = None if label_column is None else _labels(found, label_column, plan.passthrough)
    return TrainingImages(tokens_of(found[rows.ROW_TOKENS]), labels, n_failed)


def _check_type(field: pa.Field, location: str) -> None:
    if not pa.types.is_integer(field.type):
        raise UsageError(
            f"expected whole numbers in the label column {field.name} of {location}, found "
            f"{field.type}; next: --label-column with a column of classes 0, 1, 2 ..."
        )


def _labels(found: pa.Table, column: str, passthrough: pa.Schema) -> Labels:
    feature = rows.hub_features(passthrough).get(column, {})
    # Only ClassLabel has names, and it may have none.
    names = tuple(feature.get("names") or ()) or None
    values = found[column].cast(pa.int64())
    beyond = pc.less(values, 0)
    if names is not None:
        beyond = pc.or_(beyond, pc.greater_equal(values, len(names)))
    wrong = found.filter(pc.fill_null(beyond, True))
    if wrong.num_rows:
        upper = "" if names is None else f" to {len(names) - 1}, the classes that it names,"
        raise UsageError(
            f"expected a label from 0{upper or ' on'} in every row of column {column}, found "
            f"{wrong[column][0].as_py()} in {wrong[rows.SOURCE][0].as_py()}; next: an input whose "
            "rows all have a label"
        )
    return Labels(values.to_numpy(), names)
