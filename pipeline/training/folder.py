"""The folder of a training run: whose it is, and the state that a killed run goes on from."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from igpt_core.learning.optimizer import Optimizers
from igpt_core.learning.training import TrainingState
from pipeline.errors import UsageError
from pipeline.run_directory.record import differences
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import open_location

STATE_FILE = "training_state.pt"
OPTIONS_FILE = "training_options.json"
BEST_FILE = "best_weights.safetensors"
RAY_FOLDER = ".ray_train"  # what Ray Train writes while workers train


def acquire(folder: Path, options: Mapping[str, Any]) -> None:
    """Makes the folder the run's own that has these options, or finds that it is.

    Raises UsageError where it is another's, or holds a finished model.
    """
    path = folder / OPTIONS_FILE
    if path.exists():
        differing = differences(json.loads(path.read_text()), options)
        if differing:
            raise UsageError(
                f"{folder} holds a training run with other options ({', '.join(differing)}); next: "
                "the same options to go on, or another --output"
            )
        if not (folder / STATE_FILE).exists() and (folder / "model.safetensors").exists():
            raise UsageError(f"{folder} holds a finished model; next: another --output")
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"expected --output to be new or empty, found files in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(options), indent=2, sort_keys=True) + "\n"
    write_atomic(*open_location(str(path)), text.encode())


def save_state(
    folder: Path, state: TrainingState, objective: nn.Module, optimizer: Optimizers
) -> None:
    """Writes what `restore_state` reads, in place of what is there at once."""
    temporary = folder / (STATE_FILE + ".tmp")
    torch.save(state.capture(objective, optimizer), temporary)
    os.replace(temporary, folder / STATE_FILE)


def restore_state(
    folder: Path, objective: nn.Module, optimizer: Optimizers, device: str
) -> TrainingState:
    """Puts the state that is saved, if one is, into the objective and its optimizer."""
    path = folder / STATE_FILE
    if not path.exists():
        return TrainingState()
    saved = torch.load(path, map_location=device, weights_only=True)
    objective.load_state_dict(saved["objective"])
    optimizer.load_state_dict(saved["optimizer"])
    return TrainingState(step=saved["step"], seconds=saved["seconds"])


def remove_state(folder: Path) -> None:
    """Deletes what the saved model stands for: the state first, as it goes with the others."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    (folder / BEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)
