"""A row's results do not depend on its place among the rows: bit for bit, in all that jobs compute
on CPUs. Past bug: on a processor with matrix tiles, and with some widths on any, a logit's last bit
did.

Libraries choose their products by the processor's instructions; a process that may use fewer of
them stands for an older processor. Linear probes are in numpy: test_linear_probe.py.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import row_places
from row_places import DTYPES, SHAPES, SIZES, differing

# By what limits them: oneDNN's products, MKL's and torch's own loops.
PROCESSORS = {
    "this one": {},
    "AVX-512 without matrix tiles": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "AVX-512 without bfloat16": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "SSE": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ATEN_CPU_CAPABILITY": "default",
    },
}


@pytest.fixture(params=SIZES)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_do_not_depend_on_the_place(shape: str, dtype: torch.dtype) -> None:
    assert differing(shape, dtype, sizes=(3, 33)) == []


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_nor_do_they_on_other_processors(processor: str) -> None:
    """Batches of 1 to 33 rows with one thread, some of these with two."""
    script = Path(row_places.__file__)
    repository = script.parents[2]
    paths = os.pathsep.join([str(repository), str(script.parent), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | PROCESSORS[processor] | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout.strip()) == (0, ""), found.stderr
