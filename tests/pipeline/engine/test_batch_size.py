"""Batches that fit in memory, and what becomes of one that does not."""

import os

import pytest
import torch

from igpt_core.interface.batch_size import sampling_images
from igpt_core.model.config import ImageGPTConfig
from pipeline.batch.model import CPU, shared_by
from pipeline.errors import DoesNotFit
from pipeline.stages import cuda_errors
from pipeline.stages.cuda_errors import within_memory


@pytest.mark.parametrize(
    ("rows", "samples", "actors", "expected"),
    [
        (1000, 1, 2, 32),
        (128, 1, 2, 32),
        (100, 1, 2, 25),  # two batches for each actor
        (40, 1, 2, 16),
        (103, 1, 2, 26),  # and none that is small beside the others
        (0, 1, 1, 16),
        (30, 4, 2, 7),
        (64, 1, 64, 16),
        (1000, 40, 2, 1),
    ],
)
def test_on_cpus_a_small_input_has_smaller_batches(rows, samples, actors, expected):
    memory = shared_by(CPU, rows * samples, actors)
    config = ImageGPTConfig(vocab_size=33, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    assert sampling_images(config, 64, n=samples, dtype=torch.float32, memory=memory) == expected


class Device:
    """Computes up to so many images at once, as a GPU does that others use too."""

    def __init__(self, room: int, *, others: int = 0, says: str = "CUDA out of memory") -> None:
        self.room, self.others, self.says = room, others, says
        self.sizes: list[int] = []

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor, *, at_once: int) -> torch.Tensor:
        self.sizes.append(at_once)
        room = self.room - self.others
        self.others = 0  # who has ended by the next time
        if at_once > room:
            raise torch.OutOfMemoryError(self.says)
        return images + seeds[:, None]


BATCH = (torch.zeros(12, 5), torch.arange(12))
ROWS = (torch.zeros(30, 5), torch.arange(30))


def test_a_batch_is_computed_once_more_after_memory_was_cleared():
    device = Device(12, others=6)
    found = within_memory(device, BATCH, at_once=12, sequences=1)
    assert found[:, 0].tolist() == list(range(12))
    assert device.sizes == [12, 12]


def test_a_batch_that_does_not_fit_is_refused_with_the_size_that_does():
    device = Device(3)
    with pytest.raises(DoesNotFit) as refused:
        within_memory(device, BATCH, at_once=12, sequences=4)
    assert device.sizes == [12, 12, 6, 3]
    assert str(refused.value) == (
        "expected memory for 48 sequences at a time, found too little twice; next: --batch-size "
        "12, which fits, with another --output"
    )


def test_rows_that_take_the_place_of_others_are_not_looked_for_when_they_do_not_fit():
    device = Device(3)
    with pytest.raises(DoesNotFit, match=r"memory for 12 sequences.*--batch-size 3, which fits"):
        within_memory(device, ROWS, at_once=12, sequences=1)
    assert device.sizes == [12, 12, 6, 3]


def test_where_nothing_fits_it_says_so():
    with pytest.raises(DoesNotFit, match="not even one image fits; next: end what"):
        within_memory(Device(0), BATCH, at_once=12, sequences=1)


def test_other_errors_are_handed_on():
    def wrong(*batch: torch.Tensor, at_once: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(wrong, BATCH, at_once=12, sequences=1)


def test_a_broken_context_ends_the_process(monkeypatch):
    """As after an illegal access: every later call in the process would fail too."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(cuda_errors.logging, "shutdown", lambda: None)

    def broken(*batch: torch.Tensor, at_once: int) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        within_memory(broken, BATCH, at_once=12, sequences=1)
    assert ended == [1]
