"""What all model stages share: a model, and batches of one fixed size for it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from igpt_core.errors import NonFiniteError
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.packed import prepacked
from igpt_core.generation.trial import try_fast_ways
from igpt_core.heads import load_model, random_model
from igpt_core.model.self_check import leave_all_aside, left_aside, takes_starts
from pipeline.errors import EndOfRun
from pipeline.stages.cuda_errors import within_memory

RANDOM = "random:"
_BATCHES_ON_DEVICE = 8  # of rows that wait for a place: more take memory, fewer are over sooner
Result = TypeVar("Result")


@dataclass(frozen=True)
class ComputePlan:
    """Where the model of a stage lies, and how it computes.

    Attributes:
        model: location of a model folder; RANDOM and the name of a variant stand for one with
            random weights, the same in every actor.
        device: "cpu" or "cuda".
        dtype: name of the dtype.
        images: computed together; a batch of fewer is padded.
        sequences: of each image in a batch.
        model_options: fsspec options of the model's location.
        window: pixels of a sequence that a pass is fed at once, of jobs that sample them.
        kv_cache_dtype: name of that of keys and values, where it is not `dtype`.
        plain: whether a GPU samples without what makes it faster, since on one of the run it
            computed other results.
    """

    model: str
    device: str
    dtype: str
    images: int
    sequences: int = 1
    model_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    window: int = 1
    kv_cache_dtype: str | None = None
    plain: bool = False

    def load(self, head: Literal["causal", "classification"] | None) -> Any:
        """Loads the model for inference, as `load_model` does, its weights packed.

        So a row's results do not depend on its place in a batch, which they do with MKL's products
        for some numbers of rows and columns (see `prepacked`).
        """
        if self.device == "cpu":
            # One thread an actor: actors do not fight, and sums have one order whatever the number
            # of actors is.
            torch.set_num_threads(1)
        dtype = getattr(torch, self.dtype)
        if self.model.startswith(RANDOM):
            untrained = random_model(self.model.removeprefix(RANDOM), seed=0)
            chosen = untrained if head == "causal" else untrained.transformer
            return prepacked(chosen.to(self.device, dtype))
        model = load_model(
            self.model,
            device=self.device,
            dtype=dtype,
            head=head,
            storage_options=self.model_options,
        )
        return prepacked(model)

    def load_draft(self, n_colors: int) -> NeighborTables | None:
        """Loads the tables that lie beside the model, of this number of colors; None where there
        are none, or windows need none."""
        if self.window == 1 or self.model.startswith(RANDOM):
            return None
        return NeighborTables.load(
            self.model,
            n_colors=n_colors,
            device=self.device,
            storage_options=self.model_options,
        )

    def try_fast_ways(self, head_size: int) -> list[str]:
        """Lets this process try what makes a GPU sample faster, and leave aside what computes
        other results than the plain way: what that is, each with the reason."""
        if self.device != "cuda":
            return []
        if self.plain:
            leave_all_aside("it was so on the GPU that the run was planned with")
            return left_aside()
        return try_fast_ways(
            torch.device(self.device),
            getattr(torch, self.dtype),
            head_size,
            kv_cache_dtype=self.torch_kv_cache_dtype,
        )

    @property
    def torch_kv_cache_dtype(self) -> torch.dtype | None:
        """Returns the dtype itself."""
        name = self.kv_cache_dtype
        return None if name is None else getattr(torch, name)

    def in_batches(
        self, compute: Callable[..., Result], *arrays: NDArray[Any]
    ) -> Iterator[tuple[slice, Result]]:
        """Computes arrays of one length a batch of rows at a time, given as int64 tensors on the
        device; yields each batch's slice of the rows and its result.

        The last batch is padded with rows of zeros: a matrix product may round a row otherwise when
        the number of rows differs, and now and then that is another color or class.

        Raises DoesNotFit where the device has too little memory, and EndOfRun where the core finds
        that the model overflows.
        """
        n_rows = len(arrays[0])
        for first in range(0, n_rows, self.images):
            place = slice(first, min(first + self.images, n_rows))
            batch = []
            for array in arrays:
                padded = np.zeros((self.images, *array.shape[1:]), np.int64)
                padded[: place.stop - first] = array[place]
                batch.append(torch.from_numpy(padded))
            yield place, self._within_memory(lambda *rows, at_once: compute(*rows), batch)

    def refilled(
        self, compute: Callable[..., Result], *arrays: NDArray[Any]
    ) -> Iterator[tuple[slice, Result]]:
        """Computes arrays of one length some batches of rows at a time, given as int64 tensors on
        the device, by what itself computes no more than `at_once` rows together, as many as a batch
        has, and lets others take the place of those that are done. Yields and raises as
        `in_batches`; nothing is padded."""
        n_rows, most = len(arrays[0]), _BATCHES_ON_DEVICE * self.images
        for first in range(0, n_rows, most):
            place = slice(first, min(first + most, n_rows))
            rows = [torch.from_numpy(array[place].astype(np.int64)) for array in arrays]
            yield place, self._within_memory(compute, rows)

    def check_cache(self, head_size: int) -> None:
        """Raises EndOfRun where this device reads no cache of the dtype that is asked for."""
        like = torch.empty(0, device=self.device, dtype=getattr(torch, self.dtype))
        asked = self.kv_cache_dtype is not None
        if asked and not takes_starts(like, head_size, eight_bits=True):
            raise EndOfRun(
                f"expected GPUs that sample with --kv-cache-dtype {self.kv_cache_dtype}, found one "
                "whose trial of it failed, see its log; next: --kv-cache-dtype auto, with another "
                "--output"
            )

    def check_finite(self, name: str, results: NDArray[np.floating[Any]]) -> None:
        """Raises EndOfRun where results, named in the plural, are NaN or infinite."""
        if not np.isfinite(results).all():
            raise _end_of_run(NonFiniteError.of(name, self.dtype))

    def _within_memory(self, compute: Callable[..., Result], rows: list[torch.Tensor]) -> Result:
        on_device = partial(self._on_device, compute)
        try:
            return within_memory(on_device, rows, at_once=self.images, sequences=self.sequences)
        except NonFiniteError as error:
            raise _end_of_run(error) from error

    def _on_device(
        self, compute: Callable[..., Result], *rows: torch.Tensor, at_once: int
    ) -> Result:
        result = compute(*(tensor.to(self.device) for tensor in rows), at_once=at_once)
        if self.device == "cuda":
            torch.cuda.synchronize()  # its faults show here, and not at some later call
        return result


def _end_of_run(error: NonFiniteError) -> EndOfRun:
    """Says it of a run: the model's fault is that of all rows, with these options."""
    return EndOfRun(f"{error}, with another --output")
