"""Drivers, actors and nodes that are killed at random moments, and runs that meet on one output:
the results are, byte for byte, those of a run that nothing disturbed."""

import json
import os
import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from disturbances import NIGHTS, Night
from drivers import done, driver, finish, head, rounds
from pictures import encoded, photo
from runs import parts

IMAGES, BAD, SHARD = 60, 5, 3


@dataclass(frozen=True)
class Work:
    """A command but for its --output, and what it must leave: parts by path, and of how many
    shards."""

    words: tuple[str, ...]
    parts: dict[str, str]
    shards: int


def completing(input: object, model: object, **options: object) -> tuple[str, ...]:
    """A job with a model, several samples per image and several shards for each actor."""
    given = {"samples": 2, "batch-size": 4, "shard-size": SHARD, "device": "cpu", "seed": 5}
    given |= {"max-error-fraction": 1, "model-actors": 2, "input": input, "model": model}
    return ("complete", *(f"--{name}={value}" for name, value in (given | options).items()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        (folder / f"{i:03d}.png").write_bytes(encoded(photo(i)))
    for i in range(BAD):
        (folder / f"{i:03d}-cut.png").write_bytes(encoded(photo(i))[: 200 + i])
    return folder


@pytest.fixture(scope="module")
def work(photos, tiny_model, tmp_path_factory) -> Work:
    words = completing(photos, tiny_model)
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(*words, f"--output={folder / 'run'}", log=folder / "log")
    made = parts(folder / "run", "data", "errors")
    shards = sum(name.startswith("data/") for name in made)
    assert shards == -(-(IMAGES + BAD) // SHARD)
    assert any(name.startswith("errors/") for name in made)
    return Work(words, made, shards)


@pytest.mark.parametrize(("disturbance", "seed"), NIGHTS)
def test_what_dies_is_made_up_for(work, tmp_path, disturbance, seed):
    output = tmp_path / "run"
    words = (*work.words, f"--output={output}")
    night = Night(words, tmp_path / "log", work.shards, lambda: done(output))
    disturbance(night, random.Random(seed))
    assert parts(output, "data", "errors") == work.parts


@pytest.mark.parametrize("seed", rounds(3, short=1))
def test_an_input_that_goes_away_and_comes_back_costs_no_row(work, photos, tmp_path, seed):
    """As a mount does, for up to a minute, from about when the first images are read. Past bug:
    each image that was asked for meanwhile became an error row."""
    chance = random.Random(seed)
    output, away = tmp_path / "run", photos.with_name("away")
    with driver(*work.words, f"--output={output}", log=tmp_path / "log") as run:
        assert run.until((output / "plan.parquet").exists), run.log()[-3000:]
        time.sleep(chance.uniform(0, 1.5))  # the readers start meanwhile
        photos.rename(away)
        if chance.random() < 0.5:
            photos.mkdir()  # as a place is where nothing is mounted
        try:
            time.sleep(15 if seed == 0 else 60)
            assert run.running, run.log()[-3000:]
            assert done(output) < work.shards
        finally:
            if photos.exists():
                photos.rmdir()
            away.rename(photos)
        assert run.wait() == 0, run.log()[-3000:]
    assert parts(output, "data", "errors") == work.parts


@pytest.mark.slow
def test_a_lost_head_ends_the_run_in_one_line_and_the_same_command_goes_on(work, tmp_path):
    """Past bug: a minute later Ray ended the process without a word."""
    output, log = tmp_path / "run", tmp_path / "log"
    words = (*work.words, f"--output={output}", "--model-actors=1")
    with driver(*words, log=log) as run:
        assert run.until(lambda: done(output)), run.log()[-3000:]
        (gcs,) = head(run.pid)
        os.kill(gcs, signal.SIGKILL)
        assert run.wait() == 1
    last = log.read_text().splitlines()[-1]
    assert last.startswith("igpt: the head of the Ray cluster does not answer")
    assert last.endswith("next: the same command again, without --overwrite")
    assert len(parts(output, "data", "errors")) < len(work.parts)
    finish(*words, log=log)
    assert parts(output, "data", "errors") == work.parts


@pytest.mark.parametrize("seed", rounds(6, short=1))
def test_two_runs_that_start_at_once_on_one_output(work, photos, tiny_model, tmp_path, seed):
    """With the same options, or with other ones, or one of them to replace what is there: one
    does its work, and what is there in the end is the output of that run alone."""
    chance = random.Random(seed)
    output = tmp_path / "run"
    other = completing(photos, tiny_model, seed=6)
    second = chance.choice([work.words, other, (*other, "--overwrite")])
    with ExitStack() as stack:
        runs = []
        for words in (work.words, second):
            log = tmp_path / f"log{len(runs)}"
            runs.append(stack.enter_context(driver(*words, f"--output={output}", log=log)))
            time.sleep(chance.choice([0, 0, 0.5, 6]))
        codes = [run.wait() for run in runs]
    said = [run.log() for run in runs]
    assert 0 in codes, said
    words = work.words if json.loads((output / "run.json").read_text())["seed"] == 5 else other
    whole = work.parts
    if words is other:
        finish(*other, f"--output={tmp_path / 'alone'}", log=tmp_path / "log")
        whole = parts(tmp_path / "alone", "data", "errors")
    assert parts(output, "data", "errors") == whole, (codes, said)
