"""What a training run says of its steps: a log in its folder and lines of progress."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from igpt_core.learning.speed import flops_per_token, product_rate
from igpt_core.learning.training import TrainingState
from igpt_core.learning.training_config import TrainingConfig
from igpt_core.model.config import ImageGPTConfig

LOG_FILE = "training_log.jsonl"
LOG_SECONDS = 15


@dataclass(frozen=True)
class Speed:
    """What a token costs, and what the devices do in plain matrix products: operations and
    operations per second."""

    per_token: int
    products: float

    @classmethod
    def measured(
        cls, model: ImageGPTConfig, device: str, dtype: torch.dtype, n_workers: int
    ) -> "Speed":
        """Measures on this device, which those of all workers are like."""
        return cls(flops_per_token(model), product_rate(device, dtype) * n_workers)


class Journal:
    """Writes the log and reports, at an interval."""

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        pixels: int,
        speed: Speed,
        report: Callable[[str], None],
        *,
        seconds: float,
    ) -> None:
        """`seconds`: of training that are behind."""
        self._folder, self._config, self._pixels = folder, config, pixels
        self._speed, self._report = speed, report
        self._losses: list[torch.Tensor] = []
        self._logged = time.monotonic()
        self._seconds = seconds  # of training, when it was logged

    def step(self, state: TrainingState, loss: torch.Tensor, rate: float) -> None:
        """Notes a step: its loss, a scalar on the device, and the learning rate that it had."""
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._log(state, rate, state.seconds - self._seconds)
            self._logged, self._seconds = now, state.seconds

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
            "share_of_products": float(f"{share:.3g}"),
        }
        with open(self._folder / LOG_FILE, "a") as log:
            log.write(json.dumps(line) + "\n")
        self._report(
            f"step {state.step}, loss {mean:.3f}, {tokens:.0f} tokens/s, {share:.0%} of plain "
            f"products, {100 * progress:.0f} % done, "
            f"about {state.seconds / max(progress, 1e-9) * (1 - progress) / 60:.0f} min left"
        )
