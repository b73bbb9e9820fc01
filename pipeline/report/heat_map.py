"""Heat maps: the negative log-likelihood of each pixel, from dark to bright."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# Even steps of lightness in OKLab, from blue over red to yellow.
COLORS = (
    (16, 12, 42),
    (53, 19, 80),
    (101, 26, 101),
    (150, 39, 105),
    (194, 65, 96),
    (225, 105, 85),
    (240, 152, 94),
    (243, 198, 140),
    (246, 239, 211),
)
_SHARE = 0.99  # of all pixels are on the scale: a few outliers do not make the others dark


def scale_top(maps: Sequence[ArrayLike]) -> float:
    """Finds the nats of the brightest color, the same for all maps of a report.

    Pixels above it have that color too.
    """
    nats = np.concatenate([np.empty(0), *(np.asarray(one, np.float64).ravel() for one in maps)])
    nats = nats[np.isfinite(nats)]
    top = float(np.quantile(nats, _SHARE)) if nats.size else 0.0
    return top if top > 0 else 1.0


def draw_heat_map(nats: NDArray[np.float32], top: float) -> bytes:
    """Draws nats (H, W) as a PNG, dark at 0 and bright at `top`; NaN is transparent."""
    known = ~np.isnan(nats)
    at = np.where(known, np.clip(nats, 0, top), 0) / top
    steps = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(at, steps, np.array(COLORS)[:, c]) for c in range(3)]
    pixels = np.rint(np.stack([*channels, known * 255.0], axis=-1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if not known.all() else pixels[..., :3]).save(buffer, "PNG")
    return buffer.getvalue()
