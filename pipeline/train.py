"""A training run in one process: tokens in memory, a log, a state to go on from."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from igpt_core.checkpoint import save_checkpoint
from igpt_core.config import ImageGPTConfig
from igpt_core.model import ImageGPTForCausalImageModeling
from igpt_core.palette import Palette
from igpt_core.pixels import Crop, Resize
from igpt_core.training import TrainingConfig, TrainingState, make_optimizer, train
from pipeline import rows
from pipeline.blocks import tokens_of
from pipeline.shards import find_source
from pipeline.stages.images import ReadImages
from pipeline.storage import UsageError, open_location, write_atomic

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
OPTIONS_FILE = "training_options.json"
LOG_FILE = "training_log.jsonl"
LOG_SECONDS = 15
SAVE_SECONDS = 60
SHARD_SIZE = 1024


def read_tokens(
    location: str,
    *,
    palette: str,
    image_size: int,
    resize: Resize = "exact",
    crop: Crop = "squash",
    limit: int | None = None,
    format: str = "auto",
    image_column: str | None = None,
    input_options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> NDArray[np.uint16]:
    """The tokens (N, image_size ** 2) of every readable image of an input; bad ones are logged.

    Args:
        location, format, image_column, limit: as `find_source` takes them.
        palette: location of a palette's file or of a model folder.
        resize, crop: as in `load_pixels`.
    """
    source = find_source(
        location,
        format=format,
        image_column=image_column,
        keep_columns=[],
        limit=limit,
        storage_options=input_options,
    )
    plan = source.cut(SHARD_SIZE)
    read = ReadImages(
        format=plan.format,
        image_column=plan.image_column,
        id_column=None,
        passthrough=plan.passthrough,
        palette=palette,
        image_size=image_size,
        resize=resize,
        crop=crop,
        input_options=input_options or {},
        model_options=model_options or {},
    )
    parts = []
    table = plan.to_table()
    for index in range(len(plan.shards)):
        block = read(table.slice(index, 1))
        good = pc.is_null(block[rows.ERROR_STAGE])
        for bad in block.filter(pc.invert(good)).to_pylist():
            logger.warning("%s left out: %s", bad[rows.SOURCE], bad[rows.ERROR_MESSAGE])
        parts.append(tokens_of(block.filter(good)[rows.ROW_TOKENS]))
    return np.concatenate(parts)


def run_training(
    tokens: NDArray[np.uint16],
    *,
    output: str,
    model_config: ImageGPTConfig,
    config: TrainingConfig,
    palette: Palette,
    image_size: int,
    device: str,
    save_dtype: torch.dtype,
    options: Mapping[str, Any],
    report: Callable[[str], None],
) -> tuple[ImageGPTForCausalImageModeling, TrainingState]:
    """Train a new model, or go on where the same command was interrupted, and save it.

    Args:
        tokens: (N, image_size ** 2).
        output: a local folder; it ends as a model folder with the log beside the weights.
        save_dtype: of the saved weights, to which those of the model returned are rounded.
        options: what the result depends on; a folder begun with others is refused.
        report: takes a line of progress now and then.

    Raises UsageError before anything is trained: too few images, or a folder that is not free.
    """
    if len(tokens) < config.batch_size:
        raise UsageError(
            f"expected a batch of {config.batch_size} readable images to train on at least, found "
            f"{len(tokens)}; next: more images, or a smaller --batch-size"
        )
    folder = Path(output)
    _claim(folder, options)
    torch.manual_seed(config.seed)
    model = ImageGPTForCausalImageModeling(model_config).to(device)
    optimizer = make_optimizer(model, config)
    state = _restore(folder / STATE_FILE, model, optimizer, device)
    if state.step:
        report(f"going on at step {state.step} after {state.seconds / 60:.1f} minutes")
    journal = _Journal(folder, model, optimizer, config, tokens.shape[1], report)
    train(
        model, optimizer, tokens, config, image_size=image_size, state=state, on_step=journal.step
    )
    model.to(save_dtype)
    save_checkpoint(model, str(folder), palette=palette, image_size=image_size)
    (folder / STATE_FILE).unlink(missing_ok=True)
    return model.float(), state


def _claim(folder: Path, options: Mapping[str, Any]) -> None:
    """Make the folder this run's own, or find that it is."""
    path = folder / OPTIONS_FILE
    if path.exists():
        found = json.loads(path.read_text())
        differing = [key for key in options if options[key] != found.get(key)]
        if differing:
            listed = ", ".join(f"{k}: {found.get(k)} there, {options[k]} now" for k in differing)
            raise UsageError(
                f"{folder} holds a training run with other options ({listed}); next: the same "
                "options to go on, or another --output"
            )
        if not (folder / STATE_FILE).exists() and (folder / "model.safetensors").exists():
            raise UsageError(f"{folder} holds a finished model; next: another --output")
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"expected --output to be new or empty, found files in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(options), indent=2, sort_keys=True) + "\n"
    write_atomic(*open_location(str(path)), text.encode())


def _restore(
    path: Path,
    model: ImageGPTForCausalImageModeling,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> TrainingState:
    if not path.exists():
        return TrainingState()
    saved = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return TrainingState(step=saved["step"], seconds=saved["seconds"])


class _Journal:
    """Writes the log and the state, and reports, each at its own pace."""

    def __init__(
        self,
        folder: Path,
        model: ImageGPTForCausalImageModeling,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        pixels: int,
        report: Callable[[str], None],
    ) -> None:
        self._folder, self._model, self._optimizer = folder, model, optimizer
        self._config, self._pixels, self._report = config, pixels, report
        self._losses: list[torch.Tensor] = []
        self._logged = self._saved = time.monotonic()

    def step(self, state: TrainingState, loss: torch.Tensor, rate: float) -> None:
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._log(state, rate, now - self._logged)
            self._logged = now
        if now - self._saved >= SAVE_SECONDS:
            self._save(state)
            self._saved = now

    def _log(self, state: TrainingState, rate: float, seconds: float) -> None:
        mean = torch.stack(self._losses).mean().item()
        speed = len(self._losses) * self._config.batch_size * self._pixels / seconds
        self._losses = []
        progress = self._config.progress(state.step, state.seconds)
        line = {
            "step": state.step,
            "seconds": round(state.seconds, 1),
            "loss": round(mean, 4),
            "learning_rate": rate,
            "tokens_per_second": round(speed),
        }
        with open(self._folder / LOG_FILE, "a") as log:
            log.write(json.dumps(line) + "\n")
        self._report(
            f"step {state.step}, {mean:.3f} nats per pixel, {speed:.0f} tokens/s, "
            f"{100 * progress:.0f} % done, "
            f"about {state.seconds / max(progress, 1e-9) * (1 - progress) / 60:.0f} min left"
        )

    def _save(self, state: TrainingState) -> None:
        temporary = self._folder / (STATE_FILE + ".tmp")
        torch.save(state.capture(self._model, self._optimizer), temporary)
        os.replace(temporary, self._folder / STATE_FILE)
