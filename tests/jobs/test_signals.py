"""A run that is told to stop: its last words, its exit code, its processes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest


def descendants(pid: int) -> set[int]:
    """Processes below one, by the parents that Linux names."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:  # it has ended
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_says_so_in_one_line_and_leaves_no_process(
    photos, tiny_model, tmp_path, number
):
    """Past bug: at SIGTERM, with which schedulers end a job, Ray printed a stack and aborted."""
    output = tmp_path / "run"
    words = [sys.executable, "-m", "jobs", "complete", f"--input={photos}", f"--output={output}"]
    words += [f"--model={tiny_model}", "--quiet", "--device=cpu", "--max-error-fraction=1"]
    run = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
        start_new_session=True,
        # A shell makes what it starts in the background deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (output / "plan.parquet").exists():
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = descendants(run.pid)
    assert below  # Ray's
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert out == ""
    (line,) = err.splitlines()
    done = len(list((output / "data").glob("*.parquet"))) if (output / "data").exists() else 0
    total = pq.read_metadata(output / "plan.parquet").num_rows
    next_move = f"igpt {shlex.join(words[3:])}"
    assert line == (
        f"igpt: interrupted: {done} of {total} shards are done and kept; next: {next_move}"
    )
    assert [path.name for path in output.glob(".*")] == [".owner"]
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.1)
