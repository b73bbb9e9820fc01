"""ImageGPT without Ray: models, palettes, sampling, scoring, checkpoints.

Everything that the pipeline does to one batch can be done with these names alone.
"""

from igpt_core.conversion.convert import convert_checkpoint
from igpt_core.generation.decoding import Pinned, complete
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import (
    CausalOutput,
    ClassifierOutput,
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTModel,
    ModelOutput,
    load_model,
    random_model,
)
from igpt_core.images.image_processor import (
    BatchFeature,
    ImageGPTFeatureExtractor,
    ImageGPTImageProcessor,
)
from igpt_core.images.palette import ColorHistogram, Palette
from igpt_core.images.pixels import ImageError, encode_png, load_pixels
from igpt_core.learning.features import chosen_layers, pooled_features
from igpt_core.learning.probe import LinearProbe
from igpt_core.learning.scoring import bits_per_pixel, token_nll
from igpt_core.learning.training import TrainingConfig
from igpt_core.model.checkpoint import (
    CheckpointError,
    load_image_size,
    load_palette,
    model_fingerprint,
    save_checkpoint,
)
from igpt_core.model.config import VARIANTS, ImageGPTConfig
from igpt_core.model.kv_cache import KVCache

__all__ = [  # noqa: RUF022, in the order of sorted()
    "BatchFeature",
    "CausalOutput",
    "CheckpointError",
    "ClassifierOutput",
    "ColorHistogram",
    "ImageError",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractor",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTImageProcessor",
    "ImageGPTModel",
    "KVCache",
    "LinearProbe",
    "ModelOutput",
    "Palette",
    "Pinned",
    "SamplingConfig",
    "TrainingConfig",
    "VARIANTS",
    "bits_per_pixel",
    "chosen_layers",
    "complete",
    "convert_checkpoint",
    "encode_png",
    "load_image_size",
    "load_model",
    "load_palette",
    "load_pixels",
    "model_fingerprint",
    "pooled_features",
    "random_model",
    "row_seed",
    "save_checkpoint",
    "token_nll",
]
