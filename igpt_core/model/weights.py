"""Files of weights: read without running code in them, their names held against a model's."""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from igpt_core.errors import CheckpointError
from igpt_core.files.loading import FROM_THE_FOLDER, FetchOptions
from igpt_core.files.model_files import model_files, resolve_revision

SAFETENSORS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
INDEX = ".index.json"  # after the name of a file of weights: which shard holds which weight
# Of a folder; the first that is there is read.
WEIGHTS_FILES = (
    *(SAFETENSORS_FILE, SAFETENSORS_FILE + INDEX),
    *(PICKLE_FILE, PICKLE_FILE + INDEX),
)

# Names of shards: files of the folder, never a way out of it.
_SHARD = re.compile(r"\w[\w.\-]*", re.ASCII)
# Causal masks that old checkpoints carry among the weights.
_MASK_BUFFER = re.compile(r"(.*\.)?(attn|crossattention)\.(bias|masked_bias)")
PREFIX = "transformer."  # where the classes with a head keep the bare model
HEADS = ("lm_head.", "score.")


def find_weights(
    where: str,
    *others: str,
    storage_options: Mapping[str, Any] | None,
    fetch: FetchOptions = FROM_THE_FOLDER,
    safetensors: bool | None = None,
) -> list[Path]:
    """Finds other files of a model folder and, as the last, that of its weights (`read_weights`).

    Where that file is an index, its shards lie beside it. `safetensors`: whether the weights must
    be, or must not be, in that format. Raises CheckpointError, see `model_files`.
    """
    names = [(name,) for name in others]
    weights = [
        name
        for name in WEIGHTS_FILES
        if safetensors is None or name.startswith(SAFETENSORS_FILE) == safetensors
    ]
    where = resolve_revision(where, *names, weights, fetch=fetch)
    find = partial(model_files, where, *names, storage_options=storage_options, fetch=fetch)
    found = find(weights)
    index = found[-1]
    if not index.name.endswith(INDEX):
        return found
    shards = [(shard,) for shard in sorted(set(_read_index(index, where=where).values()))]
    # All at once, and not the shards alone: what one call fetches is of one state.
    found = find((index.name,), *shards)
    return found[: len(names) + 1]


def read_weights(file: Path, *, where: str) -> dict[str, Tensor]:
    """Reads tensors by name from a file of the folder `where`, mapped where its format allows.

    Causal masks are left out. An index stands for the shards beside it, which must hold exactly
    what it says. Raises CheckpointError for a file that is damaged or holds something else than
    tensors by name.
    """
    weights = _read_shards(file, where) if file.name.endswith(INDEX) else _read_file(file, where)
    return {name: w for name, w in weights.items() if not _MASK_BUFFER.fullmatch(name)}


def weights_files(folder: Path) -> list[Path]:
    """Lists the files of weights in a local folder, whole or as shards: what a save replaces."""
    files = [folder / name for name in WEIGHTS_FILES]
    for index in [file for file in files if file.name.endswith(INDEX) and file.is_file()]:
        with suppress(CheckpointError):  # a broken index names no shards
            files += [folder / n for n in sorted(set(_read_index(index, where="").values()))]
    return [file for file in files if file.is_file()]


def _read_file(file: Path, where: str) -> dict[str, Tensor]:
    return (_read_safetensors if file.suffix == ".safetensors" else _read_pickle)(file, where)


def _read_shards(index: Path, where: str) -> dict[str, Tensor]:
    shard_of = _read_index(index, where=where)
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{where}: {index.name} names {shard}, which is not there")
        held = _read_file(index.parent / shard, where)
        promised = {name for name in shard_of if shard_of[name] == shard}
        for problem, names in (
            ("lacks", promised - held.keys()),
            ("also holds", held.keys() - promised),
        ):
            if names:
                raise CheckpointError(
                    f"{where}: {shard} is not as {index.name} says: it {problem} "
                    f"{_few(sorted(names))}"
                )
        weights |= held
    return weights


def _read_index(file: Path, *, where: str) -> dict[str, str]:
    """Reads the names of shards by the names of their weights."""
    suffix = Path(file.name.removesuffix(INDEX)).suffix
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        shard_of = content["weight_map"]
        if not shard_of:
            raise ValueError("its weight_map is empty")
        for shard in shard_of.values():
            if not _SHARD.fullmatch(shard) or not shard.endswith(suffix):
                raise ValueError(f"expected names of {suffix} files beside it, found {shard!r}")
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{where}: {file.name}: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f'{where}: {file.name}: expected {{"weight_map": {{weight: file}}}}, found another '
            "structure"
        ) from error
    return dict(shard_of)


def _read_safetensors(file: Path, where: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{where}: {file.name} is damaged or cut short: {error}") from error


def _read_pickle(file: Path, where: str) -> dict[str, Tensor]:
    try:
        weights = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{where}: expected a dict of tensors in {file.name}, found something else, which is "
            "not unpickled as that could run code; "
            f"if you trust it, convert it to {SAFETENSORS_FILE}"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{where}: {file.name} is damaged: {reason[0]}") from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise CheckpointError(f"{where}: expected a dict of tensors in {file.name}")
    return weights


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns what a model folder holds of a model: parameters and buffers by name, tied ones
    once, and no buffers that the model itself leaves out of its state."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):  # and no state of a module's own
            names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}


def put_into(
    model: nn.Module,
    weights: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Gives a model all of its tensors, copies on a device, floats in a dtype if one is given; a
    model of shapes alone becomes one with weights.

    One by one, so that beside a mapped file there is only what the model keeps: `weights` holds
    what it is given in the end, tied ones by each of their names.
    """
    for name in list(weights):
        weight = weights.pop(name)
        kept = dtype if dtype and weight.is_floating_point() else weight.dtype
        weights[name] = weight.to(device, kept, copy=True)
    held = tensors_of(model)
    if not any(tensor.is_meta for tensor in held.values()):
        for name, tensor in held.items():
            tensor.data = weights[name]  # in place: ties and what else refers to it stay
        model.to(device)
        return
    names = {id(tensor): name for name, tensor in held.items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        weights[name] = weights[names[id(tensor)]]
    model.load_state_dict(weights, assign=True)


def rename(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds or removes the transformer's prefix as in `wanted`; leaves out heads not in it."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in wanted) else ""
    renamed = {}
    for name, tensor in weights.items():
        if name in wanted:
            renamed[name] = tensor
        elif not name.startswith(HEADS):
            renamed[prefix + name.removeprefix(PREFIX)] = tensor
    return renamed


def mismatch(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Says what is wrong with the names, shapes and dtypes of weights; empty where nothing is."""
    common = [name for name in wanted if name in weights]
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "not of config.json's shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(wanted[name].shape)}"
            for name in common
            if weights[name].shape != wanted[name].shape
        ],
        "not of a float dtype": [
            name
            for name in common
            if wanted[name].is_floating_point() and not weights[name].is_floating_point()
        ],
    }
    return "; ".join(
        f"{len(names)} {problem} ({_few(names)})" for problem, names in problems.items() if names
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
