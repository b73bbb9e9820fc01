"""The rules of the house, read from the syntax trees of the files.

Run as a script, it prints which room imports from which.

Each rule is a function from (path, tree) to the lines that break it, so that it can also be shown
to find what it is for: a rule that nothing breaks proves little.
"""

import ast
import importlib
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import igpt_core

ROOT = Path(__file__).parents[1]
LAYERS = ["igpt_core", "pipeline", "jobs"]  # each may import those before it
# Rooms (folders and single files) of a package: each may import those before it.
ROOMS = {
    "igpt_core": [
        *("errors", "files", "images", "model", "generation", "heads", "conversion", "learning"),
        "interface",
    ],
    "pipeline": [
        *("errors", "options", "shards", "storage", "rows", "run_directory", "inputs", "readers"),
        *("stages", "engine", "report", "export", "training", "batch", "verify", "submit"),
    ],
}
CORE_PACKAGES = {"torch", "numpy", "PIL", "safetensors", "fsspec"}
CORE_PACKAGES_WHEN_USED = {"sklearn", "huggingface_hub", "google_crc32c", "pillow_heif"}
KERNEL = "igpt_core/model/window_kernel.py"  # in Triton, which torch for a CPU does not bring
NAMES_WITHOUT_MEANING = r"(utils?|common|base|constants?|helpers?|managers?|misc)\.py"


