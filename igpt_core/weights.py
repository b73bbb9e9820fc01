"""Files of weights: read without running code in them, their names held against a model's."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from igpt_core.model_files import CheckpointError

SAFETENSORS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
WEIGHTS_FILES = (SAFETENSORS_FILE, PICKLE_FILE)  # of a folder; the first that is there is read

# Causal masks that old checkpoints carry among the weights.
_MASK_BUFFER = re.compile(r"(.*\.)?attn\.(bias|masked_bias)")
_TRUNK = "transformer."  # where the classes with a head keep the bare model
_HEADS = ("lm_head.", "score.")


def read_weights(file: Path, *, where: str) -> dict[str, Tensor]:
    """Name to tensor of a file of the folder `where`, mapped from it where its format allows.

    Causal masks are left out. Raises CheckpointError for a file that is damaged or holds
    something else than tensors by name.
    """
    weights = (_read_safetensors if file.name == SAFETENSORS_FILE else _read_pickle)(file, where)
    return {name: w for name, w in weights.items() if not _MASK_BUFFER.fullmatch(name)}


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


def rename(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trunk's prefix put on or taken off as `wanted` has it; heads not in it left out."""
    prefix = _TRUNK if any(name.startswith(_TRUNK) for name in wanted) else ""
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith(_HEADS):
            renamed[prefix + name.removeprefix(_TRUNK)] = tensor
        elif name in wanted:
            renamed[name] = tensor
    return renamed


def mismatch(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with the names, shapes and dtypes of weights; nothing: empty."""
    common = [name for name in wanted if name in weights]
    problems = {
        "missing": [name for name in wanted if name not in weights],
        "unexpected": [name for name in weights if name not in wanted],
        "not of config.json's shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(wanted[name].shape)}"
            for name in common
            if weights[name].shape != wanted[name].shape
        ],
        "not of a float dtype": [n for n in common if not weights[n].is_floating_point()],
    }
    return "; ".join(
        f"{len(names)} {problem} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    )
