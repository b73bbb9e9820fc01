"""ImageGPT without Ray: models, palettes, sampling, scoring, checkpoints.

Everything that the pipeline does to one batch can be done with these names alone. The file that a
name comes from is imported when the name is first asked for: torch takes seconds to import, and
the command line needs no more than `igpt_core.errors` to answer `--help`.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

__all__ = [  # noqa: RUF022, in the order of sorted()
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "BatchFeature",
    "CausalOutput",
    "CheckpointError",
    "ClassifierOutput",
    "ColorHistogram",
    "GenerateOutput",
    "GenerationConfig",
    "ImageError",
    "ImageGPT",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractor",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTImageProcessor",
    "ImageGPTModel",
    "ImageGPTPreTrainedModel",
    "ImageScore",
    "KVCache",
    "LinearProbe",
    "ModelOutput",
    "NeighborTables",
    "NonFiniteError",
    "Palette",
    "Pinned",
    "SamplingConfig",
    "TrainingConfig",
    "VARIANTS",
    "bits_per_pixel",
    "chosen_layers",
    "complete",
    "complete_prompts",
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

if TYPE_CHECKING:
    from igpt_core.conversion.convert import convert_checkpoint
    from igpt_core.errors import CheckpointError, NonFiniteError
    from igpt_core.generation.completion import Pinned, complete, complete_prompts
    from igpt_core.generation.drafts import NeighborTables
    from igpt_core.generation.sampling import SamplingConfig, row_seed
    from igpt_core.heads import (
        ImageGPTForCausalImageModeling,
        ImageGPTForImageClassification,
        load_model,
        random_model,
    )
    from igpt_core.heads import ImageGPTForImageClassification as AutoModelForImageClassification
    from igpt_core.images.batch_feature import BatchFeature
    from igpt_core.images.image_processor import ImageGPTFeatureExtractor, ImageGPTImageProcessor
    from igpt_core.images.image_processor import ImageGPTFeatureExtractor as AutoFeatureExtractor
    from igpt_core.images.image_processor import ImageGPTImageProcessor as AutoImageProcessor
    from igpt_core.images.model_palette import load_image_size, load_palette
    from igpt_core.images.palette import ColorHistogram, Palette
    from igpt_core.images.pixels import encode_png, load_pixels
    from igpt_core.images.raster_formats import ImageError
    from igpt_core.interface.image_gpt import ImageGPT, ImageScore
    from igpt_core.learning.features import chosen_layers, pooled_features
    from igpt_core.learning.probe import LinearProbe
    from igpt_core.learning.scoring import bits_per_pixel, token_nll
    from igpt_core.learning.training_config import TrainingConfig
    from igpt_core.model.checkpoint import (
        ImageGPTPreTrainedModel,
        model_fingerprint,
        save_checkpoint,
    )
    from igpt_core.model.config import VARIANTS, ImageGPTConfig
    from igpt_core.model.config import ImageGPTConfig as AutoConfig
    from igpt_core.model.generation_config import GenerationConfig
    from igpt_core.model.kv_cache import KVCache
    from igpt_core.model.outputs import (
        CausalOutput,
        ClassifierOutput,
        GenerateOutput,
        ModelOutput,
    )
    from igpt_core.model.transformer import ImageGPTModel
    from igpt_core.model.transformer import ImageGPTModel as AutoModel
else:
    # Classes of transformers that choose by the kind of a model: there is one here.
    _CHOSEN = {
        "AutoConfig": "ImageGPTConfig",
        "AutoFeatureExtractor": "ImageGPTFeatureExtractor",
        "AutoImageProcessor": "ImageGPTImageProcessor",
        "AutoModel": "ImageGPTModel",
        "AutoModelForImageClassification": "ImageGPTForImageClassification",
    }
    _MODULE_OF = {
        "BatchFeature": "images.batch_feature",
        "CausalOutput": "model.outputs",
        "CheckpointError": "errors",
        "ClassifierOutput": "model.outputs",
        "ColorHistogram": "images.palette",
        "GenerateOutput": "model.outputs",
        "GenerationConfig": "model.generation_config",
        "ImageError": "images.raster_formats",
        "ImageGPT": "interface.image_gpt",
        "ImageGPTConfig": "model.config",
        "ImageGPTFeatureExtractor": "images.image_processor",
        "ImageGPTForCausalImageModeling": "heads",
        "ImageGPTForImageClassification": "heads",
        "ImageGPTImageProcessor": "images.image_processor",
        "ImageGPTModel": "model.transformer",
        "ImageGPTPreTrainedModel": "model.checkpoint",
        "ImageScore": "interface.image_gpt",
        "KVCache": "model.kv_cache",
        "LinearProbe": "learning.probe",
        "ModelOutput": "model.outputs",
        "NeighborTables": "generation.drafts",
        "NonFiniteError": "errors",
        "Palette": "images.palette",
        "Pinned": "generation.completion",
        "SamplingConfig": "generation.sampling",
        "TrainingConfig": "learning.training_config",
        "VARIANTS": "model.config",
        "bits_per_pixel": "learning.scoring",
        "chosen_layers": "learning.features",
        "complete": "generation.completion",
        "complete_prompts": "generation.completion",
        "convert_checkpoint": "conversion.convert",
        "encode_png": "images.pixels",
        "load_image_size": "images.model_palette",
        "load_model": "heads",
        "load_palette": "images.model_palette",
        "load_pixels": "images.pixels",
        "model_fingerprint": "model.checkpoint",
        "pooled_features": "learning.features",
        "random_model": "heads",
        "row_seed": "generation.sampling",
        "save_checkpoint": "model.checkpoint",
        "token_nll": "learning.scoring",
    }

    _THEIRS = (
        *("AutoProcessor", "DynamicCache", "Trainer", "TrainingArguments", "pipeline"),
        *("default_data_collator", "set_seed"),
    )

    def __getattr__(name):
        """Imports a public name's module at its first use (PEP 562)."""
        if name in _THEIRS:
            raise ImportError(
                f"{name} is no part of igpt_core; next: from transformers import {name}, which "
                "takes the models that are made here"
            )
        kind = _CHOSEN.get(name, name)
        if kind not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_import_module(f"{__name__}.{_MODULE_OF[kind]}"), kind)
        globals()[name] = value  # the next use finds it there
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
