"""What a GPU leaves aside is found before a run begins, said, and kept in run.json."""

from types import SimpleNamespace

import pytest
import torch

from igpt_core.model.config import VARIANTS
from pipeline.batch import run
from pipeline.engine import gpu
from pipeline.stages import model_batches
from pipeline.stages.model_batches import ComputePlan

SLOW = "a captured pass: its logits are others"


@pytest.fixture
def asked(monkeypatch) -> list[tuple[object, ...]]:
    """What the GPU was asked, which is answered here."""
    made = []

    def try_fast_ways(*arguments):
        made.append(arguments)
        return [SLOW]

    monkeypatch.setattr(model_batches, "try_fast_ways", try_fast_ways)
    monkeypatch.setattr(gpu, "ask_gpu", lambda question, *given, progress: question(*given))
    return made


def job_on(device: str, *, generates: bool = True, progress: str = "text") -> SimpleNamespace:
    model = SimpleNamespace(config=VARIANTS["large"])
    options = SimpleNamespace(progress=progress)
    spec = SimpleNamespace(generates=generates, model=model, options=options)
    return SimpleNamespace(spec=spec, compute=ComputePlan("m", device, "bfloat16", images=2))


@pytest.mark.parametrize(
    ("progress", "said"), [("text", f"the GPU works without {SLOW}\n"), ("json", ""), ("quiet", "")]
)
def test_a_gpu_tries_its_fast_ways_before_the_run(asked, capsys, progress, said):
    assert run._left_aside(job_on("cuda", progress=progress)) == [SLOW]
    assert asked == [(torch.device("cuda"), torch.bfloat16, 96)]
    assert capsys.readouterr() == ("", said)


def test_cpus_and_jobs_that_draw_nothing_have_none(asked):
    assert run._left_aside(job_on("cpu")) == []
    assert run._left_aside(job_on("cuda", generates=False)) == []
    assert asked == []
