"""`igpt verify`: damage done by hand to a good run is named; model batches are computed again."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from igpt_core.heads import ImageGPTForImageClassification
from jobs.__main__ import main
from models import save_tiny
from pictures import encoded, photo
from pipeline.run_directory.layout import parquet_bytes

Outcome = tuple[int, dict[str, str]]


def verified(capsys, *words: object) -> Outcome:
    """The exit code, and the line of each check by its name."""
    capsys.readouterr()  # what was said before
    code = 0
    try:
        main(["verify", *map(str, words)])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.out.splitlines()
    return code, {line.split(": ")[0].split(maxsplit=1)[1]: line for line in lines}


def failing(checks: dict[str, str]) -> set[str]:
    return {name for name, line in checks.items() if line.startswith("FAILED")}


# --- runs of every job ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("classifier")
    return save_tiny(folder, ImageGPTForImageClassification, std=0.5, num_labels=3)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    """Beginnings of images, of three lengths in turn; one has no token that there is."""
    rng = np.random.default_rng(5)
    begun = [rng.integers(0, 32, 10 + 7 * (i % 3)).tolist() for i in range(11)]
    begun[4][0] = 99
    path = tmp_path_factory.mktemp("prompts") / "begun.parquet"
    pq.write_table(pa.table({"begun": pa.array(begun, pa.list_(pa.uint16()))}), path)
    return str(path)


# The words of each job, and the column whose values depend on the model or the images.
JOBS = {
    "quantize": ("quantize --input {photos} --model {model}", "tokens"),
    "complete": ("complete --input {photos} --model {model} --samples 2 --score", "samples"),
    "prompts": (
        "complete --input {prompts} --prompt-column begun --model {model} --top-k 9",
        "samples",
    ),
    "sample": ("sample --count 9 --model {model} --best-of 2", "tokens"),
    "embed": ("embed --input {photos} --model {model} --layers all", "embedding_1"),
    "score": ("score --input {photos} --model {model} --map", "nll_map"),
    "classify": ("classify --input {photos} --model {classifier}", "logits"),
}


@pytest.fixture(scope="module")
def runs(in_process, photos, prompts, tiny_model, classifier, tmp_path_factory):
    """The run of a job, made when it is asked for."""
    made: dict[str, Path] = {}
    places = {"photos": photos, "prompts": prompts, "model": tiny_model, "classifier": classifier}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            words = [word.format(**places) for word in JOBS[name][0].split()]
            words += ["--output", str(made[name]), "--shard-size=7", "--max-error-fraction=0.5"]
            words += ["--quiet"] if name == "quantize" else ["--quiet", "--device=cpu"]
            words += [] if name == "quantize" else ["--batch-size=4"]
            main(words)
        return made[name]

    return make


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A run of complete to be damaged."""
    return Path(shutil.copytree(runs("complete"), tmp_path / "run"))


@pytest.mark.parametrize("name", JOBS)
def test_a_good_run_passes_and_computes_the_same_bits_again(runs, name, capsys):
    code, checks = verified(capsys, runs(name), "--replay=100")
    assert code == 0, checks
    assert all(line.startswith("ok") for line in checks.values())
    assert "the same bit by bit" in checks["replay"]
    n_rows = pq.read_table(runs(name) / "data").num_rows
    assert f"of {n_rows} rows" in checks["replay"]


@pytest.mark.parametrize("name", JOBS)
def test_one_other_value_in_a_sound_part_is_found_by_replay_alone(runs, name, tmp_path, capsys):
    run = Path(shutil.copytree(runs(name), tmp_path / "run"))
    column = JOBS[name][1]

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        inner = values[-1][0] if isinstance(values[-1][0], list) else values[-1]
        inner[-1] = (inner[-1] + 1) % 32
        return with_column(table, column, values)

    rewrite(run / "data" / "part-000001.parquet", change)
    code, checks = verified(capsys, run, "--replay=100")
    assert code == 1
    assert failing(checks) == {"replay"}
    id_ = pq.read_table(run / "data" / "part-000001.parquet")["id"].to_pylist()[-1]
    assert f"data/part-000001.parquet: column {column} is another in 1 of" in checks["replay"]
    assert repr(id_) in checks["replay"]


