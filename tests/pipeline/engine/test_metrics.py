"""What Prometheus would get of a run, read from where Ray exports it."""

import re
import time
import urllib.request

import pytest
import ray

from jobs.__main__ import main
from pictures import BAD, GOOD


def exported() -> dict[str, list[tuple[str, float]]]:
    """(tags, value) of each metric of ours, by name, on the one node."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(ray_igpt_\w+)\{(.*)\} (\S+)", line):
            found.setdefault(match[1], []).append((match[2], float(match[3])))
    return found


@pytest.mark.slow
def test_images_errors_tokens_and_idle_actors_are_exported(
    ray_session, photos, tiny_model, tmp_path
):
    words = ["complete", f"--input={photos}", f"--output={tmp_path / 'run'}", "--quiet"]
    main([*words, f"--model={tiny_model}", "--samples=2", "--max-error-fraction=1"])
    deadline = time.monotonic() + 60
    totals: dict[str, float] = {}
    # Ray exports every few seconds what it has got by then.
    while totals.get("ray_igpt_errors_total", 0) < len(BAD) and time.monotonic() < deadline:
        time.sleep(1)
        found = exported()
        totals = {name: sum(value for _, value in values) for name, values in found.items()}
    assert totals["ray_igpt_images_total"] >= GOOD  # other tests may have run in this session
    assert totals["ray_igpt_errors_total"] >= len(BAD)
    assert totals["ray_igpt_tokens_total"] >= GOOD * 2 * 32
    idle = found["ray_igpt_idle_share"]
    assert {"Complete", "ReadImages", "WriteParts"} <= {
        stage for tags, _ in idle for stage in re.findall(r'stage="(\w+)"', tags)
    }
    assert all(0 <= share <= 1 for _, share in idle)
    assert 'job="complete"' in found["ray_igpt_images_total"][0][0]
