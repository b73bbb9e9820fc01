"""OpenAI's ImageGPT checkpoints: TensorFlow's variables as the weights of Hugging Face's layout.

Axes as in `igpt_core/model/transformer.py`. In OpenAI's code every projection of the attention is
stored head by head, (H, D, C), and there are no biases:
q, k, v = einsum("bsf,hef->bhse", x, w), and out = einsum("bhse,hef->bsf", a, w).
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from igpt_core.conversion.tf_bundle import Entry, data_name, read_index, read_tensor
from igpt_core.errors import CheckpointError
from igpt_core.files.model_files import model_files
from igpt_core.model.config import ImageGPTConfig
from igpt_core.model.weights import PREFIX

_SCOPE = "model/"  # the optimizer's variables and the step lie elsewhere, or below a variable
_INDEX = ".index"
_LOCATION = re.compile(r"(?P<folder>(?:.*/)?)(?P<name>[^/]*\.ckpt(?:-\d+)?)(?:\.index)?")

Shape = tuple[int, ...]


def is_openai(location: str) -> bool:
    """Tells whether a location is a TensorFlow checkpoint by its name: a prefix such as
    `.../model.ckpt-131000`, or that with `.index`."""
    return location.endswith(_INDEX) or _LOCATION.fullmatch(location) is not None


def read_openai(
    location: str, *, storage_options: Mapping[str, Any] | None = None
) -> tuple[ImageGPTConfig, dict[str, Tensor]]:
    """Reads the configuration, which follows from the shapes, and the weights under the names of
    ImageGPTForCausalImageModeling.

    Args:
        location: see `is_openai`; local or a URI.
        storage_options: for the URI's filesystem.

    Raises:
        CheckpointError: no such checkpoint, a file missing or damaged, or variables below `model/`
            that are not those of an ImageGPT.
    """
    folder, name = os.path.split(location.removesuffix(_INDEX))
    (index_file,) = model_files(folder or ".", (name + _INDEX,), storage_options=storage_options)
    index = read_index(index_file, where=location)
    entries = _model_entries(index.entries)
    config = _config(entries, location)
    _check(entries, config, location)
    shards = sorted({entry.shard for entry in entries.values()})
    files = model_files(
        folder or ".",
        *((data_name(name, shard, index.n_shards),) for shard in shards),
        storage_options=storage_options,
    )
    file_of = dict(zip(shards, files, strict=True))
    variables = {
        variable: read_tensor(_SCOPE + variable, entry, file_of[entry.shard], where=location)
        for variable, entry in entries.items()
    }
    return config, dict(_weights(variables, config))


def _model_entries(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Chooses those of the model, names without `model/`. What lies below another variable, as
    `model/wte/Adam` below `model/wte`, is what an optimizer keeps for that."""
    names = {name for name in entries if name.startswith(_SCOPE)}
    return {
        name.removeprefix(_SCOPE): entries[name]
        for name in sorted(names)
        if not any(name[:at] in names for at in _slashes(name))
    }


def _slashes(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "/"]


def _config(entries: Mapping[str, Entry], where: str) -> ImageGPTConfig:
    def shape(name: str, n_axes: int) -> Shape:
        if name not in entries:
            raise CheckpointError(f"{where}: expected the variable model/{name}, found none")
        found = _shape(name, entries[name])
        if len(found) != n_axes:
            raise CheckpointError(f"{where}: expected model/{name} of {n_axes} axes, found {found}")
        return found

    n_colors, n_embd = shape("wte", 2)
    layers = {name.partition("/")[0] for name in entries if re.match(r"h\d+/", name)}
    inner = shape("h0/mlp/c_fc/w", 2)[1]
    try:
        return ImageGPTConfig(
            vocab_size=n_colors + 1,
            n_positions=shape("wpe", 2)[0],
            n_embd=n_embd,
            n_layer=len(layers),
            n_head=shape("h0/attn/q_proj", 3)[0],
            n_inner=None if inner == 4 * n_embd else inner,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _shape(name: str, entry: Entry) -> Shape:
    """Returns a variable's shape: those of the MLP may be stored as kernels of width 1."""
    is_kernel = "/mlp/" in name and len(entry.shape) == 3 and entry.shape[0] == 1
    return entry.shape[1:] if is_kernel else entry.shape


def _shapes(config: ImageGPTConfig) -> dict[str, Shape]:
    """Lists the shapes of all variables of a model of this size."""
    width, inner = config.n_embd, config.inner_size
    heads = (config.n_head, config.head_size, width)
    layer = {
        "ln_1/g": (width,),
        "attn/q_proj": heads,
        "attn/k_proj": heads,
        "attn/v_proj": heads,
        "attn/c_proj": heads,
        "ln_2/g": (width,),
        "mlp/c_fc/w": (width, inner),
        "mlp/c_proj/w": (inner, width),
    }
    return {
        "wte": (config.n_colors, width),
        "sos": (width,),
        "wpe": (config.n_positions, width),
        **{f"h{i}/{name}": shape for i in range(config.n_layer) for name, shape in layer.items()},
        "ln_f/g": (width,),
        "wtet": (config.n_colors, width),
    }


def _check(entries: Mapping[str, Entry], config: ImageGPTConfig, where: str) -> None:
    """Raises CheckpointError, which names a variable that is not as the others demand."""
    wanted = _shapes(config)
    for name in entries:
        if name not in wanted:
            raise CheckpointError(f"{where}: model/{name} is no variable of an ImageGPT")
    for name, shape in wanted.items():
        if name not in entries:
            raise CheckpointError(f"{where}: expected the variable model/{name}, found none")
        if _shape(name, entries[name]) != shape:
            raise CheckpointError(
                f"{where}: expected model/{name} of shape {shape}, found {entries[name].shape}"
            )


def _weights(
    variables: Mapping[str, Tensor], config: ImageGPTConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields names and weights in Hugging Face's layout, where projections are (in, out)."""
    width, inner = config.n_embd, config.inner_size

    def bias(size: int) -> Tensor:
        return torch.zeros(size, dtype=variables["wte"].dtype)

    yield PREFIX + "wte.weight", torch.cat([variables["wte"], variables["sos"][None]])
    yield PREFIX + "wpe.weight", variables["wpe"]
    for i in range(config.n_layer):
        ours, theirs = f"{PREFIX}h.{i}.", f"h{i}/"
        qkv = [variables[f"{theirs}attn/{name}_proj"] for name in "qkv"]  # 3 x (H, D, C)
        yield ours + "ln_1.weight", variables[theirs + "ln_1/g"]
        yield ours + "attn.c_attn.weight", torch.cat(qkv).reshape(3 * width, width).t()
        yield ours + "attn.c_attn.bias", bias(3 * width)
        yield ours + "attn.c_proj.weight", variables[theirs + "attn/c_proj"].reshape(width, width)
        yield ours + "attn.c_proj.bias", bias(width)
        yield ours + "ln_2.weight", variables[theirs + "ln_2/g"]
        yield ours + "mlp.c_fc.weight", variables[theirs + "mlp/c_fc/w"].reshape(width, inner)
        yield ours + "mlp.c_fc.bias", bias(inner)
        yield ours + "mlp.c_proj.weight", variables[theirs + "mlp/c_proj/w"].reshape(inner, width)
        yield ours + "mlp.c_proj.bias", bias(width)
    yield PREFIX + "ln_f.weight", variables["ln_f/g"]
    yield "lm_head.weight", variables["wtet"]