# --- damage ---------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path.write_bytes(parquet_bytes(change(pq.read_table(io.BytesIO(path.read_bytes())))))


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    return table.set_column(index, field, pa.array(values, field.type))


def rewrite_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def part(run: Path, shard: int, folder: str = "data") -> Path:
    return run / folder / f"part-{shard:06d}.{'json' if folder == 'stats' else 'parquet'}"


def with_bad_rows(run: Path) -> Path:
    return min((run / "errors").iterdir())


def flip_a_bit_of_a_page(run: Path) -> None:
    content = bytearray(part(run, 1).read_bytes())
    column = pq.ParquetFile(part(run, 1)).metadata.row_group(0).column(1)
    end = column.data_page_offset + column.total_compressed_size
    content[end - 10 if column.dictionary_page_offset is None else end - 2] ^= 4
    part(run, 1).write_bytes(bytes(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def repeat_an_id(run: Path) -> None:
    first = pq.read_table(part(run, 0))["id"][0].as_py()
    ids = pq.read_table(part(run, 2))["id"].to_pylist()
    rewrite(part(run, 2), lambda t: with_column(t, "id", [first, *ids[1:]]))


def name_a_good_row_as_bad(run: Path) -> None:
    first = pq.read_table(part(run, 0))["id"][0].as_py()
    path = with_bad_rows(run)
    ids = pq.read_table(path)["id"].to_pylist()
    rewrite(path, lambda t: with_column(t, "id", [first, *ids[1:]]))


def lose_an_id(run: Path) -> None:
    ids = pq.read_table(part(run, 0))["id"].to_pylist()
    rewrite(part(run, 0), lambda t: with_column(t, "id", [None, *ids[1:]]))


def number_shards_otherwise(run: Path) -> None:
    table = pq.read_table(run / "plan.parquet")
    shards = [shard + 1 for shard in table["shard"].to_pylist()]
    rewrite(run / "plan.parquet", lambda t: with_column(t, "shard", shards))


def widen_a_column(run: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index("prompt_length")
        wide = table["prompt_length"].cast(pa.int64())
        return table.set_column(index, "prompt_length", wide)

    rewrite(part(run, 1), change)


def forget_a_key(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["columns"]
    (run / "run.json").write_text(json.dumps(record))


def change_fingerprint(run: Path, name: str) -> None:
    record = json.loads((run / "run.json").read_text())
    rewrite_json(run / "run.json", **{name: record[name] | {"fingerprint": "0" * 32}})


# What is done to a run: the check that finds it, and what its line says.
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no part": (lambda run: part(run, 1).unlink(), "gaps", "data/part-000001.parquet"),
    "a part too many": (
        lambda run: shutil.copy(part(run, 0), part(run, 99)),
        "extra files",
        "data/part-000099.parquet",
    ),
    "half-written file": (
        lambda run: (run / "data" / ".part-000001.parquet.7-a1.tmp").write_bytes(b"PAR1"),
        "extra files",
        "data/.part-000001.parquet.7-a1.tmp, of a writer that was killed or is at work; next: the "
        "same command again, which deletes it",
    ),
    "truncated": (lambda run: cut_short(part(run, 2)), "readable", "data/part-000002.parquet"),
    "empty": (lambda run: part(run, 2).write_bytes(b""), "readable", "data/part-000002.parquet"),
    "flipped bit": (flip_a_bit_of_a_page, "readable", "data/part-000001.parquet"),
    "truncated errors": (
        lambda run: cut_short(with_bad_rows(run)),
        "readable",
        "errors/part-00000",
    ),
    "a row less": (
        lambda run: rewrite(part(run, 0), lambda table: table.slice(1)),
        "rows",
        "data/part-000000.parquet",
    ),
    "errors lost": (lambda run: with_bad_rows(run).unlink(), "rows", "data/part-00000"),
    "no metadata": (
        lambda run: rewrite(part(run, 1), lambda t: t.replace_schema_metadata(None)),
        "schema",
        "data/part-000001.parquet",
    ),
    "another type": (widen_a_column, "schema", "prompt_length"),
    "a column less": (
        lambda run: rewrite(part(run, 1), lambda t: t.drop_columns(["tokens"])),
        "schema",
        "tokens",
    ),
    "other errors": (
        lambda run: rewrite(with_bad_rows(run), lambda t: t.drop_columns(["source"])),
        "schema",
        "errors/part-00000",
    ),
    "wrong stats": (
        lambda run: rewrite_json(part(run, 1, "stats"), rows=1000),
        "stats",
        "stats/part-000001.json",
    ),
    "no stats": (
        lambda run: part(run, 1, "stats").unlink(),
        "stats",
        "stats/part-000001.json",
    ),
    "another run's": (
        lambda run: rewrite_json(part(run, 1, "stats"), run="another"),
        "stats",
        "of another run, which wrote while this one began; next: delete data/part-000001.parquet",
    ),
    "one id twice": (repeat_an_id, "ids", "data/part-000000.parquet and data/part-000002.parquet"),
    "good and bad": (name_a_good_row_as_bad, "ids", "2 times"),
    "no id": (lose_an_id, "ids", "data/part-000000.parquet: 1 rows without an id"),
    "other shards": (number_shards_otherwise, "plan", "numbered from 0 to 3"),
    "truncated plan": (lambda run: cut_short(run / "plan.parquet"), "plan", "plan.parquet"),
    "no plan": (lambda run: (run / "plan.parquet").unlink(), "plan", "plan.parquet"),
    "another plan": (
        lambda run: rewrite_json(run / "run.json", passthrough=["label"]),
        "plan",
        "passthrough",
    ),
    "half a record": (forget_a_key, "record", "columns"),
    "another model": (lambda run: change_fingerprint(run, "model"), "model", "0" * 32),
    "another palette": (lambda run: change_fingerprint(run, "palette"), "palette", "0" * 32),
    "wrong report": (lambda run: rewrite_json(run / "report.json", rows=1), "report", "rows 1,"),
    "no report": (lambda run: (run / "report.json").unlink(), "report", "report.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(run, name, capsys):
    damage, check, says = DAMAGE[name]
    damage(run)
    code, checks = verified(capsys, run)
    assert code == 1
    assert checks[check].startswith("FAILED")
    assert says in checks[check]


def test_stats_that_do_not_say_of_which_run_they_are_pass(run, capsys):
    """As an older igpt wrote them."""
    path = part(run, 1, "stats")
    stats = json.loads(path.read_text())
    assert stats.pop("run") == json.loads((run / "run.json").read_text())["run"]
    path.write_text(json.dumps(stats))
    code, _ = verified(capsys, run)
    assert code == 0


def test_every_flipped_bit_that_changes_a_value_is_found(run, capsys):
    """At a few places of a part; a bit of no effect on what is read may pass."""
    good, path = part(run, 1).read_bytes(), part(run, 1)
    rng = np.random.default_rng(0)
    whole = pq.read_table(path)
    for place in rng.integers(0, len(good), 25):
        content = bytearray(good)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(content))
        code, _ = verified(capsys, run)
        if code == 0:
            assert pq.read_table(path).equals(whole, check_metadata=True)


def test_ids_repeated_within_a_shard_are_errors_of_the_run_and_no_damage(
    in_process, tiny_model, tmp_path, capsys
):
    images = [{"bytes": encoded(photo(i)), "path": None} for i in range(6)]
    table = pa.table({"image": images, "name": ["a", "b", "a", "c", None, "d"]})
    pq.write_table(table, tmp_path / "in.parquet")
    words = ["quantize", f"--input={tmp_path}/in.parquet", f"--model={tiny_model}", "--quiet"]
    words += ["--id-column=name", "--max-error-fraction=0.5", f"--output={tmp_path}/run"]
    main(words)
    assert len(pq.read_table(tmp_path / "run" / "errors")) == 2
    assert verified(capsys, tmp_path / "run", "--replay=1")[0] == 0


# --- what replay needs ----------------------------------------------------------------------------


def own_run(tiny_model: str, tmp_path: Path) -> Path:
    """A run whose input and model nobody else has."""
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(encoded(photo(i)))
    shutil.copytree(tiny_model, tmp_path / "model")
    words = ["complete", f"--input={tmp_path}/in", f"--model={tmp_path}/model", "--quiet"]
    main([*words, f"--output={tmp_path}/run", "--device=cpu", "--batch-size=2"])
    return tmp_path / "run"


def test_replay_without_the_input_or_with_another_is_one_line(
    in_process, tiny_model, tmp_path, capsys
):
    run = own_run(tiny_model, tmp_path)
    (tmp_path / "in" / "1.png").unlink()
    code, checks = verified(capsys, run, "--replay=2")
    assert (code, failing(checks)) == (1, {"replay"})
    assert "1.png fails now (FileNotFoundError)" in checks["replay"]
    (tmp_path / "in" / "1.png").write_bytes(encoded(photo(50)))
    code, checks = verified(capsys, run, "--replay=2")
    assert (code, failing(checks)) == (1, {"replay", "input"})
    assert "'1.png'" in checks["replay"]


def test_another_input_is_a_problem_and_one_out_of_reach_a_line(
    in_process, tiny_model, tmp_path, capsys
):
    """Past bug: photos replaced under their names were not found."""
    run = own_run(tiny_model, tmp_path)
    checks = verified(capsys, run)[1]
    assert checks["input"] == "ok      input: 3 files as they were planned"
    (tmp_path / "in" / "0.png").unlink()
    (tmp_path / "in" / "9.png").write_bytes(encoded(photo(9)))
    code, checks = verified(capsys, run)
    assert (code, failing(checks)) == (0, set())
    assert checks["input"] == "ok      input: 2 files as they were planned, 1 gone, 1 new"
    size, new = (tmp_path / "in" / "1.png").stat().st_size, encoded(photo(50))
    (tmp_path / "in" / "1.png").write_bytes(new)
    code, checks = verified(capsys, run)
    assert (code, failing(checks)) == (1, {"input"})
    line = checks["input"]
    assert line.startswith(f"FAILED  input: 1 found: {tmp_path}/in/1.png: size={len(new)} mtime=")
    assert f", planned with size={size} mtime=" in line
    shutil.move(tmp_path / "in", tmp_path / "away")
    code, checks = verified(capsys, run)
    assert (code, failing(checks)) == (0, set())
    assert checks["input"] == f"notice  input: not checked: nothing is left of {tmp_path}/in"


def test_without_the_model_it_is_not_checked_and_replay_fails(
    in_process, tiny_model, tmp_path, capsys
):
    run = own_run(tiny_model, tmp_path)
    shutil.move(tmp_path / "model", tmp_path / "away")
    code, checks = verified(capsys, run)
    assert code == 0
    assert checks["model"].startswith("notice")
    assert "not checked" in checks["palette"]
    code, checks = verified(capsys, run, "--replay=1")
    assert (code, failing(checks)) == (1, {"replay"})
    assert str(tmp_path / "model") in checks["replay"]


def test_replay_of_a_gpu_run_without_a_gpu_is_refused(run, monkeypatch, capsys):
    record = json.loads((run / "run.json").read_text())
    rewrite_json(run / "run.json", results=record["results"] | {"device": "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert verified(capsys, run, "--replay=1")[0] == 2


def test_no_run_is_a_usage_error(tmp_path, capsys):
    assert verified(capsys, tmp_path)[0] == 2
    assert verified(capsys, tmp_path / "nowhere")[0] == 2


def test_json_lines_say_the_same(run, capsys):
    part(run, 1).unlink()
    with pytest.raises(SystemExit):
        main(["verify", str(run), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (gaps,) = [line for line in lines if line["check"] == "gaps"]
    assert (gaps["result"], gaps["where"]) == ("failed", ["data/part-000001.parquet"])
    assert {line["result"] for line in lines if line["check"] in ("record", "plan")} == {"ok"}
