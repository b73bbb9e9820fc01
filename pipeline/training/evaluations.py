"""What a training run shows of itself on held-out images: losses, completions, the best weights."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from igpt_core.errors import NonFiniteError
from igpt_core.generation.completion import complete
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.palette import Palette
from igpt_core.images.pixels import encode_png
from igpt_core.learning.training import TrainingState, evaluate
from igpt_core.model.weights import put_into, tensors_of
from pipeline.report.contact_sheet import draw_contact_sheet
from pipeline.report.pictures import Example, Picture
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import open_location
from pipeline.training.folder import BEST_FILE
from pipeline.training.loss_curve import Point, draw_loss_curve

TABLE_FILE, CURVE_FILE = "loss_curve.csv", "loss_curve.svg"
SHEETS = "completions"  # a folder

N_EVALUATIONS = 10  # of a run, at equal shares of it
N_IMAGES = 256  # held out, of each
_N_PICTURES, _N_SAMPLES = 8, 2


class Evaluations:
    """Evaluates a model in training at equal shares of a run, and keeps its best weights.

    A resumed run goes on behind the last evaluation before its state, and makes those behind it
    again: it must be told of a step before that is saved.
    """

    def __init__(
        self,
        folder: Path,
        model: ImageGPTForCausalImageModeling,
        tokens: NDArray[np.integer[Any]],
        palette: Palette,
        *,
        dtype: torch.dtype,
        report: Callable[[str], None],
    ) -> None:
        """`tokens`: (N, T) of held-out images, of which the first are looked at while training.
        `dtype`: of matrix products."""
        self._folder, self._model, self._palette = folder, model, palette
        self._tokens, self._dtype, self._report = tokens[:N_IMAGES], dtype, report
        self._losses: list[Tensor] = []
        self._points: list[Point] = []
        self._n_shares = 0  # of the run that are evaluated
        self._best: Point | None = None  # whose weights are kept

    def resume(self, step: int) -> None:
        """Reads what an earlier process wrote, up to the step of its state."""
        path = self._folder / TABLE_FILE
        if path.exists():
            with path.open(newline="") as table:
                _, *lines = csv.reader(table)
            points = [Point.read(line) for line in lines]
            self._points = [point for point in points if point.step <= step]
        self._n_shares = len(self._points)
        if (self._folder / BEST_FILE).exists():
            with safe_open(self._folder / BEST_FILE, framework="pt") as stored:
                best_step = int(stored.metadata()["step"])
            self._best = next((p for p in self._points if p.step == best_step), None)

    def step(self, state: TrainingState, loss: Tensor, progress: float) -> None:
        """Notes a step; evaluates where the run has come to the next share."""
        self._losses.append(loss)
        n_shares = int(progress * N_EVALUATIONS)
        if n_shares > self._n_shares:
            self._n_shares = n_shares
            self._evaluate(state.step)

    def finish(self, state: TrainingState) -> None:
        """Evaluates the end, and puts the best weights into the model."""
        if not self._points or self._points[-1].step != state.step:
            self._evaluate(state.step)
        if self._best is not None and self._best != self._points[-1]:
            self._report(f"the weights of step {self._best.step} were better than the last: kept")
            put_into(self._model, load_file(self._folder / BEST_FILE), self._model.device, None)

    def _evaluate(self, step: int) -> None:
        was_training = self._model.training
        self._model.eval()
        with torch.autocast(self._model.device.type, self._dtype, self._dtype != torch.float32):
            held_out = evaluate(self._model, self._tokens)
        # None where the run has been resumed at its end.
        training = torch.stack(self._losses).mean().item() if self._losses else None
        self._losses = []
        self._points.append(point := Point(step, training, held_out))
        self._report(f"step {step}, {held_out:.4f} nats per pixel held out")
        if self._best is None or held_out < self._best.held_out:
            content = save(tensors_of(self._model), {"step": str(step)})
            write_atomic(*open_location(str(self._folder / BEST_FILE)), content)
            self._best = point
        self._write(step)
        self._model.train(was_training)

    def _write(self, step: int) -> None:
        table = io.StringIO()
        csv.writer(table).writerows([Point._fields, *self._points])
        files = {
            TABLE_FILE: table.getvalue().encode(),
            CURVE_FILE: draw_loss_curve(self._points).encode(),
        }
        try:
            files[f"{SHEETS}/step-{step:08}.png"] = self._sheet(step)
        except NonFiniteError as error:  # a model that diverges, which the losses show
            self._report(f"no completions: {error}")
        (self._folder / SHEETS).mkdir(exist_ok=True)
        for name, content in files.items():
            write_atomic(*open_location(str(self._folder / name)), content)

    def _sheet(self, step: int) -> bytes:
        """Draws completions of the lower half of some images, the same at each evaluation."""
        chosen = self._tokens[:_N_PICTURES].astype(np.int64)
        rows, n_pixels = chosen.shape
        side = int(n_pixels**0.5)
        given = side // 2
        tokens = torch.from_numpy(chosen).to(self._model.device)
        drawn = complete(
            self._model,
            tokens[:, : given * side],
            n_positions=n_pixels,
            seeds=torch.arange(rows, device=tokens.device),
            sampling=SamplingConfig(top_p=0.9),
            n_samples=_N_SAMPLES,
        )
        images = torch.cat([drawn, tokens[:, None]], dim=1).cpu().numpy().astype(np.uint16)
        titles = [f"sample {k}" for k in range(1, _N_SAMPLES + 1)] + ["original"]

        def picture(title: str, image: NDArray[np.uint16]) -> Picture:
            png = encode_png(self._palette.decode(image.reshape(side, side)))
            return Picture(title, png, side, given if title != "original" else None)

        examples = [
            Example(str(row), tuple(map(picture, titles, images[row]))) for row in range(rows)
        ]
        note = f"upper half given, top-p 0.9; {self._points[-1].held_out:.4f} nats held out"
        return draw_contact_sheet(examples, title=f"step {step}", note=note)