def files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree):
    """(line, top-level package, whether run when the file is imported); relative ones left out."""
    at_import = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        at_import.add(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
            modules = [a.value for a in node.args if isinstance(a, ast.Constant)]
        for module in modules:
            yield node.lineno, module.partition(".")[0], node in at_import


def name_of(node):
    """The last part of a name: `load` of `torch.load`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def mentions(tree, name):
    """Lines where a name is used, imported, or stands as a string of its own."""
    for node in ast.walk(tree):
        found = name_of(node) == name or (isinstance(node, ast.Constant) and node.value == name)
        if isinstance(node, ast.ImportFrom):
            found = any(alias.name == name for alias in node.names)
        if found:
            yield node.lineno


def keyword(call, name):
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def layers_go_one_way(path, tree):
    layer = path.split("/")[0]
    if layer in LAYERS:
        above = LAYERS[LAYERS.index(layer) + 1 :]
        return [line for line, package, _ in imports(tree) if package in above]
    return []


def core_stands_alone(path, tree):
    if not path.startswith("igpt_core/"):
        return []
    allowed = {"igpt_core", *CORE_PACKAGES, *sys.stdlib_module_names}
    if path == KERNEL:
        allowed.add("triton")
    return [
        line
        for line, package, at_import in imports(tree)
        if package not in allowed and (at_import or package not in CORE_PACKAGES_WHEN_USED)
    ]


def kernel_where_it_is_used(path, tree):
    folder, _, name = KERNEL.removesuffix(".py").replace("/", ".").rpartition(".")
    return [
        node.lineno
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in [getattr(node, "module", None)]
        for alias in node.names
        if f"{folder}.{name}" in (module, alias.name, f"{module}.{alias.name}")
    ]


PEER = "benchmarks/ray_transformers.py"  # what others write, to compare with


def ray_in_pipeline_and_jobs(path, tree):
    if path.startswith(("pipeline/", "jobs/")) or path == PEER:
        return []
    return [line for line, package, _ in imports(tree) if package == "ray"]


def one_caller_of_map_batches(path, tree):
    if path in ("pipeline/engine/stage.py", PEER):
        return []
    return list(mentions(tree, "map_batches"))


def one_door_to_attention(path, tree):
    found = mentions(tree, "scaled_dot_product_attention")
    return [] if path == "igpt_core/model/attention.py" else list(found)


def one_place_for_the_pixel_scale(path, tree):
    return [] if path == "igpt_core/images/palette.py" else list(mentions(tree, 127.5))


def pickles_hold_weights_only(path, tree):
    if "torch" not in {package for _, package, _ in imports(tree)}:
        return []
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) == "torch.load"
            or (isinstance(node.func, ast.Name) and node.func.id == "load")
        )
        and keyword(node, "weights_only") is not True
    ]


def weights_fit_strictly(path, tree):
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and name_of(node.func) == "load_state_dict"
        and keyword(node, "strict") is False
    ]


def names_with_meaning(path, tree):
    return [1] if re.fullmatch(NAMES_WITHOUT_MEANING, path.rpartition("/")[2]) else []


# The rule, a file that would break it, and one that would not.
RULES = {
    layers_go_one_way: [
        ("igpt_core/a.py", "def f():\n    from pipeline.rows import ID"),
        ("igpt_core/a.py", "import importlib\nimportlib.import_module('jobs.complete')"),
        ("pipeline/stages/a.py", "import jobs.complete"),
    ],
    core_stands_alone: [
        ("igpt_core/a.py", "import click"),
        ("igpt_core/a.py", "import sklearn.linear_model"),
        (
            "igpt_core/a.py",
            "class A:\n    try:\n        import sklearn\n    except ImportError: ...",
        ),
        ("igpt_core/a.py", "def f():\n    import pandas"),
        ("igpt_core/a.py", "import triton"),
    ],
    kernel_where_it_is_used: [
        ("igpt_core/a.py", "from igpt_core.model.window_kernel import attend_windows"),
        ("igpt_core/a.py", "from igpt_core.model import window_kernel"),
        ("pipeline/a.py", "import igpt_core.model.window_kernel"),
    ],
    ray_in_pipeline_and_jobs: [("benchmarks/a.py", "def f():\n    from ray.data import Dataset")],
    one_caller_of_map_batches: [
        ("pipeline/batch/execute.py", "dataset.map_batches(f)"),
        ("jobs/a.py", "getattr(dataset, 'map_batches')(f)"),
    ],
    one_door_to_attention: [
        ("igpt_core/a.py", "from torch.nn.functional import scaled_dot_product_attention as f"),
        ("pipeline/a.py", "F.scaled_dot_product_attention(q, k, v)"),
    ],
    one_place_for_the_pixel_scale: [("igpt_core/a.py", "x = 127.5 * (v + 1)")],
    pickles_hold_weights_only: [
        ("tests/a.py", "import torch\ntorch.load(f)"),
        ("pipeline/a.py", "import torch\ntorch.load(f, weights_only=False)"),
        ("pipeline/a.py", "from torch import load\nload(f)"),
    ],
    weights_fit_strictly: [("pipeline/a.py", "model.load_state_dict(w, strict=False)")],
    names_with_meaning: [("pipeline/utils.py", ""), ("jobs/base.py", "")],
}
ALLOWED = [
    ("jobs/a.py", "import ray\nfrom pipeline import rows\nfrom igpt_core import Palette"),
    (
        "pipeline/a.py",
        "import ray\nfrom igpt_core.images.palette import Palette\nimport pipeline.rows",
    ),
    ("pipeline/engine/stage.py", "dataset.map_batches(f)"),
    ("igpt_core/a.py", "import os, torch, PIL.Image\ndef f():\n    import sklearn\n    return 127"),
    ("igpt_core/model/attention.py", "F.scaled_dot_product_attention(q, k, v)"),
    ("igpt_core/images/palette.py", "x = 127.5"),
    (KERNEL, "import triton"),
    ("igpt_core/a.py", "def f():\n    from igpt_core.model.window_kernel import attend_windows"),
    ("igpt_core/a.py", '"""Pixels are 127.5 times ..., see map_batches."""'),
    ("igpt_core/a.py", "import torch, json\ntorch.load(f, weights_only=True)\njson.load(f)"),
    ("igpt_core/a.py", "model.load_state_dict(w, assign=True)"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    broken = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in files(*LAYERS, "benchmarks")
        for line in rule(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8")))
    ]
    assert not broken, broken


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_finds_what_breaks_it(rule):
    for path, source in RULES[rule]:
        assert rule(path, ast.parse(source)), source
    for path, source in ALLOWED:
        assert not rule(path, ast.parse(source)), source


def test_tests_load_pickles_with_care_too():
    broken = [
        f"{path.name}:{line}"
        for path in files("tests")
        for line in pickles_hold_weights_only(path.name, ast.parse(path.read_text("utf-8")))
    ]
    assert not broken, broken


def test_no_benchmark_has_the_name_of_a_package():
    """Past bug: a benchmark finds what lies beside it first, so that where one was called pipeline
    six others could not import the package."""
    names = {path.stem for path in files("benchmarks")}
    assert not names & {*LAYERS, *sys.stdlib_module_names}


def test_public_names_are_sorted_and_complete():
    tree = ast.parse(Path(igpt_core.__file__).read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]  # for type checkers
    imported = [(node.module, name) for node in block.body for name in node.names]
    module_of = {name.asname or name.name: module for module, name in imported}
    assert igpt_core.__all__ == sorted(module_of)
    assert set(igpt_core.__all__) <= set(dir(igpt_core))
    for module, name in imported:
        value = getattr(importlib.import_module(module), name.name)
        assert getattr(igpt_core, name.asname or name.name) is value
    assert igpt_core._MODULE_OF.keys() | igpt_core._CHOSEN.keys() == module_of.keys()
    others = {name for name in vars(igpt_core) if not name.startswith("_")} - set(module_of)
    assert others <= {"TYPE_CHECKING", *ROOMS["igpt_core"]}
    with pytest.raises(AttributeError, match="'igpt_core' has no attribute 'Pallete'"):
        igpt_core.Pallete  # noqa: B018


def test_light_modules_of_the_core_come_without_torch():
    """The command line imports them to answer `--help` and to refuse wrong options."""
    light = ["errors", "files.model_files", "generation.sampling", "model.config"]
    imports = "".join(f"import igpt_core.{module}\n" for module in light)
    heavy = "{'torch', 'numpy', 'PIL', 'fsspec'}"
    code = f"{imports}import sys\nprint({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout == "set()\n", found.stderr


def test_public_names_that_others_rely_on():
    promised = """
        ImageGPTConfig ImageGPTFeatureExtractor ImageGPTForCausalImageModeling
        ImageGPTImageProcessor ImageGPTModel Palette SamplingConfig VARIANTS complete load_model
        token_nll
    """
    assert not set(promised.split()) - set(igpt_core.__all__)


def room_of(module):
    """(package, room) of a dotted module name; None outside the rooms."""
    package, _, rest = module.partition(".")
    return (package, rest.partition(".")[0]) if package in ROOMS and rest else None


def modules_imported(tree):
    """(line, dotted name) of what is imported, wherever it stands; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_imports():
    """(path:line, room that imports, room that is imported) within and between the packages."""
    found = []
    for path in files(*ROOMS):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        ours = room_of(name)
        if ours is None or ours[1] == "__init__":
            continue  # a package's own __init__ is its public face
        for line, module in modules_imported(ast.parse(path.read_text("utf-8"))):
            theirs = room_of(module)
            if theirs is not None and theirs != ours:
                found.append((f"{path.relative_to(ROOT)}:{line}", ours, theirs))
    return found


def goes_back(ours, theirs):
    """Whether an import is against the order of the rooms, or of the packages."""
    (package, room), (other, there) = ours, theirs
    if package != other:
        return LAYERS.index(other) > LAYERS.index(package)
    return ROOMS[package].index(there) > ROOMS[package].index(room)


def table_of_imports():
    """A line a room: the rooms that it imports from, those of the core with its name."""
    used = {}
    for _, ours, (package, room) in room_imports():
        used.setdefault(ours, set()).add(room if package == ours[0] else f"{package}.{room}")
    lines = []
    for package, rooms in ROOMS.items():
        lines += [f"{package}/"]
        for room in rooms:
            lines.append(f"  {room:14} {' '.join(sorted(used.get((package, room), {'-'})))}")
    return "\n".join(lines)


def test_rooms_use_only_those_before_them():
    found = room_imports()
    assert len(found) > 300, "no imports found"
    names = {room for _, *pair in found for room in pair}
    assert names <= {(package, room) for package, rooms in ROOMS.items() for room in rooms}
    back = [
        f"{where} imports {'.'.join(theirs)}"
        for where, ours, theirs in found
        if goes_back(ours, theirs)
    ]
    assert not back, "\n".join(back)


@pytest.mark.parametrize(
    ("ours", "theirs", "back"),
    [
        ("pipeline.stages.forward", "pipeline.engine.stage", True),
        ("pipeline.engine.stage", "pipeline.stages.forward", False),
        ("igpt_core.model.layers", "igpt_core.heads", True),
        ("pipeline.storage.walk", "igpt_core.learning.probe", False),
        ("igpt_core.learning.probe", "pipeline.storage.walk", True),
    ],
)
def test_an_arrow_back_is_found(ours, theirs, back):
    assert goes_back(room_of(ours), room_of(theirs)) is back


def test_no_circle_of_files():
    """Not even by imports within functions, nor by those for type checkers."""
    names = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for path in files(*LAYERS)
        if path.name != "__init__.py"
    }
    graph = {}
    for name, path in names.items():
        modules = [module for _, module in modules_imported(ast.parse(path.read_text("utf-8")))]
        graph[name] = {m if m in names else m.rpartition(".")[0] for m in modules} & names.keys()
    TopologicalSorter(graph).prepare()  # raises CycleError


def tree_of_the_page():
    """Paths of the files in the tree of docs/architecture.md: two spaces of indentation a level."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("```")[1]
    folders, found = [], []
    for line in text.splitlines():
        name = line.split()[0] if line.strip() else ""
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders = [*folders[:depth], name]
        elif name.endswith(".py"):
            assert len(line.split()) > 1, f"{line}: a clause is missing"
            found.append("".join(folders[:depth]) + name)
    return found


def test_the_page_of_the_architecture_has_the_rooms_in_their_order():
    for package, rooms in ROOMS.items():
        paths = [path.split("/") for path in tree_of_the_page() if path.startswith(f"{package}/")]
        named = list(dict.fromkeys(parts[1].removesuffix(".py") for parts in paths))
        assert named == rooms


def test_the_page_of_the_architecture_names_every_file_once():
    there = [
        path.relative_to(ROOT).as_posix() for path in files(*LAYERS) if path.name != "__init__.py"
    ]
    assert sorted(tree_of_the_page()) == sorted(there)


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


if __name__ == "__main__":
    print(table_of_imports())
