"""Checks what the report shows of likelihoods, against sums over the same rows."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from made_runs import (
    COLUMNS,
    PALETTE,
    SCALE,
    SIDE,
    Page,
    colors,
    ids,
    make_run,
    map_for,
    nats_for,
    places,
    read_sheet,
    tokens_for,
    written,
)
from pictures import encoded
from pipeline import rows
from pipeline.report.charts import nice_step, ticks
from pipeline.report.contact_sheet import draw_contact_sheet
from pipeline.report.heat_map import COLORS, draw_heat_map, scale_top
from pipeline.report.pictures import Example, Picture

N = SIDE * SIDE


def pixels_of(picture: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image)


def chart(page: Page, word: str) -> Any:
    """Finds the one whose description holds the word."""
    (found,) = [svg for svg in page.charts if word in svg.get("aria-label", "")]
    return found


def bars(svg: Any) -> list[tuple[str, float]]:
    """Reads title and height, as a share of the whole chart's, of every bar."""
    drawn = [(rect.find("title").text, float(rect.get("height"))) for rect in svg.iter("rect")]
    for rect in svg.iter("rect"):
        foot = float(rect.get("y")) + float(rect.get("height"))
        assert foot == pytest.approx(160, abs=0.02)
    return [(title, height / 160) for title, height in drawn]


def top_of(svg: Any) -> float:
    """Reads the number at the top of the scale."""
    return max(float(group.find("text").text.replace(",", "")) for group in svg.iter("g"))


# --- likelihoods ----------------------------------------------------------------------------------


def test_histogram_counts_every_image(tmp_path: Path) -> None:
    names = ids(300)
    page = written(make_run(tmp_path / "run", [names[:100], [], names[100:]], job="score"))
    values = np.array([np.float32(nats_for(name)) for name in names], np.float64)
    svg = chart(page, "Histogram")
    counted = 0
    for title, height in bars(svg):
        low, high, count = re.fullmatch(r"([\d.]+) to ([\d.]+) nats: (\d+)", title).groups()
        inside = (values >= float(low)) & (values < float(high))
        assert inside.sum() == int(count)
        assert height * top_of(svg) == pytest.approx(int(count), abs=0.01 * top_of(svg))
        counted += int(count)
    assert counted == 300
    assert page.figures()["Nats per pixel"] == pytest.approx(values.mean(), rel=1e-9)
    text = page.all_text()
    mean, median = values.mean(), np.median(values)
    assert f"mean {mean:.2f} nats, {mean / np.log(2):.2f} bits" in text
    shown = float(re.search(r"median ([\d.]+) nats", text)[1])
    assert shown == pytest.approx(median, abs=0.05)
    assert "lower is more likely" in text
    card = Path(tmp_path, "run/README.md").read_text()
    assert f"the lowest {values.min():.2f}, the highest {values.max():.2f}" in card
    assert "nats per pixel" in card


def test_a_few_odd_values_do_not_break_the_histogram(tmp_path: Path) -> None:
    """Counts values above the last edge, and such that are no number."""
    output = make_run(tmp_path / "run", [ids(3)], job="score")
    path = Path(output, "stats/part-000000.json")
    stats = json.loads(path.read_text())
    found = {"bins": {"160": 2}, "sum": 29.0, "not_finite": 1, "bin_width": 0.05}
    found |= {"lowest": [["a", 9.0], ["b", 20.0]], "highest": [["b", 20.0], ["a", 9.0]]}
    path.write_text(json.dumps(stats | {"nats": found}))
    page = written(output)
    assert bars(chart(page, "Histogram")) == [("8 and more nats: 2", 1.0)]
    assert "The last bar holds all above 8. 1 more have no finite value." in page.all_text()
    stats["nats"] = {"bins": {}, "sum": 0.0, "not_finite": 3, "lowest": [], "highest": []}
    path.write_text(json.dumps(stats))
    page = written(output)
    assert page.charts == []
    assert "Nats per pixel" not in page.figures()


