"""A training run in one process, alone or as one of several workers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from igpt_core.generation.drafts import NeighborTables
from igpt_core.images.palette import Palette
from igpt_core.learning import data_parallel
from igpt_core.learning.objectives import JointClassification, NextPixel
from igpt_core.learning.optimizer import make_optimizer
from igpt_core.learning.training import TrainingState, train
from igpt_core.learning.training_config import TrainingConfig
from igpt_core.model.checkpoint import save_checkpoint
from pipeline.training.evaluations import Evaluations
from pipeline.training.folder import restore_state, save_state
from pipeline.training.images import TrainingImages
from pipeline.training.journal import Journal, Speed

Objective = NextPixel | JointClassification

SAVE_SECONDS = 60
DRAFT_IMAGES = 10_000  # more teach its tables little


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on what and how.

    Attributes:
        images: with labels where the objective takes them.
        make_objective: makes what is trained; new weights come from torch's global generator.
        held_out: images on which a causal model is evaluated during the run.
        folder: of the run, acquired; it becomes a model folder with the log beside the weights.
        save_dtype: of the weights there.
        compiled: whether torch.compile fuses the step.
    """

    images: TrainingImages
    make_objective: Callable[[], Objective]
    config: TrainingConfig
    palette: Palette
    image_size: int
    held_out: TrainingImages | None
    folder: Path
    save_dtype: torch.dtype
    compiled: bool

    def run(self, device: str, report: Callable[[str], None]) -> TrainingState:
        """Trains on a device, or goes on from the saved state, and saves the objective's model.

        In a group of torch.distributed each process calls it; the first one alone writes. The state
        stays: until it is removed, a run that dies at its end is not trained anew.
        """
        torch.manual_seed(self.config.seed)
        objective = self.make_objective().to(device)
        optimizer = make_optimizer(objective, self.config)
        state = restore_state(self.folder, objective, optimizer, device)
        is_first = data_parallel.rank() == 0
        trained = data_parallel.in_parallel(objective)
        if self.compiled:
            # Under torch.compile `attend` cannot leave cuDNN's kernel out itself.
            torch.backends.cuda.enable_cudnn_sdp(False)
            trained = torch.compile(trained, dynamic=False)  # type: ignore[assignment]
        watch = _Watch(self, objective, state, report) if is_first else None
        saved = time.monotonic()

        def on_step(state: TrainingState, loss: torch.Tensor, rate: float) -> None:
            nonlocal saved
            if watch is None:
                return
            watch.step(state, loss, rate)
            if time.monotonic() - saved >= SAVE_SECONDS:  # behind an evaluation, which a state has
                save_state(self.folder, state, objective, optimizer)
                saved = time.monotonic()

        labels = self.images.labels
        train(
            trained,
            optimizer,
            self.images.tokens,
            self.config,
            image_size=self.image_size,
            state=state,
            on_step=on_step,
            labels=None if labels is None else labels.classes,
        )
        if watch is not None:
            watch.finish(state)
            self._save(objective)
        return state

    def _save(self, objective: Objective) -> None:
        objective.model.to(self.save_dtype)
        folder = str(self.folder)
        save_checkpoint(objective.model, folder, palette=self.palette, image_size=self.image_size)
        if isinstance(objective, NextPixel):
            self._save_draft(objective.model.config.n_colors)

    def _save_draft(self, n_colors: int) -> None:
        """Writes beside a model what helps to guess its pixels, counted on images of all parts of
        the input: neighbors in file order may be of one class."""
        tokens = self.images.tokens
        step = -(-len(tokens) // DRAFT_IMAGES)
        chosen = torch.from_numpy(tokens[::step].copy())  # it may be read-only
        known = torch.ones_like(chosen, dtype=torch.bool)
        draft = NeighborTables.counted(chosen, known, n_colors=n_colors)
        if draft is not None:
            draft.save(self.folder)


class _Watch:
    """What is said and kept of a run while it goes."""

    def __init__(
        self,
        job: TrainingJob,
        objective: Objective,
        state: TrainingState,
        report: Callable[[str], None],
    ) -> None:
        if state.step:
            report(f"going on at step {state.step} after {state.seconds / 60:.1f} minutes")
        model, config = objective.model, job.config
        n_workers = data_parallel.n_processes()
        speed = Speed.measured(model.config, str(model.device), config.dtype, n_workers)
        report(f"plain matrix products: {speed.products / 1e12:.2f} TFLOP/s")
        if job.compiled:
            report("compiling, about a minute; further steps are the faster")
        self._config = config
        self._journal = Journal(
            job.folder, config, job.image_size**2, speed, report, seconds=state.seconds
        )
        self._evaluations = None
        if job.held_out is not None and isinstance(objective, NextPixel):
            self._evaluations = Evaluations(
                job.folder,
                objective.model,
                job.held_out.tokens,
                job.palette,
                dtype=config.dtype,
                report=report,
            )
            self._evaluations.resume(state.step)

    def step(self, state: TrainingState, loss: torch.Tensor, rate: float) -> None:
        if self._evaluations is not None:
            progress = self._config.progress(state.step, state.seconds)
            self._evaluations.step(state, loss, progress)
        self._journal.step(state, loss, rate)

    def finish(self, state: TrainingState) -> None:
        """Evaluates the end, and puts the best weights into the model."""
        if self._evaluations is not None:
            self._evaluations.finish(state)
