"""The command line as a person meets it: help, mistakes, configuration files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from igpt_core import ImageGPTConfig, load_image_size, load_model, load_palette
from jobs import complete
from jobs.__main__ import COMMANDS, igpt, main
from jobs.command import JobCommand, command, parse
from pictures import SIDE, encoded, photo
from pipeline.errors import UsageError
from pipeline.run_directory.directory import RunDirectory
from runs import igpt as igpt_run
from runs import refusal


@pytest.fixture
def image_folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(photo(0)))
    return folder


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_help_has_at_most_60_lines_and_shows_its_example_first(name):
    result = CliRunner().invoke(igpt, [name, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert f"igpt {name}" in result.output
    assert "Example:" in result.output
    assert result.output.index("Example:") < result.output.find("--help")
    assert len(result.output.splitlines()) <= 60


def test_help_shows_options_under_headings_in_the_order_of_a_job():
    text = CliRunner().invoke(igpt, ["complete", "--help"], terminal_width=100).output
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    expected = ["Input", "Output", "Options of complete", "Model", "Sampling", "Cluster", "Other"]
    assert headings == expected
    assert re.search(r"^Input:\n  --input .*\[required\]$", text, re.MULTILINE)
    for option in complete.COMMAND.params:
        assert len(re.findall(rf"^  {option.opts[0]} ", text, re.MULTILINE)) == 1, option.opts


def test_version(capsys):
    result = CliRunner().invoke(igpt, ["--version"])
    assert result.output.startswith("igpt, version")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": "nowhere"}, "nowhere"),
        ({"input": "empty"}, "empty"),
        ({"input": "texts"}, ".txt"),
        ({"keep": "1.5"}, "--keep"),
        ({"keep": "1"}, "below 1 such as 0.5, found 1; next: 1rows or 1pixels"),
        ({"keep": "0.01"}, "--keep"),
        ({"samples": "0"}, "--samples"),
        ({"temperature": "0"}, "--temperature"),
        ({"model": "nowhere"}, "nowhere"),
        ({"device": "cuda"}, "--device"),
        ({"kv-cache-dtype": "int8"}, "a GPU for --kv-cache-dtype int8, found --device cpu"),
        ({"kv-cache-dtype": "fp8"}, "--kv-cache-dtype"),
        ({"storage-options": "{broken secret"}, "--storage-options"),
        ({"output": "foreign"}, "foreign"),
        ({"id-column": "name"}, "--id-column"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    ray_session, image_folder, tiny_model, tmp_path, monkeypatch, capsys, changes, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("years of work")
    options = {"input": str(image_folder), "model": tiny_model, "output": "out"} | changes
    line = refusal(capsys, "complete", *(f"--{k}={v}" for k, v in options.items()))
    assert says in line
    assert "secret" not in line
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "foreign" / "thesis.doc").read_text() == "years of work"


def test_overwrite_never_clears_a_folder_that_is_no_run(
    ray_session, image_folder, tiny_model, tmp_path, capsys
):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.doc").write_text("years of work")
    words = ["complete", "--input", image_folder, "--model", tiny_model, "--overwrite"]
    refusal(capsys, *words, "--output", tmp_path / "foreign")
    assert (tmp_path / "foreign" / "thesis.doc").exists()


def test_overwrite_leaves_other_files_of_a_run_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "notes.md").write_text("mine")
    RunDirectory.at(str(tmp_path), {}).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_a_model_folder_without_weights_or_with_wrong_shapes(
    ray_session, image_folder, tiny_model, tmp_path, capsys
):
    broken = tmp_path / "model"
    broken.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (broken / name).write_text(Path(tiny_model, name).read_text())
    words = ["complete", "--input", image_folder, "--output", tmp_path / "out", "--model", broken]
    assert "model.safetensors" in refusal(capsys, *words)
    weights = load_file(Path(tiny_model, "model.safetensors"))
    weights["transformer.h.1.attn.c_attn.weight"] = weights["transformer.h.1.attn.c_attn.weight"].T
    save_file({name: w.contiguous() for name, w in weights.items()}, broken / "model.safetensors")
    assert "transformer.h.1.attn.c_attn.weight" in refusal(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_options_come_from_a_file_and_a_flag_beats_it(
    ray_session, image_folder, tiny_model, tmp_path
):
    config = tmp_path / "job.yaml"
    config.write_text(f"input: {image_folder}\nmodel: {tiny_model}\nkeep: 0.25\nseed: 3\n")
    main(["complete", f"--config={config}", f"--output={tmp_path / 'out'}", "--seed=4", "--quiet"])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    given = round(0.25 * SIDE) * SIDE
    assert (record["results"]["keep"], record["results"]["seed"]) == (given, 4)


def every_command(commands=tuple(COMMANDS)) -> list[JobCommand]:
    """The commands with options of a job, those within `plan` and `submit` too."""
    found: list[JobCommand] = []
    for one in commands:
        if isinstance(one, JobCommand):
            found.append(one)
        elif isinstance(one, click.Group):
            found += every_command(tuple(one.commands.values()))
    return found


NEEDED = {"count": 1, "to": "png"}


def parsed(one: JobCommand, **values: object):
    """The options of a command, those that must be given filled in."""
    required = [key for key, field in one.model.model_fields.items() if field.is_required()]
    return parse(one.model, {key: NEEDED.get(key, "name") for key in required} | values)


def test_the_default_that_help_shows_can_be_typed():
    """Past bug: `[default: auto]`, `all`, `none` or `file#row`, of which most meant a file or a
    column of that name, and --id-column=auto meant no column."""
    shown = 0
    for one in every_command():
        for option in one.params:
            note = re.search(r"\[default: (.*)\]$", getattr(option, "help", None) or "")
            if note is None:
                continue
            shown += 1
            value = option.type_cast_value(None, note[1])
            assert parsed(one, **{option.name: value}) == parsed(one), (one.name, option.name)
    assert shown > 100


@pytest.mark.parametrize("key", ["input", "output", "model", "id_column", "image_column", "mask"])
def test_auto_is_a_name_like_any_other_where_help_does_not_show_it(key):
    assert getattr(parsed(complete.COMMAND, **{key: "auto"}), key) == "auto"


def test_auto_is_found_automatically_in_the_file_too_and_beats_it_as_a_flag(tmp_path, capsys):
    assert parsed(complete.COMMAND, batch_size="auto").batch_size is None
    with pytest.raises(UsageError, match="--samples"):
        parsed(complete.COMMAND, samples="auto")
    seen = []
    one = command("one", complete.CompleteOptions, seen.append, help="", example="")
    config = tmp_path / "job.yaml"
    config.write_text("input: photos\noutput: out\nbatch_size: 32\nshard_size: auto\n")
    one.main([f"--config={config}", "--batch-size=auto"], standalone_mode=False)
    one.main([f"--config={config}"], standalone_mode=False)
    assert [(options.batch_size, options.shard_size) for options in seen] == [
        (None, None),
        (32, None),
    ]
    assert "auto" in refusal(capsys, "complete", "--limit=auto")


def test_a_wrong_name_in_the_file_is_refused(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("inptu: photos\n")
    line = refusal(capsys, "complete", f"--config={tmp_path / 'job.yaml'}", "--output=x")
    assert "--inptu is not an option" in line


def test_a_file_cannot_start_anew_at_each_resume(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("input: photos\noverwrite: true\n")
    line = refusal(capsys, "complete", f"--config={tmp_path / 'job.yaml'}", "--output=x")
    assert "must not hold overwrite" in line


def test_json_lines_end_with_the_result(ray_session, image_folder, tiny_model, tmp_path, capsys):
    words = ["complete", "--input", image_folder, "--model", tiny_model, "--json"]
    main([str(word) for word in [*words, "--output", tmp_path / "out"]])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * (len(lines) - 1) + ["done"]
    assert lines[-1]["rows"] == 1


DEFAULT_NOTE = (
    "no --model given: using embedded, the small one that ships with igpt (8 million parameters, "
    "32 x 32 pixels in 512 colors, trained on CIFAR-10); for another: --model with a folder, a URI "
    "or a hub id"
)


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["score"], 1),
        (["quantize"], 1),
        (["plan", "score"], 1),
        (["score", "--quiet"], 0),
        (["score", "--model=embedded"], 0),
        (["quantize", "--palette=embedded"], 0),
    ],
    ids=str,
)
def test_one_line_says_that_the_shipped_model_is_taken(
    in_process, image_folder, tmp_path, capsys, words, notes
):
    main([*words, f"--input={image_folder}", f"--output={tmp_path / 'out'}"])
    assert capsys.readouterr().err.splitlines().count(DEFAULT_NOTE) == notes


def test_the_note_on_the_shipped_model_is_true():
    model = load_model("embedded", device="cpu", dtype=torch.float32)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 8
    assert load_image_size("embedded") == 32
    assert len(load_palette("embedded")) == 512


def test_no_secret_reaches_a_file(ray_session, image_folder, tiny_model, tmp_path):
    """Options of locations that are not local are not used here, but must not be kept either."""
    secret = "s3cr3t-k3y"
    options = json.dumps({"secret": secret})
    words = ["complete", "--input", image_folder, "--model", tiny_model, "--quiet"]
    main([str(w) for w in [*words, "--output", tmp_path / "out", "--storage-options", options]])
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_quantize_and_palette_chain(ray_session, image_folder, tiny_model, tmp_path):
    """A palette fitted here quantizes there; the tokens are the nearest of its colors."""
    palette = tmp_path / "palette.npy"
    main(
        [
            f"--{w}" if i else w
            for i, w in enumerate(
                ["palette", f"input={image_folder}", f"output={palette}", "colors=8", "quiet"]
            )
        ]
    )
    main(
        [
            "quantize",
            f"--input={image_folder}",
            f"--palette={palette}",
            "--image-size=16",
            f"--output={tmp_path / 'tokens'}",
            "--quiet",
        ]
    )
    (row,) = pq.read_table(tmp_path / "tokens" / "data").to_pylist()
    import numpy as np

    colors = np.load(palette).astype(np.float64)
    pixels = np.asarray(photo(0).resize((16, 16), 2), np.float64).reshape(-1, 3) / 127.5 - 1
    nearest = ((pixels[:, None] - colors) ** 2).sum(axis=2).argmin(axis=1)
    assert row["tokens"] == nearest.tolist()


def test_train_makes_a_model_that_complete_takes(
    ray_session, image_folder, labeled_parquet, tmp_path, capsys
):
    palette = tmp_path / "palette.npy"
    fit = ["palette", f"--input={labeled_parquet}", f"--output={palette}", "--colors=8", "--quiet"]
    line = refusal(capsys, *fit, max_error_fraction=0.04, code=3)
    assert "1 of 23 images" in line
    assert not palette.exists()
    main(fit)
    train = ["train", f"--input={labeled_parquet}", f"--palette={palette}", "--image-size=8"]
    train += ["--n-layer=1", "--n-embd=16", "--n-head=2", "--steps=3", "--quiet"]
    output = f"--output={tmp_path / 'model'}"
    line = refusal(capsys, *train, output, max_error_fraction=0.04, code=3)
    assert "1 of 23 images" in line
    assert not (tmp_path / "model").exists()
    main([*train, output])
    assert "3 steps in 0.0 minutes on 22 images (1 could not be read)" in capsys.readouterr().out
    assert ImageGPTConfig.from_pretrained(tmp_path / "model").n_colors == 8
    words = ["complete", f"--input={image_folder}", f"--model={tmp_path / 'model'}", "--quiet"]
    main([*words, f"--output={tmp_path / 'out'}"])
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 1


@pytest.mark.parametrize("way", ["flag", "file", "neither"])
def test_debug_shows_the_traceback_from_a_flag_or_a_file(tmp_path, capsys, way):
    words = ["quantize", f"--input={tmp_path}/nowhere", f"--output={tmp_path}/out"]
    if way == "flag":
        words.append("--debug")
    elif way == "file":
        (tmp_path / "options.yaml").write_text("debug: true\n")
        words.append(f"--config={tmp_path}/options.yaml")
    with pytest.raises(SystemExit):
        main(words)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("igpt: ")
    assert ("Traceback (most recent call last):" in lines) == (way != "neither")


HEAVY = {"torch", "ray", "pyarrow", "numpy", "pandas"}


def loaded_by(commands: list[list[str]], packages: set[str]) -> tuple[str, list[str]]:
    """What a process prints that runs the commands, and which of the packages it has imported."""
    script = (
        "import sys\n"
        "from jobs.__main__ import main\n"
        f"for words in {commands}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"print(*sorted({packages} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *lines, last = done.stdout.splitlines()
    return "\n".join(lines), last.split()


def test_help_and_mistakes_do_not_wait_for_torch_and_ray():
    """Past bug: 3 s and 400 MB for a line of help."""
    commands = [[command.name, "--help"] for command in COMMANDS]
    commands += [["--help"], ["--version"], ["complete"], ["complete", "--samples=0"], ["nothing"]]
    printed, loaded = loaded_by(commands, {"torch", "ray", "pyarrow", "numpy", "pandas"})
    assert printed.count("Usage: igpt") == len(COMMANDS) + 1
    assert loaded == []


def test_the_status_of_a_run_waits_for_neither(in_process, image_folder, tiny_model, tmp_path):
    output = tmp_path / "run"
    igpt_run("quantize", input=image_folder, model=tiny_model, output=output)
    printed, loaded = loaded_by([["status", str(output)]], {"torch", "ray"})
    assert "1 of 1 done" in printed
    assert loaded == []
