"""README.md and docs/: their commands and snippets run, and what they name is there.

A fenced block is run unless the line above it says `<!-- not run: WHY -->`. Each page has a folder
of its own, in which its blocks run one after the other, with the files that `workplace` makes. The
commands run on a small model in place of the shipped one.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from igpt_core.files import model_files
from igpt_core.heads import ImageGPTForCausalImageModeling
from igpt_core.images.model_palette import load_palette
from igpt_core.model.checkpoint import save_checkpoint
from igpt_core.model.config import ImageGPTConfig
from jobs.__main__ import COMMANDS, main
from jobs.command import JobCommand, parse
from pictures import encoded, photo
from pipeline import rows
from pipeline.submit.credentials import refuse_credentials

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES_OF_README = 200
# Blocks that no test runs, by page: they install, or need a cluster, a cloud or files of others.
NOT_RUN = {"README.md": 3, "clusters.md": 15, "python.md": 1, "training.md": 1}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run."""

    page: str
    language: str
    text: str
    not_run: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of igpt, without those of the shell around it."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = (re.fullmatch(r"(?:\w+=\$\()?(igpt .+?)\)?", line) for line in lines)
        return [shlex.split(match[1], comments=True)[1:] for match in found if match]


COMMAND = {command.name: command for command in COMMANDS}


def blocks(path: Path) -> list[Block]:
    pattern = r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(path.name, language, text, why or None) for why, language, text in found]


BLOCKS = [block for path in PAGES for block in blocks(path)]


def job_of(words: list[str]) -> tuple[JobCommand, list[str]]:
    """The command that a line names, of a group the inner one, and what is left for it."""
    command: click.Command = COMMAND[words[0]]
    words = words[1:]
    while isinstance(command, click.Group):
        context = click.Context(command, allow_interspersed_args=False)
        words = command.make_parser(context).parse_args(list(words))[1]
        command, words = command.commands[words[0]], words[1:]
    assert isinstance(command, JobCommand)
    return command, words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_is_one_that_igpt_takes(path):
    for words in (words for block in blocks(path) for words in block.commands):
        command, rest = job_of(words)
        given = command.make_context(command.name, rest).params
        values = {key: value for key, value in given.items() if value is not None}
        options = parse(command.model, values)
        if words[0] == "submit":
            refuse_credentials(options.model_dump())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_option_in_a_sentence_is_one_of_its_job(path):
    known = {"--signal", "--help", "--version", "--no-deps", "--no-wait"}
    for command in _jobs(COMMANDS):
        known |= {option for parameter in command.params for option in parameter.opts}
    prose = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        named = set(re.findall(r"(?<!\S)(--[a-z][a-z-]+)", code))
        assert not named - known, code
        job = re.match(r"igpt ([a-z-]+) --", code)
        if job and not isinstance(command := COMMAND[job[1]], click.Group):
            assert named <= {o for parameter in command.params for o in parameter.opts}, code


