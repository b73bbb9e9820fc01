"""Classify without Ray: its batches, its padding, failed rows, a model with names or none; models
that overflow, in all model stages."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from igpt_core.generation.packed import prepacked
from igpt_core.generation.sampling import SamplingConfig, row_seed
from igpt_core.heads import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    load_model,
)
from igpt_core.model.config import ImageGPTConfig
from models import save_tiny
from pictures import SIDE
from pipeline import rows
from pipeline.errors import EndOfRun
from pipeline.stages import sampling
from pipeline.stages.blocks import in_place, tokens_array
from pipeline.stages.forward import Classify, Embed, Score, class_names
from pipeline.stages.generate import Complete, Sample
from pipeline.stages.model_batches import ComputePlan
from pipeline.stages.sampling import Drawing

N = SIDE**2
NAMES = {0: "cat", 1: "dog", 2: "frog"}
IDS = [f"image-{i}" for i in range(8)]
RESULTS = [column.name for column in rows.classify_columns(3, named=True)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    return save_tiny(folder, ImageGPTForImageClassification, std=0.5, id2label=NAMES)


def stage(model: str) -> Classify:
    return Classify(ComputePlan(model, "cpu", "float32", images=4))


def tokens_block(ids: list[str | None]) -> pa.Table:
    """Quantized rows, tokens made from the id; None: a row without tokens."""
    drawn = [np.random.default_rng(row_seed(0, id_)).integers(0, 32, N) for id_ in ids if id_]
    column = tokens_array(np.array(drawn, np.uint16), N, valid=[id_ is not None for id_ in ids])
    return pa.table({rows.ROW_ID: pa.array(ids, pa.string()), rows.ROW_TOKENS: column})


@pytest.fixture(scope="module")
def full(classifier) -> dict[str, dict[str, object]]:
    """The results of eight rows in two full batches, by id."""
    block = stage(classifier)(tokens_block(IDS))
    return dict(zip(IDS, block.select(RESULTS).to_pylist(), strict=True))


def test_results_are_those_of_the_core(full, classifier):
    model = prepacked(
        load_model(classifier, device="cpu", dtype=torch.float32, head="classification")
    )
    tokens = torch.tensor(tokens_block(IDS)[rows.ROW_TOKENS].to_pylist())
    with torch.no_grad():
        logits = torch.cat([model(tokens[:4]).logits, model(tokens[4:]).logits])
    assert [row["logits"] for row in full.values()] == logits.tolist()
    chances = logits.double().softmax(dim=1)
    for row, chance in zip(full.values(), chances, strict=True):
        assert row["predicted_label"] == chance.argmax()
        assert row["predicted_name"] == NAMES[row["predicted_label"]]
        assert row["probability"] == pytest.approx(chance.max().item(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_padded_last_batch_gives_the_results_of_a_full_one(full, classifier, count):
    ids = IDS[::-1][:count]
    found = stage(classifier)(tokens_block(ids)).select(RESULTS).to_pylist()
    assert found == [full[id_] for id_ in ids]


def test_failed_rows_have_no_results_and_change_those_of_no_other(full, classifier):
    ids = [IDS[0], None, IDS[1], None, None, IDS[2], IDS[3], IDS[4]]
    found = stage(classifier)(tokens_block(ids))
    empty = dict.fromkeys(RESULTS)
    assert found.select(RESULTS).to_pylist() == [full[id_] if id_ else empty for id_ in ids]
    assert found.schema.field("logits").type == rows.logits_type(3)


def test_a_block_of_failed_rows_alone(classifier):
    found = stage(classifier)(tokens_block([None] * 3))
    schema = rows.schema_for("classify", rows.classify_columns(3, named=True))
    assert found.select(RESULTS).to_pylist() == [dict.fromkeys(RESULTS)] * 3
    assert {name: found.schema.field(name).type for name in RESULTS} == {
        name: schema.field(name).type for name in RESULTS
    }


def test_batches_are_full_and_padded_with_zeros():
    tokens, seeds = np.arange(10, dtype=np.uint16).reshape(5, 2) + 1, np.arange(5) + 7
    compute_plan = ComputePlan("nowhere", "cpu", "float32", images=3)
    found = list(compute_plan.in_batches(lambda *batch: batch, tokens, seeds))
    assert [place for place, _ in found] == [slice(0, 3), slice(3, 5)]
    assert found[1][1][0].tolist() == [[7, 8], [9, 10], [0, 0]]
    assert found[1][1][1].tolist() == [10, 11, 0]
    assert {tensor.dtype for _, batch in found for tensor in batch} == {torch.int64}


PLAN = {"device": "cpu", "dtype": "float16", "images": 4}


def embed(folder: str, *, embedding_dtype: str = "float32", **plan: object) -> Embed:
    plan = ComputePlan(folder, **(PLAN | plan))
    return Embed(plan, layers=[2], sos=True, normed=False, embedding_dtype=embedding_dtype)


def complete(folder: str, *, scored: bool = False) -> Complete:
    drawing = Drawing(1, 1, scored, 0, SamplingConfig())
    return Complete(ComputePlan(folder, **PLAN), drawing, prompt_length=N - 2)


def sample(folder: str) -> Sample:
    return Sample(
        ComputePlan(folder, **PLAN), Drawing(1, 1, False, 0, SamplingConfig()), image_size=SIDE
    )


STAGES = {
    "score": lambda folder: Score(ComputePlan(folder, **PLAN), mapped=False),
    "classify": lambda folder: Classify(ComputePlan(folder, **PLAN)),
    "embed": embed,
    "complete": complete,
    "sample": sample,
}
NAMED = {"score": "likelihoods", "embed": "features"}


@pytest.mark.parametrize("job", STAGES)
def test_a_model_that_overflows_ends_the_run(job, tmp_path):
    """Past bug: its images were of color 0, its nll was NaN, and the exit code 0."""
    head = ImageGPTForImageClassification if job == "classify" else ImageGPTForCausalImageModeling
    folder = save_tiny(tmp_path / "model", head, std=60.0)
    with pytest.raises(EndOfRun) as refused:
        STAGES[job](folder)(tokens_block(IDS[:3]))
    assert str(refused.value) == (
        f"expected finite {NAMED.get(job, 'logits')}, found NaN or infinite ones in float16; next: "
        "dtype bfloat16 or float32, with another --output"
    )


def test_likelihoods_of_completions_are_looked_at_too(tiny_model, monkeypatch):
    stage = complete(tiny_model, scored=True)
    monkeypatch.setattr(
        sampling, "token_nll", lambda model, tokens: tokens.where(tokens < 0, torch.nan)
    )
    with pytest.raises(EndOfRun, match="expected finite likelihoods, found NaN"):
        stage(tokens_block(IDS[:3]))


def test_features_beyond_the_dtype_of_their_columns_end_the_run(tmp_path):
    folder = save_tiny(tmp_path / "model", std=1e5)
    block = tokens_block(IDS[:3])
    assert embed(folder, dtype="float32")(block).num_rows == 3
    with pytest.raises(
        EndOfRun, match=r"within float16, found one of [\d.e+]+; next: --embedding-"
    ):
        embed(folder, dtype="float32", embedding_dtype="float16")(block)


def test_results_go_to_their_rows():
    valid = np.array([False, True, True, False, True])
    assert in_place(pa.array(["a", "b", "c"]), valid).to_pylist() == [None, "a", "b", None, "c"]


def test_only_numbered_classes_have_no_names():
    assert class_names(ImageGPTConfig(id2label=NAMES)) == ["cat", "dog", "frog"]
    assert class_names(ImageGPTConfig(num_labels=3)) is None
    assert class_names(ImageGPTConfig(id2label={0: "LABEL_0", 1: "dog"})) == ["LABEL_0", "dog"]
