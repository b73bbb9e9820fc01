"""Linear probes of every layer of embeddings: fitted, compared, plotted, the best one saved."""

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from igpt_core.learning.probe import LinearProbe
from pipeline.errors import UsageError
from pipeline.storage.atomic import write_atomic
from pipeline.storage.filesystem import join, open_location
from pipeline.training.embeddings import Embeddings

RESULT_FILE = "probe.json"
PROBE_FILE = "probe.npz"
PLOT_FILE = "accuracy.png"


@dataclass(frozen=True)
class LayerAccuracy:
    """How well a probe of a layer does: on test rows, and on the validation fifth of the training
    rows, on which its strength, C of the logistic regression, was chosen."""

    layer: int
    accuracy: float
    validation_accuracy: float
    strength: float


def check_packages() -> None:
    """Raises UsageError where what the extra `probe` installs is missing."""
    missing = [name for name in ("sklearn", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"igpt probe needs {' and '.join(missing)}, which cannot be imported; next: pip "
            "install 'igpt[probe]'"
        )


def probe_layers(
    train: Embeddings, test: Embeddings, *, seed: int, report: Callable[[LayerAccuracy], None]
) -> tuple[list[LayerAccuracy], LinearProbe]:
    """Fits a probe to each layer; returns their accuracies, and the probe that is best on its
    validation rows: the test rows have no say in it.

    Args:
        seed: of the choice of validation rows.
        report: is called with each accuracy as it comes.

    Raises UsageError where there is nothing to learn.
    """
    train.check_alike(test)
    found, best = [], None
    for layer in train.layers:
        try:
            probe = LinearProbe.fit(
                train.features(layer), train.labels, seed=seed, names=train.names, layer=layer
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        found.append(
            LayerAccuracy(
                layer,
                probe.accuracy(test.features(layer), test.labels),
                probe.validation_accuracy,
                probe.strength,
            )
        )
        report(found[-1])
        if best is None or probe.validation_accuracy > best.validation_accuracy:
            best = probe
    assert best is not None
    return found, best


def write_probe(
    output: str,
    layers: Sequence[LayerAccuracy],
    best: LinearProbe,
    *,
    facts: Mapping[str, Any],
    storage_options: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes accuracy.png, probe.npz and, last, probe.json, whose content is returned."""
    fs, path = open_location(output, storage_options)
    chance = 1 / len(best.classes)
    result = {
        **facts,
        "best_layer": best.layer,
        "chance": round(chance, 4),
        "layers": [asdict(layer) for layer in layers],
    }
    with tempfile.TemporaryDirectory() as folder:
        best.save(Path(folder, PROBE_FILE))
        write_atomic(fs, join(path, PROBE_FILE), Path(folder, PROBE_FILE).read_bytes())
    write_atomic(fs, join(path, PLOT_FILE), _plot(layers, chance))
    write_atomic(fs, join(path, RESULT_FILE), (json.dumps(result, indent=2) + "\n").encode())
    return result


def table(layers: Sequence[LayerAccuracy], best: int) -> str:
    """Returns the accuracies as lines of text, the best layer marked."""
    lines = ["layer  accuracy  validation         C"]
    for row in layers:
        mark = "  <- best on validation rows" if row.layer == best else ""
        lines.append(
            f"{row.layer:5}  {row.accuracy:8.4f}  {row.validation_accuracy:10.4f}  "
            f"{row.strength:8g}{mark}"
        )
    return "\n".join(lines)


def _plot(layers: Sequence[LayerAccuracy], chance: float) -> bytes:
    """Plots accuracy over the layers, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    numbers = [row.layer for row in layers]
    axes.plot(numbers, [row.accuracy for row in layers], "o-", label="test")
    axes.plot(numbers, [row.validation_accuracy for row in layers], "o--", label="validation")
    axes.axhline(chance, color="gray", linewidth=1, linestyle=":", label="chance")
    axes.set_xlabel("layer")
    axes.set_ylabel("accuracy")
    axes.set_xticks(numbers)
    axes.set_ylim(bottom=0)
    axes.set_title("Linear probe of each layer")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