def _jobs(commands) -> Iterator[click.Command]:
    for command in commands:
        if isinstance(command, click.Group):
            yield from _jobs(command.commands.values())
        else:
            yield command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_and_link_leads_somewhere(path):
    text = path.read_text("utf-8")
    named = re.findall(r"`((?:tests|pipeline|igpt_core|jobs|benchmarks)/[\w/.-]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        place, _, anchor = target.partition("#")
        if place.startswith("http"):
            continue
        there = (path.parent / place).resolve() if place else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_tables_of_data_name_every_column_and_its_type():
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    columns = [
        *rows.complete_columns(1024, scored=True),
        *rows.sample_columns(1024, scored=True, best=True),
        *rows.score_columns(1024, mapped=True),
        *rows.embed_columns([8], 192, pa.float32()),
        *rows.classify_columns(10, named=True),
    ]
    for column in columns:
        wanted = re.sub(r"item: |\[\d+\]", "", str(column.type))
        wanted = re.sub(r"\bfloat\b", "float32", wanted)  # as numpy and pandas have it
        name = re.sub(r"_\d+$", "_L", column.name)
        lines = [line for line in text.splitlines() if re.match(rf"\| .*`{name}`", line)]
        assert any(f"| {wanted}" in re.sub(r"\[\w\]", "", line) for line in lines), column


def test_the_table_of_errors_names_every_error_of_a_row():
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    sources = "".join(p.read_text("utf-8") for p in sorted((ROOT / "pipeline").rglob("*.py")))
    made = set(re.findall(r"(?:RowError\(\s*STAGE, |FailedSample\()\"(\w+)\"", sources))
    assert len(made) > 8
    assert not {name for name in made if f"`{name}`" not in text}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= LINES_OF_README


def test_what_is_not_run_is_known():
    counts = {}
    for block in BLOCKS:
        if block.not_run:
            counts[block.page] = counts.get(block.page, 0) + 1
    assert counts == NOT_RUN


def test_blocks_that_run_hold_nothing_else():
    """A line of another program in them would look as if it had been run."""
    for block in BLOCKS:
        if block.language == "sh" and not block.not_run:
            lines = block.text.replace("\\\n", " ").splitlines()
            assert all(line.startswith("igpt ") for line in lines), block.text


# --- run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> Path:
    """A model of the shipped one's size of images and palette, but of two narrow layers."""
    torch.manual_seed(0)
    config = ImageGPTConfig(vocab_size=513, n_positions=1024, n_embd=16, n_layer=2, n_head=2)
    folder = tmp_path_factory.mktemp("model")
    model = ImageGPTForCausalImageModeling(config).eval()
    save_checkpoint(model, folder, palette=load_palette("embedded"), image_size=32)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder with all that the pages take for given."""
    for name in ("photos", "halves", "labeled-photos/cat", "labeled-photos/dog"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(3):
        photo(i, size=(64, 48)).save(tmp_path / "photos" / f"{i}.png")
        photo(i, size=(64, 24)).save(tmp_path / "halves" / f"{i}.png")
        photo(i).save(tmp_path / "labeled-photos" / ("cat", "dog")[i % 2] / f"{i}.png")
    photo(3).save(tmp_path / "photo.jpg")
    mask = Image.new("L", (32, 32), 255)
    mask.paste(0, (0, 0, 32, 24))
    mask.save(tmp_path / "mask.png")
    for name, n in (("train.parquet", 12), ("train-0.parquet", 4), ("test.parquet", 6)):
        images = [encoded(photo(10 + i)) for i in range(n)]
        table = {"image": pa.array(images, pa.binary()), "label": [i % 2 for i in range(n)]}
        pq.write_table(pa.table(table), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_block(block: Block) -> None:
    if block.language == "python":
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(block.text, block.page, "exec"), {"__name__": "__page__"})
        expected = re.findall(r"print\(.*\)  # ([\d.]+)$", block.text, re.MULTILINE)
        found = said.getvalue().split()
        assert [float(text) for text in found] == pytest.approx(
            [float(text) for text in expected], abs=2e-3
        )
    elif block.language == "sql":
        assert duckdb.sql(block.text).fetchall()
    elif block.language == "sh":
        for words in block.commands:
            main(words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [path.name for path in PAGES if path.name != "python.md"], ids=lambda page: page
)
def test_every_block_runs(page, in_process, workplace, small_model, monkeypatch):
    """On a small model: that of python.md, whose figures are those of the shipped one, apart."""
    monkeypatch.setattr(model_files, "_EMBEDDED_FOLDER", small_model)
    monkeypatch.setattr(Image.Image, "show", lambda self: None)
    for block in BLOCKS:
        if block.page == page and not block.not_run:
            run_block(block)


@pytest.mark.slow
def test_every_recipe_runs_and_gives_its_figures(ray_session, workplace):
    for block in BLOCKS:
        if block.page == "python.md" and not block.not_run:
            run_block(block)


def test_all_that_moves_over_is_held_by_tests():
    text = (ROOT / "docs/python.md").read_text("utf-8")
    part = text.partition("## What moves over")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row.split("|")[-2])
        assert named, row
        assert all((ROOT / name).is_file() for name in named), row
    assert f"all {len(rows)} lines" in part
