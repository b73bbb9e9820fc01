"""Files whose rows are counted, cut into shards."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.inputs.files import InputFile
from pipeline.shards import FileSlice, Shard


def cut_rows(
    files: Iterable[tuple[InputFile, int | None]], *, rows: int, shard_size: int
) -> Iterator[Shard]:
    """Yields shards of exactly `shard_size` rows, over the ends of files, until there are `rows`;
    only the last may be smaller. The rows of each file must have been counted."""
    index, room, left = 0, shard_size, rows
    slices: list[FileSlice] = []
    for file, n_rows in files:
        assert n_rows is not None  # of tars alone nobody knows them
        stop_at, start = min(n_rows, left), 0
        left -= stop_at
        while start < stop_at:
            stop = min(stop_at, start + room)
            rows_of = FileSlice(file.path, file.name, start, stop, file.identity)
            slices.append(replace(rows_of, samples=file.samples))
            room -= stop - start
            start = stop
            if room == 0:
                yield Shard(index, tuple(slices))
                index, slices, room = index + 1, [], shard_size
    if slices:
        yield Shard(index, tuple(slices))


def cut_tars(tars: Iterable[tuple[InputFile, int | None]], *, shard_size: int) -> Iterator[Shard]:
    """Yields shards of the first rows of each tar, by itself."""
    slices = (each for tar, rows in tars for each in _cut_tar(tar, rows, shard_size))
    return (Shard(index, (each,)) for index, each in enumerate(slices))


def _cut_tar(file: InputFile, rows: int | None, shard_size: int) -> Iterator[FileSlice]:
    """Cuts the first `rows` of a tar between its samples, where that is possible."""
    starts = file.sample_starts
    if starts is None or rows is None:
        yield FileSlice(file.path, file.name, 0, rows, file.identity)
        return
    for start in range(0, max(min(rows, len(starts)), 1), shard_size):
        stop = min(start + shard_size, rows)
        end_byte = starts[stop] if stop < len(starts) else None
        if end_byte is None:
            stop = rows
        first_byte = starts[start] if start else 0
        yield FileSlice(file.path, file.name, start, stop, file.identity, first_byte, end_byte)
