"""What a training step costs, against torch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from igpt_core import ImageGPTConfig, ImageGPTForCausalImageModeling
from igpt_core.learning.objectives import NextPixel
from igpt_core.learning.speed import flops_per_token, product_rate


@pytest.mark.parametrize("fields", [{}, {"n_inner": 50, "n_layer": 3}])
def test_operations_are_those_that_torch_counts(fields):
    """Without a fused kernel, whose scores torch counts whole where half of them are seen."""
    shape = {"vocab_size": 9, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = ImageGPTConfig(**{**shape, **fields}, attn_implementation="eager")
    objective = NextPixel(ImageGPTForCausalImageModeling(config))
    with FlopCounterMode(display=False) as counter:
        objective(torch.randint(8, (3, 16))).backward()
    counted = {str(operation): n for operation, n in counter.get_flop_counts()["Global"].items()}
    of_scores = counted.pop("aten.bmm")
    assert counted.keys() <= {"aten.mm", "aten.addmm"}
    assert flops_per_token(config) * 3 * 16 == sum(counted.values()) + of_scores / 2


def test_the_rate_of_products_is_measured():
    """Any machine does between 100 MFLOP/s and 100 PFLOP/s."""
    assert 1e8 < product_rate("cpu", torch.bfloat16) < 1e17
