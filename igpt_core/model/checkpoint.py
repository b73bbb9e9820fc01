"""Model folders in Hugging Face's layout, in and out: strict about what the weights must be.

A folder holds config.json, weights in one file or in shards and, where images are to be quantized,
preprocessor_config.json with the palette and the image size.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor

from igpt_core.errors import ANY, CheckpointError, NoFileError, NoHeadError, refuse_unserved
from igpt_core.files.hub import PUSH_OPTIONS, push_folder
from igpt_core.files.loading import FetchOptions, refuse_without_meaning
from igpt_core.files.model_files import at_revision, model_files
from igpt_core.images.palette import Palette
from igpt_core.model.config import CONFIG_FILE, ImageGPTConfig, read_config
from igpt_core.model.generation_config import (
    GENERATION_CONFIG_FILE,
    GenerationConfig,
    options_in,
)
from igpt_core.model.model_methods import ModelMethods
from igpt_core.model.new_weights import Make, initial, new_tensors, on_meta, warn_of
from igpt_core.model.placement import DeviceMap, find_device, find_dtype
from igpt_core.model.saving import make_processor, parsed_size, save_folder
from igpt_core.model.weights import (
    HEADS,
    find_weights,
    mismatch,
    put_into,
    read_weights,
    rename,
    tensors_of,
)

# Fields of config.json that say how the file came about and change no result.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


class ImageGPTPreTrainedModel(ModelMethods):
    """What the model classes share: made as `cls(config)`, they come from and go to folders."""

    # A weight that a folder may lack: fine-tuning begins with a new one.
    new_head: str | None = None

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[False] = False,
        **arguments: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, dict[str, list[Any]]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: ImageGPTConfig | str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        device_map: DeviceMap = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **arguments: Any,
    ) -> Self | tuple[Self, dict[str, list[Any]]]:
        """Loads the model of a folder, in eval mode.

        A classifier made of a folder without a classification head gets a new one, drawn from
        torch's global generator, with a warning. So do the layers that a subclass has of its own,
        as its constructor makes them.

        Args:
            pretrained_model_name_or_path: a local folder, "embedded", the URI of a folder on any
                fsspec filesystem, of which the files needed are fetched once per node, or the id of
                a model on the Hugging Face Hub, `owner/name` or `owner/name@revision`.
            config: in place of config.json, itself or the place of a folder that has one.
            device: the CPU unless given.
            device_map: a device too, or "auto" for a GPU where there is one.
            dtype: of the weights, also by name; "auto", as without it, is that of config.json, else
                those that are stored.
            torch_dtype: the former name of dtype.
            storage_options: for the URI's filesystem.
            revision: branch, tag or commit of a model on the Hub; other places have none, and it
                is ignored for them as in transformers.
            use_safetensors: whether the file of weights must be, or must not be, of that format.
            ignore_mismatched_sizes: weights of another shape than the configuration has are new,
                with a warning.
            output_loading_info: return what was missing, unexpected or of another shape too.
            arguments: `subfolder`, and of the Hub `cache_dir`, `token`, `local_files_only` and
                `force_download`; those of transformers that change nothing here; and fields in
                place of those of the configuration, such as num_labels. Others are of a subclass's
                constructor, behind the configuration.

        Raises:
            CheckpointError: no such folder, a file missing or damaged, or weights that do not
                fit config.json. Weights of other heads than the class has are left out.
            TypeError: an argument that asks for what is not there, or is none.
        """
        fetch = FetchOptions.taken_from(arguments)
        refuse_without_meaning(arguments)
        device, dtype = find_device(device, device_map), find_dtype(dtype, torch_dtype)
        where = at_revision(pretrained_model_name_or_path, revision)
        found = find_weights(
            where,
            *(() if config is not None else (CONFIG_FILE,)),
            storage_options=storage_options,
            fetch=fetch,
            safetensors=use_safetensors,
        )
        config = _configuration(config, found[0], where, storage_options)
        make: Make[Self] = cls
        if cls._is_derived():
            own = {name: arguments.pop(name) for name in [*arguments] if not config.has_field(name)}
            make = partial(cls, **own)
        config = config.with_fields(**arguments)
        stored = read_weights(found[-1], where=where)
        shapes = on_meta(make, config, where)
        may_lack = tensors_of(shapes) if cls._is_derived() else filter(None, [cls.new_head])
        new = new_tensors(shapes, stored, [*may_lack], mismatched=ignore_mismatched_sizes)
        model, weights = cls.fit(config, stored, where=where, lacking=new, model=shapes)
        with_weights = cls._is_derived() or {*new} - {cls.new_head}
        made = make(config) if with_weights else model
        weights |= initial(made, new, config)
        # Of a caller's class all that its constructor makes stays, ties and other buffers too.
        model = made if cls._is_derived() else model
        floats = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
        first = next(iter(floats.values())).dtype  # of what is stored
        weights |= {name: floats[name].to(first) for name in new if name in floats}
        dtype = dtype or _dtype_named(config, weights)
        warn_of(new, where=where, dtypes={dtype or weight.dtype for weight in weights.values()})
        put_into(model, weights, device, dtype)
        model.tie_weights()
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        if cls.can_generate():
            model.generation_config = _generation_config(where, storage_options, fetch)
        model.eval()
        if not output_loading_info:
            return model
        known = {*weights, *rename(weights, stored)}  # by the names that the folder has
        return model, {
            "missing_keys": [name for name in new if name not in stored],
            "unexpected_keys": [name for name in stored if name not in known],
            "mismatched_keys": [name for name in new if name in stored],
            "error_msgs": [],
        }

    @classmethod
    def _is_derived(cls) -> bool:
        """Tells whether this is a class of a caller, which may have layers of its own."""
        return not cls.__module__.startswith("igpt_core.")

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
        config_file, weights_file = find_weights(
            where, CONFIG_FILE, storage_options=storage_options
        )
        config = read_config(config_file, where=where)
        return cls.fit(config, read_weights(weights_file, where=where), where=where)[0].config

    @classmethod
    def fit(
        cls,
        config: ImageGPTConfig,
        weights: Mapping[str, Tensor],
        *,
        where: str,
        lacking: Collection[str] = (),
        model: Self | None = None,
    ) -> tuple[Self, dict[str, Tensor]]:
        """Makes a model on the meta device, and names the weights as it does: those of other heads
        than the class has are left out, and those that are `lacking`, which are not looked at.
        `model`: one of shapes alone, where there is one.

        Raises CheckpointError, which starts with `where`, for weights that do not fit.
        """
        model = on_meta(cls, config, where) if model is None else model
        known = tensors_of(model)
        wanted = {name: w for name, w in known.items() if name not in lacking}
        renamed = {name: w for name, w in rename(weights, known).items() if name not in lacking}
        if problem := mismatch(renamed, wanted):
            found = {n: w for n, w in wanted.items() if n in renamed or not n.startswith(HEADS)}
            kind = CheckpointError if mismatch(renamed, found) else NoHeadError
            raise kind(f"{where}: its weights do not fit {cls.__name__}: {problem}")
        return model, renamed

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        **arguments: Any,
    ) -> None:
        """Writes config.json and the weights into a local folder; see `save_folder`.

        Args:
            save_directory: made if need be; a model that is in it is replaced.
            is_main_process: nothing is written where false.
            state_dict: weights in place of the model's, by the same names.
            push_to_hub: upload the folder too, by its name or as `repo_id`; see `push_to_hub`.
            max_shard_size: bytes, or such as "5GB", for several files and an index; one file
                unless given.
            safe_serialization: pytorch_model.bin in place of safetensors where false.
            arguments: of `push_to_hub`.

        Raises:
            CheckpointError: a URI, or a state_dict without all of the model's tensors. TypeError:
                an argument that is none.
        """
        refuse_unserved("save_pretrained", arguments, _NEUTRAL_TO_SAVE, {})
        if not push_to_hub and arguments.keys() - {"token"}:
            raise TypeError(f"save_pretrained: there is no argument {next(iter(arguments))!r}")
        if is_main_process:
            weights = tensors_of(self)
            if state_dict is not None:
                if missing := [name for name in weights if name not in state_dict]:
                    raise CheckpointError(
                        f"expected all of the model's tensors in state_dict, found none of "
                        f"{missing[0]} and {len(missing) - 1} others; next: model.state_dict()"
                    )
                weights = {name: state_dict[name] for name in weights}
            save_folder(
                save_directory,
                self.config,
                weights,
                architecture=type(self).__name__,
                pickled=not safe_serialization,
                max_shard_bytes=parsed_size(max_shard_size),
            )
            if self.can_generate():
                GenerationConfig(**options_in(self.generation_config)).save_pretrained(
                    save_directory
                )
            if push_to_hub:
                repo_id = arguments.pop("repo_id", Path(save_directory).name)
                push_folder(save_directory, repo_id, **arguments)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Uploads the model to the Hugging Face Hub; returns the address of the commit.

        Args:
            repo_id: `owner/name`, made if need be.
            arguments: `private`, `token`, `commit_message`, `revision` and `create_pr`, see
                `push_folder`; the others are of `save_pretrained`.

        Raises CheckpointError where the Hub refuses it.
        """
        to_push = {name: arguments.pop(name) for name in PUSH_OPTIONS if name in arguments}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **arguments)
            return push_folder(folder, repo_id, **to_push)


