"""Speed of a training step: attention in blocks, torch's fused kernel, compiled, transformers'.

    python benchmarks/training.py

One random model, a batch of random tokens, matrix products in bfloat16; each way takes the same
steps in turn, in one process, and the fastest of several rounds counts, as these machines are
shared. The share is of plain products of 8192 x 384 x 1536, measured between the rounds. Prints a
table, then one line of JSON. What is aimed at: 60 % on a CPU for 384 channels or more.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from unittest import mock

import torch
import transformers
from torch import Tensor

from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.optimizer import make_optimizer
from igpt_core.learning.speed import flops_per_token, product_rate
from igpt_core.learning.training import train_step
from igpt_core.learning.training_config import TrainingConfig
from igpt_core.model import training_attention
from igpt_core.model.config import ImageGPTConfig

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Peer(torch.nn.Module):
    """The loss of transformers' model, on the same tokens."""

    def __init__(self, fields: dict[str, int]) -> None:
        super().__init__()
        config = transformers.ImageGPTConfig(**fields, **NO_DROPOUT)
        self.model = transformers.ImageGPTForCausalImageModeling(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, labels=tokens, use_cache=False).loss


def stepper(objective: torch.nn.Module, tokens: Tensor) -> Callable[[], object]:
    optimizer = make_optimizer(objective, TrainingConfig(steps=1))
    objective.train().to(tokens.device)
    return lambda: train_step(
        objective, optimizer, [tokens], learning_rate=1e-4, dtype=torch.bfloat16
    )


def seconds(step: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-layer", type=int, default=8)
    parser.add_argument("--n-embd", type=int, default=384)
    parser.add_argument("--n-head", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = {name: getattr(options, name) for name in ("n_layer", "n_embd", "n_head")}
    config = ImageGPTConfig(**fields, **NO_DROPOUT)
    tokens = torch.randint(config.n_colors, (options.batch_size, config.n_positions), device=device)
    ours = stepper(NextPixel(ImageGPTForCausalImageModeling(config)), tokens)
    blocks = mock.patch.object(training_attention, "has_tiles", return_value=False)
    fused = mock.patch.object(training_attention, "has_tiles", return_value=True)

    def with_attention(patch: contextlib.AbstractContextManager) -> Callable[[], None]:
        def step() -> None:
            with patch:
                ours()

        return step

    ways = {"blocks": with_attention(blocks), "fused kernel": with_attention(fused)}
    compiled = torch.compile(NextPixel(ImageGPTForCausalImageModeling(config)), dynamic=False)
    ways["compiled"] = stepper(compiled, tokens)
    ways["transformers"] = stepper(Peer(fields), tokens)
    best, rates = dict.fromkeys(ways, float("inf")), []
    for _ in range(options.rounds):
        rates.append(product_rate(device, torch.bfloat16))
        for name, step in ways.items():
            best[name] = min(best[name], seconds(step, device))
    flops = flops_per_token(config) * tokens.numel()
    print(
        f"{config.n_layer} layers x {config.n_embd}, plain products {max(rates) / 1e12:.2f} TFLOP/s"
    )
    found = {}
    for name, took in best.items():
        found[name] = {
            "tokens_per_second": round(tokens.numel() / took),
            "share_of_products": round(flops / took / max(rates), 3),
        }
        print(f"{name:14} {tokens.numel() / took:8.0f} tokens/s {flops / took / max(rates):6.1%}")
    print(json.dumps({"products": max(rates), **found}))


if __name__ == "__main__":
    main()
