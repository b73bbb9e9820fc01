"""How a model is trained: numbers that are checked once."""

from dataclasses import dataclass

import torch

from igpt_core.errors import check_whole, one_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # autocast passes over others
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. Exactly one of `steps` and `minutes` bounds the run.

    The learning rate rises over `warmup_steps`; from the first step on it also falls along a line,
    to 0 when the bound is reached (arXiv 2502.15938).

    `optimizer`: one of OPTIMIZERS; see `make_optimizer`.

    Raises ValueError for a number out of its range or another dtype, TypeError for one that is not
    whole.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 8
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    flip: bool = True
    dtype: torch.dtype = torch.bfloat16
    seed: int = 0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("training is bounded by either steps or minutes: give one of them")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, found {self.minutes}")
        if self.dtype not in DTYPES:
            raise ValueError(f"expected dtype {one_of([*map(str, DTYPES)])}, found {self.dtype}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"expected optimizer {one_of(OPTIMIZERS)}, found {self.optimizer!r}")
        # As ints, which what is computed from them is then too.
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0)):
            number = getattr(self, name)
            if name != "steps" or number is not None:
                object.__setattr__(self, name, check_whole(name, number, least=least))

    def progress(self, step: int, seconds: float) -> float:
        """Returns the share of the run that is behind, in [0, 1]."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        assert self.minutes is not None
        return min(seconds / (60.0 * float(self.minutes)), 1.0)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Returns the learning rate of a step, given `progress` before it."""
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.learning_rate * warmup * (1 - progress)
