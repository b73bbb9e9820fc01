"""Drafts: guesses of the pixels that a window is fed, made of tables of neighboring pixels."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import embedding_bag

from igpt_core.errors import CheckpointError, NoFileError, check_whole, whole_tensor
from igpt_core.files.model_files import model_files

TABLES_FILE = "neighbor_tables.safetensors"  # in a model's folder

# Neighbors of a pixel that come before it in raster order: rows up, and columns to the left.
OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))

# Chosen by the tokens of a pass of 8 and of 16 pixels, with the shipped model. The share of each
# neighbor is below 1, as neighbors are alike: together they would tell the same news twice.
_WEIGHT = 0.65
# As many pairs by chance are added to those that were seen.
_PRIOR = 100.0
_MOST_COLORS = 1024  # a table has the square of it


class NeighborTables:
    """For each neighbor of a pixel, how much more or less likely its color makes each color.

    They correct the logits of a pass whose guesses of the neighbors were wrong, and stand for
    logits where there are none yet.

    Attributes:
        frequencies: (V,) float32, the log of each color's share of all pixels.
        tables: (K, V + 1, V) float32: of neighbor `OFFSETS[k]` of color n, what is added to the
            logit of each color; zeros at n = V, which stands for no neighbor.
    """

    def __init__(self, frequencies: Tensor, tables: Tensor) -> None:
        self.frequencies, self.tables = frequencies, tables

    @classmethod
    def load(
        cls,
        path_or_uri: str,
        *,
        n_colors: int,
        device: torch.device | str = "cpu",
        storage_options: Mapping[str, Any] | None = None,
    ) -> "NeighborTables | None":
        """Loads those that lie beside a model's weights; None where there are none.

        Raises CheckpointError where they cannot be fetched or are no such tables.
        """
        n_colors = check_whole("n_colors", n_colors, least=1)
        try:
            (path,) = model_files(path_or_uri, [TABLES_FILE], storage_options=storage_options)
        except NoFileError:
            return None
        try:
            found = load_file(path, device=str(device))
            tables, frequencies = found["tables"].float(), found["frequencies"].float()
        except (SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(
                f"{path}: expected tables of neighboring pixels, found {type(error).__name__}; "
                "next: remove it, the model can do without"
            ) from error
        shapes = (len(OFFSETS), n_colors + 1, n_colors), (n_colors,)
        if (tables.shape, frequencies.shape) != shapes:
            raise CheckpointError(
                f"{path}: expected tables of {n_colors} colors, found {tuple(tables.shape)}; "
                "next: remove it, the model can do without"
            )
        return cls(frequencies, tables)

    def to(self, device: torch.device | str) -> "NeighborTables":
        """Returns these on a device."""
        return NeighborTables(self.frequencies.to(device), self.tables.to(device))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes them into a model's local folder, in float16."""
        path, temporary = Path(folder, TABLES_FILE), Path(folder, f".{TABLES_FILE}.tmp")
        tensors = {"tables": self.tables, "frequencies": self.frequencies}
        temporary.write_bytes(save({name: each.half().cpu() for name, each in tensors.items()}))
        os.replace(temporary, path)

    @classmethod
    def counted(cls, images: Tensor, known: Tensor, *, n_colors: int) -> "NeighborTables | None":
        """Counts the pairs of neighbors in images, on their device.

        Args:
            images: (B, N) of any integer dtype, colors in [0, n_colors), squares in raster order.
            known: (B, N) bool, which pixels of them are counted.
            n_colors: V.

        Returns:
            None where there are too many colors for tables, or no pixel to count.

        Raises ValueError for another dtype or shape, and known pixels that are no colors.
        """
        n_colors = check_whole("n_colors", n_colors, least=1)
        images = whole_tensor("images", images)
        if known.dtype != torch.bool or known.shape != images.shape:
            raise ValueError(
                f"expected known pixels to be torch.bool of shape {tuple(images.shape)}, found "
                f"{known.dtype} of {tuple(known.shape)}"
            )
        whole_tensor("known pixels of images", images[known], below=n_colors)
        if n_colors > _MOST_COLORS or not bool(known.any()):
            return None
        side = math.isqrt(images.shape[1])
        square = (-1, side, side)
        image = images[:, : side * side].view(square)
        given = known[:, : side * side].view(square)
        shares = torch.bincount(image[given], minlength=n_colors) + 1.0
        shares = shares / shares.sum()
        tables = image.new_zeros((len(OFFSETS), n_colors + 1, n_colors), dtype=torch.float32)
        for table, (up, left) in zip(tables, OFFSETS, strict=True):
            pixels, neighbors = _pairs(image, up, left)
            both = torch.logical_and(*_pairs(given, up, left))
            pair = neighbors[both] * n_colors + pixels[both]
            counts = torch.bincount(pair, minlength=n_colors**2).view(n_colors, n_colors)
            likely = (counts + _PRIOR * shares) / (counts.sum(dim=1, keepdim=True) + _PRIOR)
            table[:n_colors] = _WEIGHT * (likely / shares).log()
        return cls(shares.log(), tables)


def _pairs(image: Tensor, up: int, left: int) -> tuple[Tensor, Tensor]:
    """Returns two views (B, h, w) of images (B, side, side): the pixels that have a neighbor there,
    and these."""
    side = image.shape[1]
    columns = slice(max(left, 0), side + min(left, 0))
    of_neighbors = slice(columns.start - left, columns.stop - left)
    return image[:, up:, columns], image[:, : side - up, of_neighbors]


class Neighbors:
    """The neighbors of pixels in sequences of one size, looked up in tables."""

    def __init__(self, tables: NeighborTables, n_pixels: int, *, beyond: int) -> None:
        """Args:
        n_pixels: of an image; the pixel at position p of a sequence is p - 1.
        beyond: positions behind the last one, which may be asked for too.
        """
        device = tables.tables.device
        side = max(math.isqrt(n_pixels), 1)
        at = torch.arange(-1, n_pixels + beyond, device=device)[:, None]
        up, left = torch.tensor(OFFSETS, device=device).T
        column = at % side - left
        self._back = up * side + left
        self._is_inside = (at >= self._back) & (column >= 0) & (column < side)
        n_tables, n_rows, n_colors = tables.tables.shape
        self._flat = tables.tables.view(-1, n_colors)
        self._first = torch.arange(n_tables, device=device) * n_rows
        self._none = n_colors

    def sum(self, tokens: Tensor, at: Tensor) -> Tensor:
        """Sums what the neighbors of the pixels at positions (R, n) of tokens (R, L) tell:
        (R, n, V)."""
        where = (at[..., None] - self._back).clamp(min=0)
        colors = tokens.gather(1, where.flatten(1)).view(where.shape)
        rows = torch.where(self._is_inside[at], colors, self._none) + self._first
        found = embedding_bag(rows.flatten(0, 1), self._flat, mode="sum")
        return found.view(*at.shape, -1)
