"""A training run in one process: its options, its log, its state to resume from."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from igpt_core.generation.drafts import NeighborTables
from igpt_core.images.palette import Palette
from igpt_core.learning.objectives import JointClassification, NextPixel
from igpt_core.learning.speed import flops_per_token, product_rate
from igpt_core.learning.training import TrainingConfig, TrainingState, make_optimizer, train
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig
from pipeline.errors import UsageError
from pipeline.options import TrainingOptions
from pipeline.run_directory.record import differences
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import local_output, open_location, options_for
from pipeline.storage.redact import redacted_location
from pipeline.training.evaluations import Evaluations
from pipeline.training.images import TrainingImages, read_images

Objective = TypeVar("Objective", NextPixel, JointClassification)

STATE_FILE = "training_state.pt"
OPTIONS_FILE = "training_options.json"
LOG_FILE = "training_log.jsonl"
LOG_SECONDS = 15
SAVE_SECONDS = 60
DRAFT_IMAGES = 10_000  # more teach its tables little
# Options that change no result, or stand in the record in another form.
_NOT_RECORDED = {"quiet", "debug", "storage_options", "output", "palette", "model", "eval_input"}
_NOT_RECORDED |= {"max_error_fraction", "max_image_bytes"}
_LATER = {"label_from_folder", "url_column"}


def check_options(options: TrainingOptions) -> None:
    """Raises UsageError unless exactly one option says when the run ends, and the output can be
    written."""
    given = [options.epochs, options.steps, options.minutes]
    if sum(bound is not None for bound in given) != 1:
        raise UsageError("give one of --epochs, --steps and --minutes, the bound of the run")
    local_output(options.output)


def training_config(options: TrainingOptions, n_images: int) -> TrainingConfig:
    """Returns how to train on n images, as the options say."""
    steps = options.steps
    if options.epochs is not None:
        # Too few images for a batch make no epoch; `run_training` refuses them.
        steps = options.epochs * max(n_images // options.batch_size, 1)
    return TrainingConfig(
        steps=steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_steps,
        dtype=getattr(torch, options.dtype),
        seed=options.seed,
    )


def training_device(options: TrainingOptions) -> str:
    """Returns where to compute: "cpu" or "cuda"."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_images(
    options: TrainingOptions,
    location: str,
    *,
    palette: str,
    image_size: int,
    limit: int | None,
    label_column: str | None = None,
    label_from_folder: bool = False,
) -> TrainingImages:
    """Reads the images at a location as the options say; see `read_images`."""
    return read_images(
        location,
        palette=palette,
        image_size=image_size,
        resize=options.resize,
        crop=options.crop,
        limit=limit,
        format=options.format,
        image_column=options.image_column,
        url_column=options.url_column,
        label_column=label_column,
        label_from_folder=label_from_folder,
        max_error_fraction=options.max_error_fraction,
        max_image_bytes=options.max_image_bytes,
        input_options=options_for(options.storage_options, "input"),
        model_options=options_for(options.storage_options, "model"),
        shown=not options.quiet,
    )


def summary(options: TrainingOptions, state: TrainingState, images: TrainingImages) -> str:
    """Returns the line that a training run ends with."""
    return (
        f"{options.output}: {state.step} steps in {state.seconds / 60:.1f} minutes on "
        f"{len(images.tokens)} images ({images.n_failed} could not be read)"
    )


def run_training(
    images: TrainingImages,
    make_objective: Callable[[], Objective],
    *,
    options: TrainingOptions,
    palette: Palette,
    image_size: int,
    record: Mapping[str, Any],
    report: Callable[[str], None],
    held_out: TrainingImages | None = None,
) -> tuple[Objective, TrainingState]:
    """Trains, or resumes where the same command was interrupted, and saves the objective's model.

    Args:
        images: with labels where the objective takes them.
        make_objective: makes what is trained; new weights come from torch's global generator.
        options: `output` becomes a model folder with the log beside the weights. The weights
            returned are rounded to `save_dtype` as those saved are.
        record: what the result depends on beside the options; a folder of other ones is refused.
        report: is called with a line of progress now and then.
        held_out: images on which a causal model is evaluated during the run.

    Raises UsageError before anything is trained: too few images, or a folder that is not free.
    """
    config = training_config(options, len(images.tokens))
    if len(images.tokens) < config.batch_size:
        raise UsageError(
            f"expected a batch of {config.batch_size} readable images to train on at least, found "
            f"{len(images.tokens)}; next: more images, or a smaller --batch-size"
        )
    folder = Path(local_output(options.output))
    recorded = options.model_dump(exclude=_NOT_RECORDED)
    recorded["input"] = redacted_location(options.input)
    for name in _LATER & recorded.keys():
        if not recorded[name]:  # earlier versions recorded nothing
            del recorded[name]
    _acquire(folder, {**recorded, **record})
    torch.manual_seed(config.seed)
    device = training_device(options)
    objective = make_objective().to(device)
    optimizer = make_optimizer(objective, config)
    state = _restore(folder / STATE_FILE, objective, optimizer, device)
    if state.step:
        report(f"going on at step {state.step} after {state.seconds / 60:.1f} minutes")
    speed = _Speed.measured(objective.model.config, device, config.dtype)
    report(f"plain matrix products: {speed.products / 1e12:.2f} TFLOP/s")
    journal = _Journal(
        folder, objective, optimizer, config, image_size**2, speed, report, seconds=state.seconds
    )
    evaluations = None
    if held_out is not None and isinstance(objective, NextPixel):
        evaluations = Evaluations(
            folder, objective.model, held_out.tokens, palette, dtype=config.dtype, report=report
        )
        evaluations.resume(state.step)

    def on_step(state: TrainingState, loss: torch.Tensor, rate: float) -> None:
        if evaluations is not None:
            evaluations.step(state, loss, config.progress(state.step, state.seconds))
        journal.step(state, loss, rate)  # which saves: the evaluation is made before

    train(
        objective,
        optimizer,
        images.tokens,
        config,
        image_size=image_size,
        state=state,
        on_step=on_step,
        labels=None if images.labels is None else images.labels.classes,
    )
    if evaluations is not None:
        evaluations.finish(state)
    objective.model.to(getattr(torch, options.save_dtype))
    save_checkpoint(objective.model, str(folder), palette=palette, image_size=image_size)
    if isinstance(objective, NextPixel):
        _save_draft(images, objective.model.config.n_colors, folder)
    (folder / STATE_FILE).unlink(missing_ok=True)
    if evaluations is not None:
        evaluations.clear()
    objective.model.float()
    return objective, state


