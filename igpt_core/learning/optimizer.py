"""What updates the weights: AdamW, or Muon for matrices of the blocks and AdamW for the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from igpt_core.learning.training_config import TrainingConfig

BETAS = (0.9, 0.95)  # AdamW, as in the ImageGPT paper


class Optimizers:
    """Several optimizers of different parameters, used as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def make_optimizer(objective: nn.Module, config: TrainingConfig) -> Optimizers:
    """Makes AdamW; only matrices decay, not gains, biases or position embeddings.

    With "muon" the matrices of the blocks take steps along the nearest orthogonal matrix of their
    momentum instead, scaled so that learning rates of AdamW hold (arXiv 2502.16982, 2.2).
    """
    in_blocks: list[Tensor] = []
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in objective.named_parameters():
        if parameter.ndim < 2 or "wpe" in name:
            others.append(parameter)
        elif config.optimizer == "muon" and parameter.ndim == 2 and ".h." in name:
            in_blocks.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, fused=True)
    ]
    if in_blocks:
        parts.append(
            torch.optim.Muon(
                in_blocks,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return Optimizers(parts)
