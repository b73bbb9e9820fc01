"""ImageGPT: a model and its palette, for images in this process."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from igpt_core.errors import CheckpointError, check_whole
from igpt_core.files.model_files import resolve_revision
from igpt_core.generation.known_pixels import prompt_length
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.images.image_inputs import is_path
from igpt_core.images.model_palette import load_image_size, load_palette
from igpt_core.images.pixels import Crop, Resize, check_resize_and_crop
from igpt_core.interface.batch_size import Memory
from igpt_core.interface.inputs import ImageInput, ImageList, Inputs
from igpt_core.interface.model_batches import ModelBatches
from igpt_core.interface.model_folder import check_head, check_sizes
from igpt_core.learning.features import chosen_layers, pooled_features
from igpt_core.learning.scoring import token_nll
from igpt_core.model.config import CONFIG_FILE
from igpt_core.model.placement import best_device, best_dtype, find_dtype

# One process may take more than an actor, of which a machine has several.
_CPU = Memory.of_cpu(8 << 30)

Floats = npt.NDArray[np.float32]
Layers = str | SupportsIndex | Iterable[SupportsIndex]


@dataclass(frozen=True, eq=False)
class ImageScore:
    """How likely a model finds an image.

    Attributes:
        nll: nats per pixel, the mean of `nll_map`; lower is more likely.
        bits_per_pixel: the same in bits.
        nll_map: (side, side) float32, the nats of each pixel given those before it.
    """

    nll: float
    bits_per_pixel: float
    nll_map: Floats


class ImageGPT:
    """Completes, samples, scores, embeds and classifies images, as the jobs of these names do.

    An image is the path of a local file, encoded bytes, a binary file that is open, a PIL image of
    any mode, or a numpy array or torch tensor (H, W), (H, W, C) or (C, H, W), gray, RGB or RGBA,
    uint8 or as `to_uint8` takes values; where either axis may be that of 1, 3 or 4 channels, the
    last is. It is made `side` x `side` pixels and quantized. A list or tuple of images, an iterator
    or a batch of four axes gives a list of results, each of which depends on its own image alone.

    Where stderr is a terminal, work of more than a second shows there how far it is. Methods raise
    ImageError for an image that cannot be used, TypeError for what is none, ValueError for options
    out of range, NonFiniteError for a model that overflows in its dtype, and CheckpointError for
    one that lacks the head.

    Attributes:
        config: of the model.
        palette: its colors.
        side: pixels a side.
        device, dtype: in which it computes.
    """

    def __init__(self, model: ModelBatches, inputs: Inputs) -> None:
        """Use `from_pretrained`."""
        self._model, self._inputs = model, inputs
        self.config, self.palette, self.side = model.config, inputs.palette, inputs.side
        self.device, self.dtype = model.device, model.dtype

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int | None = None,
        resize: Resize = "exact",
        crop: Crop = "squash",
        storage_options: Mapping[str, Any] | None = None,
    ) -> "ImageGPT":
        """Opens a model folder. Its weights are checked; the first method reads them.

        Args:
            path_or_uri: a folder, its URI, a hub id or "embedded"; see `load_model`.
            device: a GPU where there is one, unless given.
            dtype: bfloat16 on GPUs and on processors that multiply it, else float32, unless given.
            batch_size: images that are computed together; of `complete` and `sample` sequences. As
                many as there are, up to what memory holds and a bound, on a CPU 16 and 32, unless
                given. With that of a job (run.json), and torch.set_num_threads(1) on a CPU, the
                results are the job's to the bit; with another a rounding may tip a draw.
            resize, crop: how images become square pixels; see `load_pixels`.
            storage_options: for the URI's filesystem.

        Raises:
            CheckpointError: no such folder, or files that do not fit. ValueError: a batch size
                below 1, a GPU that is not there, another device, resize or crop. TypeError: a
                dtype or a folder that is none.
        """
        if not is_path(path_or_uri):
            raise TypeError(
                "expected a model's folder, its URI, its id on the Hugging Face Hub or 'embedded', "
                f"found {type(path_or_uri).__name__}"
            )
        if batch_size is not None:
            check_whole("batch_size", batch_size, least=1)
        check_resize_and_crop(resize, crop)
        dtype = find_dtype(dtype, None)
        device = best_device(device)
        location = resolve_revision(os.fspath(path_or_uri), (CONFIG_FILE,))
        config = check_head(location, None, storage_options)
        palette = load_palette(location, storage_options)
        side = load_image_size(location, storage_options)
        check_sizes(location, config, palette, side)
        on_gpu = device.type == "cuda"
        model = ModelBatches(
            location,
            config,
            device,
            dtype or best_dtype(device.type),
            batch_size,
            Memory.of_gpu(torch.cuda.mem_get_info(device)[0]) if on_gpu else _CPU,
            storage_options,
        )
        return cls(model, Inputs(palette, side, resize, crop))

    @overload
    def complete(
        self,
        image: ImageInput,
        *,
        keep: float | str = ...,
        samples: int = ...,
        seed: int = ...,
        ids: str | None = ...,
        known: Any = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
    ) -> list[Image.Image]: ...

    @overload
    def complete(
        self,
        image: ImageList,
        *,
        keep: float | str = ...,
        samples: int = ...,
        seed: int = ...,
        ids: Sequence[str] | None = ...,
        known: Any = ...,
        temperature: float = ...,
        top_k: int | None = ...,
        top_p: float | None = ...,
    ) -> list[list[Image.Image]]: ...

    def complete(
        self,
        image: ImageInput | ImageList,
        *,
        keep: float | str = 0.5,
        samples: int = 1,
        seed: int = 0,
        ids: str | Sequence[str] | None = None,
        known: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> list[Image.Image] | list[list[Image.Image]]:
        """Finishes an image from its upper part, or from any known pixels, as `igpt complete`.

        Args:
            keep: how much is known from the top: a share of the rows, "16rows" or "500pixels"; 0
                beside `known`.
            samples: completions of each image, which are computed together; sample 0 is the same
                whether there are more.
            seed: of the run; with an id it makes the image's own, see `row_seed`.
            ids: of each image; unless given the file's name of a path or an open file, which is a
                job's id of a file in its input folder, and of other images the number in the list,
                "0" of one.
            known: pixels known beside the upper part: an array of bool (side, side), true for
                known; or an image as `--mask` takes it, black (darker than half) for known; not
                an array of zeros and ones alone, which could be either. One for all images, or one
                for each as a list, an iterator or a batch.
            temperature, top_k, top_p: see `SamplingConfig`; top_k = 0 is no limit either.

        Returns:
            `samples` RGB images of `side` x `side` pixels, in the palette's colors.
        """
        check_whole("seed", seed)
        check_whole("samples", samples, least=1)
        sampling = SamplingConfig(temperature, top_k or None, top_p)
        length = prompt_length(str(keep), self.side, masked=known is not None)
        images = self._inputs.read(image)
        seeds = [row_seed(seed, id_) for id_ in images.ids(ids)]
        drawn = self._model.draw(
            images.tokens,
            seeds,
            length=length,
            known=None if known is None else self._inputs.known(known, len(seeds)),
            samples=samples,
            sampling=sampling,
            doing="complete",
        )
        pictures = [[self._picture(tokens) for tokens in row] for row in drawn]
        return images.results(pictures)

    def sample(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> list[Image.Image]:
        """Draws n unconditional samples, the first of those of `igpt sample` with the same seed.

        Args:
            seed: of the run; the id of sample k is "sample-" and k in 8 digits, as there.
            temperature, top_k, top_p: see `SamplingConfig`; top_k = 0 is no limit either.

        Returns:
            RGB images of `side` x `side` pixels.
        """
        check_whole("seed", seed)
        check_whole("n", n, least=1)
        drawn = self._model.draw(
            np.zeros((n, self.side**2), np.int64),
            [row_seed(seed, f"sample-{number:08d}") for number in range(n)],
            length=0,
            known=None,
            samples=1,
            sampling=SamplingConfig(temperature, top_k or None, top_p),
            doing="sample",
        )
        return [self._picture(tokens) for (tokens,) in drawn]

    @overload
    def score(self, image: ImageInput) -> ImageScore: ...

    @overload
    def score(self, image: ImageList) -> list[ImageScore]: ...

    def score(self, image: ImageInput | ImageList) -> ImageScore | list[ImageScore]:
        """Computes how likely the model finds an image, as `igpt score --map`."""
        images = self._inputs.read(image)
        compute = partial(token_nll, self._model.load("causal"))
        nll = self._model.forward(compute, images.tokens, doing="score", results="likelihoods")
        return images.results([self._scored(row) for row in nll])

    @overload
    def embed(self, image: ImageInput, *, layers: Layers = ...) -> dict[int, Floats]: ...

    @overload
    def embed(self, image: ImageList, *, layers: Layers = ...) -> list[dict[int, Floats]]: ...

    def embed(
        self,
        image: ImageInput | ImageList,
        *,
        layers: Layers = "middle",
    ) -> dict[int, Floats] | list[dict[int, Floats]]:
        """Computes features of an image: hidden states averaged over positions, as `igpt embed`.

        Args:
            layers: "middle" (n_layer // 2), "all", a number or numbers, as "8,12" too; 0 is the
                embedding. Blocks above the highest are not run.

        Returns:
            For each layer, ascending, (n_embd,) float32.
        """
        chosen = chosen_layers(_layers_as_text(layers), self.config.n_layer)
        model = self._model.load(None)

        def pooled(tokens: Tensor) -> Tensor:
            return torch.stack(list(pooled_features(model, tokens, chosen).values()), dim=1)

        images = self._inputs.read(image)
        features = self._model.forward(pooled, images.tokens, doing="embed", results="features")
        return images.results([dict(zip(chosen, row, strict=True)) for row in features])

    @overload
    def classify(self, image: ImageInput) -> list[tuple[str, float]]: ...

    @overload
    def classify(self, image: ImageList) -> list[list[tuple[str, float]]]: ...

    def classify(
        self, image: ImageInput | ImageList
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Finds the class of an image by a fine-tuned model, as `igpt classify`.

        Returns:
            The label of each class and its probability, the most probable first.
        """
        model = self._model.load("classification")
        if self.config.num_labels < 2:
            raise CheckpointError(
                "expected a model with classes, found one whose one output is a number; next: igpt "
                "finetune with labels of two classes or more"
            )
        images = self._inputs.read(image)
        logits = self._model.forward(
            lambda batch: model(batch, use_cache=False).logits,
            images.tokens,
            doing="classify",
            results="logits",
        )
        found = [self._labeled(row) for row in logits]
        return images.results(found)

    def _picture(self, tokens: npt.NDArray[np.int64]) -> Image.Image:
        return Image.fromarray(self.palette.decode(tokens.reshape(self.side, self.side)))

    def _scored(self, nll: Floats) -> ImageScore:
        """Makes the score of the nats of an image's pixels (T,)."""
        mean = float(nll.mean(dtype=np.float64))
        return ImageScore(mean, mean / math.log(2), nll.reshape(self.side, self.side))

    def _labeled(self, logits: Floats) -> list[tuple[str, float]]:
        """Names the classes of logits (num_labels,), the most probable first."""
        chances = np.exp(logits.astype(np.float64) - logits.max())
        chances /= chances.sum()
        order = np.argsort(-logits, kind="stable")
        return [(self.config.id2label[int(label)], float(chances[label])) for label in order]


def _layers_as_text(layers: Any) -> str:
    """Writes a number or numbers of layers as `chosen_layers` reads them; text is returned itself.

    Raises TypeError for what is no whole number.
    """
    if isinstance(layers, str):
        return layers
    try:
        numbers = list(layers)
    except TypeError:  # one number, which may be an array without axes
        numbers = [layers]
    return ",".join(str(check_whole("each of the layers", number)) for number in numbers)
