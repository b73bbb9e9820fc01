"""A model of a folder, loaded with the head that is asked for, over batches of rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from igpt_core.errors import NonFiniteError
from igpt_core.generation.completion import Pinned, complete
from igpt_core.generation.drafts import NeighborTables
from igpt_core.generation.packed import prepacked
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.generation.speculation import best_window
from igpt_core.generation.trial import try_fast_ways
from igpt_core.heads import HEADS
from igpt_core.interface.batch_size import Memory, forward_images, sampling_images
from igpt_core.interface.model_folder import check_head
from igpt_core.interface.progress import ProgressLine, batches_of
from igpt_core.model.config import ImageGPTConfig

Head = Literal["causal", "classification"]


@dataclass(eq=False)
class ModelBatches:
    """A model, and how it computes.

    Attributes:
        location: of its folder.
        config: what the folder says.
        device, dtype: in which it computes.
        batch_size: rows of a batch, of which the last is padded; as many as there are, up to what
            `memory` holds, where None.
        memory: what a batch may take. Found once: a call must not depend on what others have left.
        storage_options: for the location's filesystem.
    """

    location: str
    config: ImageGPTConfig
    device: torch.device
    dtype: torch.dtype
    batch_size: int | None
    memory: Memory
    storage_options: Mapping[str, Any] | None = field(repr=False)
    _loaded: dict[Head | None, Any] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is loaded, which a copy loads anew: packed weights have no copies."""
        return {**vars(self), "_loaded": {}}

    def load(self, head: Head | None) -> Any:
        """Loads the model at the first call, for inference. Without a head any that is loaded is
        as good.

        Raises NoHeadError, a CheckpointError, where the folder lacks the head.
        """
        if head is None and self._loaded:
            return next(iter(self._loaded.values()))
        if head not in self._loaded:
            self._loaded[head] = prepacked(self._load(head))
        return self._loaded[head]

    def _load(self, head: Head | None) -> Any:
        options = self.storage_options
        check_head(self.location, head, options)
        if head == "causal" and self.device.type == "cuda":
            try_fast_ways(self.device, self.dtype, self.config.head_size)
        return HEADS[head].from_pretrained(
            self.location, device=self.device, dtype=self.dtype, storage_options=options
        )

    @torch.inference_mode()
    def forward(
        self,
        compute: Callable[[Tensor], Tensor],
        tokens: npt.NDArray[np.int64],
        *,
        doing: str,
        results: str,
    ) -> list[npt.NDArray[np.float32]]:
        """Computes what `compute` makes of tokens (B, T), as (B, ...); of each row of (N, T).

        Args:
            doing: names the work where it is shown.
            results: names what is computed, in the plural.

        Raises NonFiniteError for NaN or infinite results.
        """
        n_rows, n_positions = tokens.shape
        most = forward_images(self.config, n_positions, dtype=self.dtype, memory=self.memory)
        size = self.batch_size or _even_size(n_rows, most)
        found: list[npt.NDArray[np.float32]] = []
        for rows in batches_of(n_rows, size, doing=doing):
            n = rows.stop - rows.start
            # As many rows always: products may round otherwise for another number.
            batch = np.pad(tokens[rows], ((0, size - n), (0, 0)))
            computed = compute(torch.from_numpy(batch).to(self.device))[:n].float().cpu()
            if not computed.isfinite().all():
                raise NonFiniteError.of(results, self.dtype)
            found.extend(computed.numpy())
        return found

    def draw(
        self,
        tokens: npt.NDArray[np.int64],
        seeds: list[int],
        *,
        length: int,
        known: npt.NDArray[np.bool_] | None,
        samples: int,
        sampling: SamplingConfig,
        doing: str,
    ) -> npt.NDArray[np.int64]:
        """Draws images (N, samples, T), some from each row of tokens (N, T), of which the first
        `length` are known and those that `known` (N, T) says; see `complete`.

        Raises ValueError for more samples of one image than a batch holds.
        """
        n_rows, n_positions = tokens.shape
        at_once = self._images_at_once(n_rows, n_positions, samples)
        model = self.load("causal")
        window = best_window(self.device.type, at_once * samples, self.dtype)
        image = torch.from_numpy(tokens).to(self.device)
        pinned = None
        if known is not None:
            pinned = Pinned(image, torch.from_numpy(known.copy()).to(self.device))
        with ProgressLine(doing, n_rows) as line:
            drawn = complete(
                model,
                image[:, :length],
                n_positions=n_positions,
                seeds=torch.tensor(seeds, dtype=torch.int64, device=self.device),
                sampling=sampling,
                n_samples=samples,
                window=window,
                draft=self._draft() if window > 1 else None,
                pinned=pinned,
                at_once=at_once,
                on_progress=line.move,
            )
        return drawn.cpu().numpy()

    def _images_at_once(self, n_rows: int, n_positions: int, samples: int) -> int:
        """Returns how many images are drawn together, of which the first that is drawn gives its
        place to the next. Raises ValueError for more samples of one than a batch holds."""
        if self.batch_size is None:
            most = sampling_images(
                self.config, n_positions, n=samples, dtype=self.dtype, memory=self.memory
            )
            return _even_size(n_rows, most)
        if samples > self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is below the {samples} samples of an image: they "
                "are computed together"
            )
        return self.batch_size // samples

    def _draft(self) -> NeighborTables | None:
        return NeighborTables.load(
            self.location,
            n_colors=self.config.n_colors,
            device=self.device,
            storage_options=self.storage_options,
        )


def _even_size(n_rows: int, most: int) -> int:
    """Returns the size of as few batches as hold all rows, which are as even as can be: what is
    padded costs as much as a row."""
    return max(ceil(n_rows / max(ceil(n_rows / most), 1)), 1)
