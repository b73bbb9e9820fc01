"""Stage and Resources, and the chain of them as a Ray data set: the only caller of map_batches."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.util.annotations import RayDeprecationWarning

from pipeline.storage import one_line

# Ray's own default is to restart and retry for ever, also for a row that kills its process.
FAULT_LIMITS = {"max_restarts": 16, "max_task_retries": 16}


@dataclass(frozen=True)
class Resources:
    """What each actor of a stage takes, and how many there are."""

    actors: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A class `__init__(plain values)`, `__call__(pa.Table) -> pa.Table`, and where it runs."""

    cls: type[Callable[[pa.Table], pa.Table]]
    arguments: dict[str, Any]
    resources: Resources = field(default_factory=Resources)


class StageError(Exception):
    """A stage's error as one line, which can be found again in the text that Ray makes of it."""


class _Reporting:
    """A stage whose errors are StageErrors: Ray puts advice into the message of an error, loses
    the path of an OSError, and cannot carry every class to the driver."""

    stage: ClassVar[type[Callable[[pa.Table], pa.Table]]]

    def __init__(self, **arguments: Any) -> None:
        with self._reported():
            self._stage = self.stage(**arguments)

    def __call__(self, block: pa.Table) -> pa.Table:
        with self._reported():
            return self._stage(block)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # none is kept from ending the run
            kind = type(error).__name__
            raise StageError(f"{self.stage.__name__}: {kind}: {one_line(error)}") from error


class _ReportingPacked(_Reporting):
    """The same of tables that come and go as `packed` has them."""

    def __call__(self, block: pa.Table) -> pa.Table:
        call = super().__call__
        return packed([call(table) for table in unpacked(block)])


# Between stages a table is one row of this column: Ray demands a number of rows for the batches of
# a stage with GPUs, puts short blocks together until they have it, and cuts what has more.
_PACKED = "packed"


def packed(tables: Sequence[pa.Table]) -> pa.Table:
    """A row for each table, which holds it as an Arrow stream."""
    streams = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        streams.append(sink.getvalue().to_pybytes())
    return pa.table({_PACKED: pa.array(streams, pa.large_binary())})


def unpacked(block: pa.Table) -> Iterator[pa.Table]:
    """The tables that `packed` made rows of, without copying."""
    for stream in block[_PACKED]:
        yield pa.ipc.open_stream(stream.as_buffer()).read_all()


def chain(blocks: Sequence[pa.Table], stages: Sequence[Stage]) -> Dataset:
    """The stages over the blocks, each block kept whole from end to end.

    Args:
        blocks: one table for each shard.

    Returns:
        What the last stage makes of each block, as `packed` has it.
    """
    dataset = ray.data.from_arrow([packed([block]) for block in blocks])
    for stage in stages:
        actors = min(stage.resources.actors, len(blocks))
        dataset = _mapped(dataset, stage, _ReportingPacked, batch_size=1, actors=actors)
    return dataset


def over(dataset: Dataset, stages: Sequence[Stage], *, batch_rows: int) -> Dataset:
    """The stages over somebody's data set, whose blocks they get about `batch_rows` rows at a
    time; lazy."""
    for stage in stages:
        actors = stage.resources.actors
        dataset = _mapped(dataset, stage, _Reporting, batch_size=batch_rows, actors=actors)
    return dataset


def _mapped(
    dataset: Dataset, stage: Stage, wrapper: type[_Reporting], *, batch_size: int, actors: int
) -> Dataset:
    resources = stage.resources
    with warnings.catch_warnings():
        # Ray 2.60 has no other way yet to pass the limits than the one that it warns about.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            type(stage.cls.__name__, (wrapper,), {"stage": stage.cls}),
            fn_constructor_kwargs=stage.arguments,
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus or None,
            **FAULT_LIMITS,
        )