def test_hostile_ids_stay_text_in_every_section(tmp_path: Path) -> None:
    names = ['<script>alert("x")</script>', "'\"><img src=http://evil/x onerror=alert(1)>", "a\0b"]
    plain = written(make_run(tmp_path / "a", [ids(3)], job="score"), palette=PALETTE)
    page = written(make_run(tmp_path / "b", [names], job="score"), palette=PALETTE)
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert page.titles_of("id") == [*names[:2], "a\\x00b"]


# --- pictures of the jobs -------------------------------------------------------------------------


def test_scored_images_stand_beside_their_heat_maps(tmp_path: Path) -> None:
    names = ids(4)
    output = make_run(tmp_path / "run", [names[:1], names[1:]], job="score")
    page = written(output)
    sheet = read_sheet(output)
    top = np.quantile(np.stack([map_for(name) for name in names]), 0.99)
    assert f"{top:.2f} nats and more" in page.all_text()
    for name, image, heat in zip(names, page.pictures()[::2], page.pictures()[1::2], strict=True):
        nats = nats_for(name)
        assert f"{nats:.2f} nats, {nats / np.log(2):.2f} bits per pixel" in page.all_text()
        assert np.array_equal(pixels_of(image), colors(tokens_for(name, 0)))
        [(y, x)] = places(sheet, pixels_of(image))
        assert places(sheet, pixels_of(heat)) == [(y, x + SIDE * SCALE + 8)]
        # the same scale in all pictures: brighter where there are more nats, up to the top
        brightness = pixels_of(heat).astype(int) @ [299, 587, 114]
        order = np.argsort(map_for(name).ravel())
        assert (np.diff(brightness.ravel()[order]) >= 0).all()
        above = map_for(name) >= top
        assert (pixels_of(heat)[above] == COLORS[-1]).all()


def test_score_without_maps_shows_the_image_alone(tmp_path: Path) -> None:
    output = make_run(tmp_path / "run", [ids(2)], job="score", columns=rows.score_columns(N))
    page = written(output)
    assert len(page.pictures()) == 2
    assert "nats and more" not in page.all_text()
    assert "bits per pixel" in page.all_text()


@pytest.mark.parametrize("scored", [True, False])
def test_sampled_images(tmp_path: Path, scored: bool) -> None:
    columns = rows.sample_columns(N, scored=scored)
    page = written(make_run(tmp_path / "run", [ids(3)], job="sample", columns=columns))
    for name, picture in zip(ids(3), page.pictures(), strict=True):
        assert np.array_equal(pixels_of(picture), colors(tokens_for(name, 0)))
        assert (f"{nats_for(name):.2f} nats per pixel" in page.all_text()) == scored
    assert ("Histogram" in str([svg.attrib for svg in page.charts])) == scored


def test_embedded_images(tmp_path: Path) -> None:
    page = written(make_run(tmp_path / "run", [ids(3)], job="embed"))
    for name, picture in zip(ids(3), page.pictures(), strict=True):
        assert np.array_equal(pixels_of(picture), colors(tokens_for(name, 0)))
    assert "embedding_4" in page.all_text()
    assert "features at layer 4" in page.all_text()


def test_completions_of_prompts_alone_with_their_nats(tmp_path: Path) -> None:
    columns = rows.complete_columns(N, prompts=True, scored=True)
    page = written(make_run(tmp_path / "run", [ids(2)], samples=2, columns=columns))
    assert len(page.pictures()) == 2 * 3  # no original
    shown = ", ".join(f"{nats_for(f'photo-0001.jpg {k}'):.2f}" for k in range(2))
    assert f"{shown} nats per pixel" in page.all_text()
    assert "of 4 completions, mean over generated pixels" in page.all_text()


def test_columns_of_the_input_are_not_taken_for_the_jobs_own(tmp_path: Path) -> None:
    """Leaves out columns `nll` and `original` of the input: the job did not compute them."""
    columns = rows.complete_columns(N, scored=True)
    output = make_run(tmp_path / "run", [ids(2)], columns=columns)
    path = Path(output, "run.json")
    run = json.loads(path.read_text()) | {"passthrough": ["nll", "original"]}
    path.write_text(json.dumps(run))
    page = written(output)
    assert len(page.pictures()) == 2 * 2
    assert "nats per pixel</b>" not in Path(output, "report.html").read_text()


