"""Whose fault it is that a file cannot be read: its own, or that of the place where it lies."""

from dataclasses import dataclass, field

from fsspec import AbstractFileSystem

from pipeline.readers.input_rows import STAGE
from pipeline.rows import RowError
from pipeline.shards import FileSlice, Shard, Tries
from pipeline.storage.filesystem import OutOfReach, require_folder
from pipeline.storage.retry import is_of_access, is_of_rights, is_of_the_node, is_transient


def require_input(file: FileSlice, fs: AbstractFileSystem, path: str) -> None:
    """Raises OutOfReach where the folder of the whole input is gone, as far as it is local.

    Args:
        fs, path: of the file.
    """
    require_folder(fs, path.removesuffix(file.name).rstrip("/") or "/")


@dataclass
class ImageFaults:
    """The faults of a shard's images, each of which has a file for itself.

    A fault is the row's own and makes an error row, or it is raised. Raised are those of the node,
    and transient ones until the last try. What the place says of all files of the shard, such as
    that access is refused, is the place's fault; at the last try, and where others are done by
    then, only refused access is, unless there is only one file.
    """

    shard: Shard
    _maybe_of_place: list[Exception] = field(default_factory=list)

    def row_error(self, error: Exception) -> RowError:
        """Returns the error of a row, or raises the fault."""
        if isinstance(error, OutOfReach) or is_of_the_node(error):
            raise error
        is_last = self.shard.tries is not Tries.MORE and is_transient(error)
        if not is_last and not is_of_access(error):
            return RowError.of(STAGE, error)
        self._maybe_of_place.append(error)
        return RowError.named(STAGE, error)

    def check(self) -> None:
        """Raises a fault that all rows of the shard have, where it is the place's."""
        faults, n_rows = self._maybe_of_place, len(self.shard.slices)
        if len(faults) < n_rows:
            return
        refused = next(filter(is_of_rights, faults), None)
        if self.shard.tries is not Tries.LAST_AMONG_DONE:
            raise refused or faults[0]
        if refused is not None and n_rows > 1:
            raise refused


def refuse_place(
    error: Exception, shard: Shard, file: FileSlice, fs: AbstractFileSystem, path: str
) -> None:
    """Raises the fault of a file of many rows where it may be the place's: that access is refused
    or, until the last try, that it is gone.

    Args:
        fs, path: of the file.
    """
    if is_of_access(error):
        require_input(file, fs, path)
        if is_of_rights(error) or shard.tries is Tries.MORE:
            raise error
