"""What a GPU leaves aside is found before a run begins, said, and kept in run.json."""

from types import SimpleNamespace

import pytest
import torch

from igpt_core.model import self_check
from igpt_core.model.config import VARIANTS
from pipeline.batch import run
from pipeline.batch.record import is_plain
from pipeline.engine import gpu
from pipeline.errors import RunFailed
from pipeline.stages import model_batches
from pipeline.stages.model_batches import ComputePlan

SLOW = "a captured pass: its logits are others"


@pytest.fixture
def asked(monkeypatch) -> list[tuple[object, ...]]:
    """What the GPU was asked, which is answered here."""
    made = []

    def try_fast_ways(*arguments, kv_cache_dtype):
        made.append((*arguments, kv_cache_dtype))
        return [SLOW]

    monkeypatch.setattr(model_batches, "try_fast_ways", try_fast_ways)
    monkeypatch.setattr(gpu, "ask_gpu", lambda question, *given, progress: question(*given))
    return made


def found(
    device: str, *, generates: bool = True, progress: str = "text", cache: str | None = None
) -> list[str]:
    spec = SimpleNamespace(
        generates=generates,
        model=SimpleNamespace(config=VARIANTS["large"]),
        options=SimpleNamespace(progress=progress),
    )
    return run._left_aside(spec, ComputePlan("m", device, "bfloat16", 2, kv_cache_dtype=cache))


@pytest.mark.parametrize(
    ("progress", "said"), [("text", f"the GPU works without {SLOW}\n"), ("json", ""), ("quiet", "")]
)
def test_a_gpu_tries_its_fast_ways_before_the_run(asked, capsys, progress, said):
    assert found("cuda", progress=progress) == [SLOW]
    assert asked == [(torch.device("cuda"), torch.bfloat16, 96, None)]
    assert capsys.readouterr() == ("", said)


def test_a_gpu_that_cannot_read_a_cache_of_8_bits_ends_a_run_that_asks_for_one(asked):
    with pytest.raises(RunFailed) as ended:
        found("cuda", cache="int8")
    assert asked == [(torch.device("cuda"), torch.bfloat16, 96, torch.int8)]
    assert str(ended.value) == (
        "expected a GPU that samples with --kv-cache-dtype int8, found one that must sample "
        f"plainly, without {SLOW}; next: --kv-cache-dtype auto"
    )


def test_cpus_and_jobs_that_draw_nothing_have_none(asked):
    assert found("cpu") == found("cuda", generates=False) == []
    assert asked == []


def test_a_gpu_that_a_trial_breaks_does_without_all_of_it(monkeypatch):
    def broken(*_, **__):
        raise RunFailed("found CUDA error: an illegal memory access") from OSError()

    monkeypatch.setattr(gpu, "ask_gpu", broken)
    assert found("cuda") == ["all that is fast: found CUDA error: an illegal memory access"]


def test_a_run_without_a_gpu_ends(monkeypatch):
    def none(*_, **__):
        raise RunFailed("expected a free GPU of the cluster, found none in 6 hours")

    monkeypatch.setattr(gpu, "ask_gpu", none)
    with pytest.raises(RunFailed, match="none in 6 hours"):
        found("cuda")


@pytest.mark.parametrize(("left_aside", "plain"), [([], False), ([SLOW], True), (None, True)])
def test_actors_do_without_what_the_run_does_without(monkeypatch, left_aside, plain):
    """An earlier version, which had nothing of it, recorded nothing."""
    assert is_plain(left_aside) == plain
    monkeypatch.setattr(self_check, "_left_aside", [])
    monkeypatch.setattr(model_batches, "try_fast_ways", lambda *_, **__: [])
    plan = ComputePlan("m", "cuda", "bfloat16", images=2, plain=plain)
    planned = "it was so on the GPU that the run was planned with"
    assert plan.try_fast_ways(96) == ([f"all that is fast: {planned}"] if plain else [])
    device = torch.device("cuda:0")
    assert self_check.is_left_aside("a captured pass", device) == plain
