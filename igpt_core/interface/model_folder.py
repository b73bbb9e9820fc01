"""What a model folder must hold for what is asked of it: a head, a palette, an image size."""

from collections.abc import Mapping
from typing import Any

from igpt_core.errors import CheckpointError, NoHeadError
from igpt_core.heads import HEADS
from igpt_core.images.palette import Palette
from igpt_core.model.config import ImageGPTConfig

_HEADLESS: dict[str | None, str] = {
    "causal": "has no next-pixel head; next: another model, as of igpt train; this one can embed "
    "and classify, and igpt finetune takes it with --next-pixel-weight 0",
    "classification": "has no classification head; next: igpt finetune gives it one",
}


def check_head(
    location: str, head: str | None, storage_options: Mapping[str, Any] | None
) -> ImageGPTConfig:
    """Returns the configuration of a folder whose weights are all there, those of a head of HEADS
    among them; they are not read.

    Raises NoHeadError where the head alone is missing, CheckpointError for anything else.
    """
    try:
        return HEADS[head].check_pretrained(location, storage_options=storage_options)
    except NoHeadError as error:
        raise NoHeadError(f"{location} {_HEADLESS[head]}") from error


def check_sizes(location: str, config: ImageGPTConfig, palette: Palette, image_size: int) -> None:
    """Raises CheckpointError for a folder whose model has fewer positions than its images pixels,
    or fewer colors than its palette."""
    if image_size**2 > config.n_positions or len(palette) > config.n_colors:
        raise CheckpointError(
            f"{location} has {config.n_positions} positions and {config.n_colors} colors, its "
            f"preprocessor_config.json {image_size} x {image_size} pixels and {len(palette)} "
            "colors; next: a model folder whose files fit"
        )