# Of transformers, without a meaning here.
_NEUTRAL_TO_SAVE: Mapping[str, tuple[Any, ...]] = {
    "variant": (None,),
    **dict.fromkeys(("save_function", "save_peft_format", "save_original_format"), ANY),
}


def _generation_config(
    where: str, storage_options: Mapping[str, Any] | None, fetch: FetchOptions
) -> GenerationConfig:
    """Returns the options of `generate` that lie in a folder, none where there are none."""
    try:
        (file,) = model_files(
            where, (GENERATION_CONFIG_FILE,), storage_options=storage_options, fetch=fetch
        )
        return GenerationConfig.from_file(file)
    except NoFileError:
        return GenerationConfig()
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{where}: {GENERATION_CONFIG_FILE}: {error}") from error


def _configuration(
    config: ImageGPTConfig | str | os.PathLike[str] | None,
    file: Path,
    where: str,
    storage_options: Mapping[str, Any] | None,
) -> ImageGPTConfig:
    """Returns the configuration that is given, itself or its place, else that of a folder's file.
    One of transformers becomes one of here."""
    if config is None:
        return read_config(file, where=where)
    if isinstance(config, str | os.PathLike):
        return ImageGPTConfig.from_pretrained(config, storage_options=storage_options)
    if isinstance(config, ImageGPTConfig):
        return config
    return ImageGPTConfig.from_dict(config.to_dict())


def _dtype_named(config: ImageGPTConfig, weights: Mapping[str, Tensor]) -> torch.dtype | None:
    """Returns the dtype that a configuration names for weights of one dtype: they may be stored in
    a smaller one. None where it names none, or they are of several."""
    named = getattr(torch, config.dtype or "", None)
    stored = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    is_float = isinstance(named, torch.dtype) and named.is_floating_point
    return named if is_float and len(stored) == 1 else None


def save_checkpoint(
    model: ImageGPTPreTrainedModel,
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
        tensors_of(model),
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
