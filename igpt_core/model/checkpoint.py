"""Model folders in Hugging Face's layout, in and out: strict about what the weights must be.

A folder holds config.json, weights in one file or in shards and, where images are to be quantized,
preprocessor_config.json with the palette and the image size.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from igpt_core.errors import CheckpointError, NoHeadError
from igpt_core.files.model_files import at_revision
from igpt_core.images.palette import Palette
from igpt_core.model.config import CONFIG_FILE, ImageGPTConfig, read_config
from igpt_core.model.saving import make_processor, save_folder
from igpt_core.model.weights import HEADS, find_weights, mismatch, read_weights, rename

# Fields of config.json that say how the file came about and change no result.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class PreTrained(nn.Module):
    """What the model classes share: made as `cls(config)`, they come from and go to folders."""

    config: ImageGPTConfig
    # A weight that a folder may lack: fine-tuning begins with a new one.
    new_head: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        **config_fields: Any,
    ) -> Self:
        """Loads the model of a folder, in eval mode.

        A classifier made of a folder without a classification head gets a new one, drawn from
        torch's global generator, with a warning.

        Args:
            path_or_uri: a local folder, "embedded", the URI of a folder on any fsspec filesystem,
                of which the files needed are fetched once per node, or the id of a model on the
                Hugging Face Hub, `owner/name` or `owner/name@revision`.
            dtype: of the weights; that of the stored ones unless given.
            storage_options: for the URI's filesystem.
            revision: branch, tag or commit of a model on the Hub; other places have none, and it
                is ignored for them as in transformers.
            config_fields: in place of those in config.json, such as num_labels, as in transformers.

        Raises:
            CheckpointError: no such folder, a file missing or damaged, or weights that do not
                fit config.json. Weights of other heads than the class has are left out.
            TypeError: a keyword that is no field of the configuration.
        """
        where = at_revision(path_or_uri, revision)
        config, stored = _read(where, storage_options)
        config = config.with_fields(**config_fields)
        head = cls.new_head if cls.new_head not in stored else None
        model, weights = cls.fit(config, stored, where=where, lacking=head)
        if dtype is None:
            dtype = weights[next(iter(model.state_dict()))].dtype
        if head is not None:
            shape = model.get_parameter(head).shape
            weights[head] = torch.empty(shape).normal_(std=config.initializer_range)
            warnings.warn(f"{where}: {head} is not in it and is new: train it", stacklevel=2)
        # One by one, so that beside the mapped file there is only what the model keeps.
        for name in list(weights):
            weights[name] = weights.pop(name).to(device, dtype, copy=True)
        names = {id(weight): name for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters(remove_duplicate=False):
            weights[name] = weights[names[id(weight)]]  # tied ones are stored once
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        return model.eval()

    @classmethod
    def check_pretrained(
        cls,
        path_or_uri: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ImageGPTConfig:
        """Checks that `from_pretrained` would load a folder; returns its configuration. Weights are
        fetched and held against it by name, shape and dtype, their values are not read.

        Raises CheckpointError as `from_pretrained` does.
        """
        where = os.fspath(path_or_uri)
        return cls.fit(*_read(where, storage_options), where=where)[0].config

    @classmethod
    def fit(
        cls,
        config: ImageGPTConfig,
        weights: Mapping[str, Tensor],
        *,
        where: str,
        lacking: str | None = None,
    ) -> tuple[Self, dict[str, Tensor]]:
        """Makes a model on the meta device, and names the weights as it does: those of other heads
        than the class has are left out. A weight that is `lacking` need not be among them.

        Raises CheckpointError, which starts with `where`, for weights that do not fit.
        """
        try:
            with torch.device("meta"), _NoDraws():  # shapes only: nothing is allocated
                model = cls(config)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}") from error
        wanted = {name: w for name, w in model.named_parameters() if name != lacking}
        renamed = rename(weights, wanted)
        if problem := mismatch(renamed, wanted):
            found = {n: w for n, w in wanted.items() if n in renamed or not n.startswith(HEADS)}
            kind = CheckpointError if mismatch(renamed, found) else NoHeadError
            raise kind(f"{where}: its weights do not fit {cls.__name__}: {problem}")
        return model, renamed

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes config.json and model.safetensors; see `save_checkpoint`."""
        save_checkpoint(self, path)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def base_model(self) -> nn.Module:
        """Returns the bare transformer, itself where there is no head."""
        return getattr(self, "transformer", self)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the colors' embedding, whose last row is the start token's."""
        return self.base_model.wte  # type: ignore[return-value]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.wte = value

    def tie_weights(self) -> None:
        """Makes one parameter of those that the configuration ties: none where there is no head."""

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Counts the numbers in the weights, tied ones once.

        Args:
            only_trainable: leave out those that take no gradient.
            exclude_embeddings: leave out the embeddings of colors and positions.
        """
        embeddings = [m for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(m.weight) for m in embeddings} if exclude_embeddings else set()
        return sum(
            weight.numel()
            for weight in self.parameters()
            if id(weight) not in left_out and (weight.requires_grad or not only_trainable)
        )


def _read(
    where: str, storage_options: Mapping[str, Any] | None
) -> tuple[ImageGPTConfig, dict[str, Tensor]]:
    """Reads the configuration and the weights of a folder, mapped from files where possible."""
    config_file, weights_file = find_weights(where, CONFIG_FILE, storage_options=storage_options)
    return read_config(config_file, where=where), read_weights(weights_file, where=where)


class _NoDraws(TorchFunctionMode):
    """Leaves out random initialization: on shapes alone it is of no use and costs seconds, as
    torch imports its symbolic shapes for it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def save_checkpoint(
    model: PreTrained,
    path: str | os.PathLike[str],
    *,
    palette: Palette | None = None,
    image_size: int | None = None,
) -> None:
    """Writes a model folder, which transformers reads as well, in the dtype of the model.

    Args:
        path: a local folder, see `save_folder`.
        palette: n_colors colors, for preprocessor_config.json. Without it that file is not
            written, and stays if it is there.
        image_size: side of the images of preprocessor_config.json; the root of n_positions
            unless given.

    Raises:
        CheckpointError: a URI, or a palette or image size that does not fit the model.
    """
    if palette is None and image_size is not None:
        raise CheckpointError("image_size is stored with the palette: give both or none")
    processor = None if palette is None else make_processor(model.config, palette, image_size)
    save_folder(
        path,
        model.config,
        dict(model.named_parameters()),
        architecture=type(model).__name__,
        processor=processor,
    )


def model_fingerprint(
    path_or_uri: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> str:
    """Hashes the configuration and the weights to 32 hex digits.

    The same for both file formats, for shards or one file, and for any place; another where a
    field or a weight's name, dtype, shape or bits differ. Reads all the weights.
    """
    where = os.fspath(path_or_uri)
    config_file, weights_file = find_weights(where, CONFIG_FILE, storage_options=storage_options)
    fields = read_config(config_file, where=where).to_dict()
    fields = {name: value for name, value in fields.items() if name not in _BOOKKEEPING}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    weights = read_weights(weights_file, where=where)
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