def test_unknown_pixels_of_a_prompt_are_hatched(tmp_path: Path) -> None:
    """Draws a prompt as high as the image: rows, part of a row and pixels further down known."""
    pixels = colors(tokens_for("a", 0))
    known = np.zeros((SIDE, SIDE), bool)
    known[:2], known[2, :3], known[6, 4:7] = True, True, True
    prompt = encoded(Image.fromarray(np.dstack([pixels, known.astype(np.uint8) * 255])))
    example = Example(
        "a",
        (
            Picture("prompt", prompt, SIDE),
            Picture("original", encoded(Image.fromarray(pixels)), SIDE),
        ),
    )
    sheet = np.asarray(Image.open(io.BytesIO(draw_contact_sheet([example], title="t", note="n"))))
    [(y, x)] = places(sheet, pixels)
    left = x - SIDE * SCALE - 8
    prompt_pixels = sheet[y : y + SIDE * SCALE, left : left + SIDE * SCALE]
    large = known.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    original = sheet[y : y + SIDE * SCALE, x : x + SIDE * SCALE]
    assert np.array_equal(prompt_pixels[large], original[large])
    assert len(np.unique(prompt_pixels[~large], axis=0)) == 2


def lightness(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Computes CIE L*, 0 to 100, of sRGB (..., 3) uint8."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def test_heat_maps_grow_evenly_brighter() -> None:
    ramp = np.linspace(0, 5, 256, dtype=np.float32)
    shades = lightness(pixels_of(draw_heat_map(ramp[None], 5.0))[0])
    steps = np.diff(shades[::15])
    assert steps.min() > 0
    assert steps.max() < 2 * np.median(steps)
    assert shades[0] < 10
    assert shades[-1] > 90


def test_heat_maps_of_odd_numbers() -> None:
    odd = np.array([[np.nan, np.inf, -1.0, 2.0]], np.float32)
    picture = pixels_of(draw_heat_map(odd, 2.0))
    assert picture[..., 3].tolist() == [[0, 255, 255, 255]]
    assert picture[0, 1:, :3].tolist() == [list(COLORS[i]) for i in (-1, 0, -1)]
    assert scale_top([odd, [np.nan]]) == pytest.approx(np.quantile([-1, 2], 0.99))
    assert scale_top([]) == scale_top([[0.0, 0.0]]) == 1.0


# --- runs without much ----------------------------------------------------------------------------


@pytest.mark.parametrize("job", COLUMNS)
def test_runs_of_nothing_of_errors_and_of_one_row(tmp_path: Path, job: str) -> None:
    errors = [(0, "a.jpg", "ImageError", "cut short"), (1, "b.jpg", "ImageError", "cut short")]
    nothing = written(make_run(tmp_path / "0", [], job=job, planned=2), palette=PALETTE)
    failed = written(make_run(tmp_path / "1", [[], []], job=job, failed=errors), palette=PALETTE)
    one = written(make_run(tmp_path / "2", [ids(1)], job=job), palette=PALETTE)
    for page in (nothing, failed):
        assert page.pictures() == []
        assert "No examples: no row has a result" in page.all_text()
    assert nothing.charts == []
    assert failed.charts == []
    assert failed.figures()["Failed rows"] == 2
    assert one.pictures()
    assert one.figures()["Images"] == 1
    scored = job in ("sample", "score")
    assert len(one.charts) == scored
    if scored:
        assert one.figures()["Nats per pixel"] == pytest.approx(nats_for("photo-0000.jpg"))
    for page in (nothing, failed, one):
        assert page.all_text().count("NaN") == page.all_text().count("nan ") == 0


def test_scales_have_round_numbers() -> None:
    assert [nice_step(x) for x in (0, 1, 1.1, 2.1, 5.1, 0.03, 1900)] == [
        1, 1, 2, 5, 10, 0.05, 2000
    ]  # fmt: skip
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(1.2, 3.1, 5) == pytest.approx([1.5, 2.0, 2.5, 3.0])
    assert ticks(8, 8, 5) == [8]
