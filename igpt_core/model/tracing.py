"""Whether a call is recorded for other inputs than its own."""

import torch


def is_traced() -> bool:
    """Tells whether torch.compile, torch.export or torch.jit.trace records the operations."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]
