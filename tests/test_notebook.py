"""docs/one_image.ipynb: its cells run, and the outputs in it are what they give."""

import ast
import base64
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "one_image.ipynb"
MOST_BYTES = 200_000
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


def run(source: str, names: dict[str, object]) -> tuple[str, object]:
    """Runs a cell as Jupyter does; returns what it prints and the value of its last line."""
    tree, last = ast.parse(source), None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        value = None if last is None else eval(compile(last, NOTEBOOK.name, "eval"), names)
    return printed.getvalue(), value


def without_numbers(text: str) -> str:
    """Numbers differ from one kind of processor to the next, by roundings of bfloat16."""
    return re.sub(r"\s*-?\d+\.\d+", " N", text)


def test_cells_run_and_give_the_outputs_that_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    kinds = set()
    for cell in (cell for cell in CELLS if cell["cell_type"] == "code"):
        printed, value = run("".join(cell["source"]), names)
        shown = {output["output_type"]: output for output in cell["outputs"]}
        kinds |= shown.keys()
        text = "".join(shown["stream"]["text"]) if "stream" in shown else ""
        assert without_numbers(printed) == without_numbers(text)
        assert (value is None) is ("execute_result" not in shown)
        if value is not None:
            png = base64.b64decode(shown["execute_result"]["data"]["image/png"])
            assert Image.open(io.BytesIO(png)).size == value.size
    assert kinds == {"stream", "execute_result"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["complete", "sample", "score", "embed", "classify"])
def test_every_method_is_shown(name):
    code = "".join(line for cell in CELLS if cell["cell_type"] == "code" for line in cell["source"])
    assert f"igpt.{name}(" in code


def test_outputs_are_small():
    assert NOTEBOOK.stat().st_size < MOST_BYTES
