"""Jobs run in this process, and what they leave: for the tests of single jobs."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from igpt_core.images.model_palette import load_palette
from igpt_core.images.pixels import load_pixels
from jobs.__main__ import main
from pictures import SIDE

# Of jobs that look at images once: float32, as they are held against transformers.
FORWARD = {
    "batch_size": 8,
    "shard_size": 16,
    "max_error_fraction": 0.5,
    "device": "cpu",
    "dtype": "float32",
}
START = 32  # the start token of the tiny model: after its 32 colors


def igpt(*words: object, quiet: bool = True, **options: object) -> None:
    """Runs a command by its words and its options; a value of True stands for a flag alone."""
    line = [str(word) for word in words]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        line.append(flag if value is True else f"{flag}={value}")
    main([*line, "--quiet"] if quiet and "--quiet" not in line else line)


def refusal(capsys, *words: object, code: int = 2, **options: object) -> str:
    """Returns the one line of a command that ends with an exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        igpt(*words, **options)
    assert stopped.value.code == code
    message = str(capsys.readouterr().err)
    assert message.startswith("igpt: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    return message


def results(output: Path) -> list[dict]:
    return pq.read_table(output / "data").to_pylist()


def errors(output: Path) -> dict[str, str]:
    """Returns the class of each row's error, by id."""
    table = pq.read_table(output / "errors")
    return dict(zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True))


def columns(output: Path) -> dict[str, object]:
    schema = pq.read_schema(output / "data" / "part-000000.parquet")
    return {field.name: field.type for field in schema}


def parts(output: Path, *folders: str) -> dict[str, str]:
    """Hashes (SHA-256) each part by its path, of the results unless other folders are named."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders or ("data",)
        for path in sorted((output / folder).glob("part-*"))
    }


def tokens_of_files(folder: str, ids: list[str], model: str) -> torch.Tensor:
    """Encodes image files as (N, T) int64 tokens under the palette of a model."""
    palette = load_palette(model)
    pixels = np.stack([load_pixels(Path(folder, id_).read_bytes(), SIDE) for id_ in ids])
    return torch.from_numpy(palette.encode(pixels).astype(np.int64)).reshape(len(ids), -1)


def started(tokens: torch.Tensor) -> torch.Tensor:
    """Returns what a model is fed in training, spelled out row by row."""
    return torch.tensor([[START, *row[:-1]] for row in tokens.tolist()])


def reference(model: str) -> transformers.ImageGPTForCausalImageModeling:
    return transformers.ImageGPTForCausalImageModeling.from_pretrained(model).eval()


@torch.no_grad()
def nats_by_transformers(model: str, tokens: torch.Tensor) -> torch.Tensor:
    """Computes minus the log-probability of each token, (N, T) float64, by transformers' logits."""
    logits = reference(model)(started(tokens)).logits.double()
    chances = logits.log_softmax(dim=2)
    return -chances.gather(2, tokens[..., None])[..., 0]
