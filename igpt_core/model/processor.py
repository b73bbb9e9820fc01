"""What the processor does in bfloat16, which decides between kernels."""

import torch


def multiplies_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 itself; others widen it first."""
    return torch.cpu._is_avx512_bf16_supported() or has_tiles()


def has_tiles() -> bool:
    """Returns whether the processor has matrix tiles (AMX)."""
    return torch.cpu._is_amx_tile_supported()
