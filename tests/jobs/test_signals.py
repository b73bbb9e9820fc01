"""A run that is told to stop: its last words, its exit code, its processes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from drivers import finish
from runs import parts


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


def every_process(run: subprocess.Popen) -> None:
    """Sends SIGTERM as systemd and Slurm do."""
    for pid in [*descendants(run.pid), run.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    "send",
    [
        lambda run: run.send_signal(signal.SIGINT),
        lambda run: run.send_signal(signal.SIGTERM),
        lambda run: os.killpg(run.pid, signal.SIGTERM),  # as timeout does
        every_process,
    ],
    ids=["ctrl-c", "driver", "group", "every process"],
)
def test_a_run_that_is_told_to_stop_says_so_in_one_line_and_leaves_no_process(
    photos, tiny_model, tmp_path, send
):
    """Past bugs: at SIGTERM, with which schedulers end a job, Ray printed a stack and aborted;
    where Ray was sent it too, the run took a minute to end and blamed the cluster's head."""
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
    send(run)
    out, err = run.communicate(timeout=30)  # after which Slurm kills
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
    if send is every_process:
        finish(*words[3:], log=tmp_path / "log")
        whole = tmp_path / "whole"
        finish(*words[3:], f"--output={whole}", log=tmp_path / "log")
        assert parts(output) == parts(whole)