def _save_draft(images: TrainingImages, n_colors: int, folder: Path) -> None:
    """Writes beside a model what helps to guess its pixels, counted on images of all parts of the
    input: neighbors in file order may be of one class."""
    step = -(-len(images.tokens) // DRAFT_IMAGES)
    tokens = torch.from_numpy(images.tokens[::step].copy())  # it may be read-only
    known = torch.ones_like(tokens, dtype=torch.bool)
    draft = NeighborTables.counted(tokens, known, n_colors=n_colors)
    if draft is not None:
        draft.save(folder)


def _acquire(folder: Path, options: Mapping[str, Any]) -> None:
    """Makes the folder this run's own, or finds that it is."""
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


def _restore(
    path: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> TrainingState:
    if not path.exists():
        return TrainingState()
    saved = torch.load(path, map_location=device, weights_only=True)
    objective.load_state_dict(saved["objective"])
    optimizer.load_state_dict(saved["optimizer"])
    return TrainingState(step=saved["step"], seconds=saved["seconds"])


@dataclass(frozen=True)
class _Speed:
    """What a token costs, and what the device does in plain matrix products: operations and
    operations per second."""

    per_token: int
    products: float

    @classmethod
    def measured(cls, model: ImageGPTConfig, device: str, dtype: torch.dtype) -> "_Speed":
        return cls(flops_per_token(model), product_rate(device, dtype))


class _Journal:
    """Writes the log and the state, and reports, each at its own interval."""

    def __init__(
        self,
        folder: Path,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfig,
        pixels: int,
        speed: _Speed,
        report: Callable[[str], None],
        *,
        seconds: float,
    ) -> None:
        self._speed = speed
        self._folder, self._objective, self._optimizer = folder, objective, optimizer
        self._config, self._pixels, self._report = config, pixels, report
        self._losses: list[torch.Tensor] = []
        self._logged = self._saved = time.monotonic()
        self._seconds = seconds  # of training, when it was logged

    def step(self, state: TrainingState, loss: torch.Tensor, rate: float) -> None:
        """Notes a step: its loss, a scalar on the device, and the learning rate that it had."""
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._log(state, rate, state.seconds - self._seconds)
            self._logged, self._seconds = now, state.seconds
        if now - self._saved >= SAVE_SECONDS:
            self._save(state)
            self._saved = now

    def _log(self, state: TrainingState, rate: float, seconds: float) -> None:
        mean = torch.stack(self._losses).mean().item()
        tokens = len(self._losses) * self._config.batch_size * self._pixels / seconds
        share = tokens * self._speed.per_token / self._speed.products
        self._losses = []
        progress = self._config.progress(state.step, state.seconds)
        line = {
            "step": state.step,
            "seconds": round(state.seconds, 1),
            "loss": round(mean, 4),
            "learning_rate": rate,
            "tokens_per_second": round(tokens),
            "share_of_products": round(share, 3),
        }
        with open(self._folder / LOG_FILE, "a") as log:
            log.write(json.dumps(line) + "\n")
        self._report(
            f"step {state.step}, loss {mean:.3f}, {tokens:.0f} tokens/s, {share:.0%} of plain "
            f"products, {100 * progress:.0f} % done, "
            f"about {state.seconds / max(progress, 1e-9) * (1 - progress) / 60:.0f} min left"
        )

    def _save(self, state: TrainingState) -> None:
        temporary = self._folder / (STATE_FILE + ".tmp")
        torch.save(state.capture(self._objective, self._optimizer), temporary)
        os.replace(temporary, self._folder / STATE_FILE)
