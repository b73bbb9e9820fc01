"""`igpt complete` with the nats of its completions, and the best of several."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pictures import SIDE
from runs import columns, igpt, nats_by_transformers, refusal, results

GIVEN = 20
COMMON = {"keep": "20pixels", "seed": 7, "batch_size": 16, "limit": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def four(in_process, photos, tiny_model, tmp_path_factory) -> Path:
    """Four completions of each of five photos, scored."""
    output = tmp_path_factory.mktemp("runs") / "four"
    igpt("complete", input=photos, model=tiny_model, output=output, samples=4, score=True, **COMMON)
    return output


def test_nats_are_means_over_the_generated_pixels_by_transformers(four, tiny_model):
    assert columns(four)["nll"] == pa.list_(pa.float32())
    rows = results(four)
    assert len(rows) == 5
    for row in rows:
        assert row["prompt_length"] == GIVEN
        nats = nats_by_transformers(tiny_model, torch.tensor(row["samples"]))
        assert len(row["nll"]) == 4
        assert row["nll"] == pytest.approx(nats[:, GIVEN:].mean(dim=1).tolist(), abs=1e-4)
        assert abs(row["nll"][0] - nats[0].mean()) > 1e-3, "the given pixels do not count"


def test_the_best_have_the_lowest_nll_of_those_that_are_drawn(four, photos, tiny_model, tmp_path):
    """The same four are drawn whatever is kept of them, so the two runs must agree exactly."""
    options = {"input": photos, "model": tiny_model, **COMMON}
    igpt("complete", **options, best_of=4, samples=2, output=tmp_path / "best")
    assert columns(tmp_path / "best") == columns(four)
    firsts = set()
    for best, all_ in zip(results(tmp_path / "best"), results(four), strict=True):
        assert best["id"] == all_["id"]
        order = sorted(range(4), key=lambda k: all_["nll"][k])[:2]
        firsts.add(order[0])
        assert best["nll"] == [all_["nll"][k] for k in order]
        assert best["samples"] == [all_["samples"][k] for k in order]
        assert best["images"] == [all_["images"][k] for k in order]
    assert len(firsts) > 1, "not always the same one"


def test_nats_of_masked_images_are_means_over_what_was_painted(
    in_process, photos, tiny_model, tmp_path
):
    from PIL import Image

    mask = Image.new("L", (SIDE, SIDE), 255)
    for x in range(SIDE):
        mask.putpixel((x, 6), 0)  # of the rows that are to be samples, the last but one is given
    mask.save(tmp_path / "mask.png")
    options = {"input": photos, "model": tiny_model, "output": tmp_path / "run", "score": True}
    igpt("complete", **options, mask=tmp_path / "mask.png", **COMMON)
    for row in results(tmp_path / "run"):
        (nats,) = nats_by_transformers(tiny_model, torch.tensor(row["samples"]))
        samples = torch.cat([nats[GIVEN : 6 * SIDE], nats[7 * SIDE :]])
        assert row["nll"] == pytest.approx([samples.mean().item()], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"best_of": 2, "samples": 3}, "--best-of 2 is below --samples 3"),
        ({"best_of": 9, "batch_size": 8}, "--batch-size 8 is below the 9"),
        ({"best_of": 0}, "--best-of"),
    ],
)
def test_more_than_is_drawn_cannot_be_kept(photos, tiny_model, tmp_path, capsys, options, says):
    output = tmp_path / "run"
    message = refusal(capsys, "complete", input=photos, model=tiny_model, output=output, **options)
    assert says in message
    assert not output.exists()
