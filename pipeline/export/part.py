"""A part of a run as exports see it: its pictures, its arrays, its values."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from igpt_core.images.palette import Palette
from pipeline import rows
from pipeline.stages.blocks import tokens_of
from pipeline.stages.result_columns import pictures

# The column whose pictures are exported, for the jobs that make any.
_PICTURES = {"quantize": rows.TOKENS, "complete": rows.IMAGES, "sample": rows.PICTURE}
_OF_SAMPLES = (rows.NLL, rows.SAMPLE_INDEX)  # columns of complete
ARRAYS = re.compile(
    f"{rows.TOKENS}|{rows.SAMPLES}|{rows.NLL_MAP}|{rows.LOGITS}|{rows.EMBEDDING}(_[0-9]+)?"
)


@dataclass(frozen=True)
class Contents:
    """The columns of a run by kind.

    Attributes:
        picture: the one that becomes pictures; None where there is none.
        arrays: those that are arrays of one shape in every row.
        values: all others but images, id first.
        of_samples: those of the values that are lists of one value per sample.
    """

    picture: str | None
    arrays: tuple[str, ...]
    values: tuple[str, ...]
    of_samples: tuple[str, ...] = ()

    @classmethod
    def of(cls, job: str, schema: pa.Schema, passthrough: Collection[str]) -> "Contents":
        """Sorts the columns of a job's results. Those passed through are no arrays: they may have
        nulls."""
        arrays = [f.name for f in schema if f.name not in passthrough and _is_array(f)]
        images = [f.name for f in schema if f.type in (rows.IMAGE, pa.list_(rows.IMAGE))]
        values = [name for name in schema.names if name not in (*arrays, *images)]
        picture = _PICTURES.get(job)
        of_samples = [n for n in _OF_SAMPLES if n in values and n not in passthrough]
        return cls(
            picture if picture in schema.names else None,
            tuple(arrays),
            tuple(values),
            tuple(of_samples) if picture == rows.IMAGES else (),
        )

    @property
    def columns(self) -> list[str]:
        """Lists all that an export reads."""
        picture = () if self.picture is None else (self.picture,)
        return list(dict.fromkeys((*self.values, *self.arrays, *picture)))


def _is_array(field: pa.Field) -> bool:
    type_ = field.type.value_type if field.name == rows.SAMPLES else field.type
    return ARRAYS.fullmatch(field.name) is not None and pa.types.is_fixed_size_list(type_)


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        index: its number, that of its shard.
        table: its columns that `contents` names.
        n_samples: samples per row of complete, which an empty part cannot tell.
        palette: of the tokens; None where the run holds pictures or needs none.
        side: height and width of pictures made of tokens.
    """

    index: int
    table: pa.Table
    contents: Contents
    n_samples: int
    palette: Palette | None
    side: int

    @property
    def name(self) -> str:
        """Returns its name in an export, without an extension."""
        return f"part-{self.index:06d}"

    @property
    def has_samples(self) -> bool:
        """Tells whether a row has several pictures, however many."""
        return self.contents.picture == rows.IMAGES

    def pngs(self) -> list[list[bytes]]:
        """Returns the PNGs of each row; a row whose picture is missing has none."""
        column = self.contents.picture
        if column is None:
            return [[] for _ in range(self.table.num_rows)]
        if column == rows.TOKENS:
            assert self.palette is not None  # the driver sees to it
            tokens = list(tokens_of(self.table[column]))
            found = [[image] for image in pictures(tokens, self.palette, self.side).to_pylist()]
        else:
            values = self.table[column].to_pylist()
            found = [(value or []) if self.has_samples else [value] for value in values]
        return [[i["bytes"] for i in images if i and i["bytes"]] for images in found]

    def array(self, name: str) -> NDArray[Any]:
        """Returns a column of arrays: (rows, ...) in the dtype of the column."""
        column = self.table[name]
        n_samples = -1 if self.table.num_rows else self.n_samples  # -1: as many as there are
        inner = (n_samples,) if name == rows.SAMPLES else ()
        type_ = column.type.value_type if inner else column.type
        flat = [
            (chunk.flatten() if inner else chunk).flatten().to_numpy() for chunk in column.chunks
        ]
        empty = np.empty(0, type_.value_type.to_pandas_dtype())
        shape = (self.table.num_rows, *inner, type_.list_size)
        return np.concatenate([empty, *flat]).reshape(shape)
