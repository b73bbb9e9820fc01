"""Whether a row's results depend on its place among the rows of a batch: what `test_row_places.py`
asks, here and in processes that may use fewer of the processor's instructions."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import decode_window
from igpt_core.heads import ImageGPTForCausalImageModeling, ImageGPTForImageClassification
from igpt_core.learning.features import pooled_features
from igpt_core.learning.scoring import token_nll
from igpt_core.model.config import ImageGPTConfig
from models import make_model, prefill

POSITIONS, GIVEN = 9, 6
# By threads; of two a part, as they wait for each other at each of many small operations.
SIZES = {1: range(1, 34), 2: range(1, 34, 4)}
DTYPES = (torch.float32, torch.bfloat16)
CLASSES = (1, 3, 10)  # products with few columns are MKL's worst
SHAPES = {
    "shipped": {"vocab_size": 513, "n_embd": 192, "n_head": 6},
    # No width is a multiple of a vector register's.
    "uneven": {"vocab_size": 34, "n_embd": 36, "n_head": 3, "n_inner": 50},
}


def differing(shape: str, dtype: torch.dtype, sizes: Sequence[int]) -> list[str]:
    """Names where a row's results differ from those that it has as the first of different rows: at
    which places among equal rows. Uses as many threads as torch is set to."""
    config = ImageGPTConfig(n_positions=POSITIONS, n_layer=2, **SHAPES[shape])
    found = []
    with torch.inference_mode():
        for name, compute in _computations(config, dtype):
            for rows in sizes:
                drawn = torch.Generator().manual_seed(rows)
                tokens = torch.randint(config.n_colors, (rows, POSITIONS), generator=drawn)
                first = compute(tokens)[0]
                equal = compute(tokens[:1].expand(rows, -1).contiguous())
                differs = [place for place in range(rows) if not equal[place].equal(first)]
                if differs:
                    found.append(f"{shape} {dtype} {name}: of {rows} rows those at {differs}")
    return found


def _computations(
    config: ImageGPTConfig, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yields what jobs compute of tokens (B, T), by name: results with B as their first axis."""
    causal = prepacked(make_model(config, ImageGPTForCausalImageModeling, std=0.2).to(dtype))
    yield "score", partial(token_nll, causal)
    yield "embed", partial(_features, causal)
    yield "decoding", partial(_logits_of_steps, causal)
    for n in CLASSES:
        labeled = config.with_fields(num_labels=n)
        model = make_model(labeled, ImageGPTForImageClassification, std=0.2).to(dtype)
        yield f"classify {n}", partial(_class_logits, prepacked(model))


def _features(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    plain = pooled_features(model, tokens, [0, 1, 2])
    normed = pooled_features(model, tokens, [0], normed=True)
    return torch.stack([*plain.values(), *normed.values()], dim=1)


def _logits_of_steps(model: ImageGPTForCausalImageModeling, tokens: Tensor) -> Tensor:
    logits, cache = prefill(model, tokens[:, :GIVEN], n_samples=1, capacity=POSITIONS)
    found = [logits]
    for position in range(GIVEN, POSITIONS - 1):
        place = torch.tensor([position + 1])
        fed = tokens[:, position, None]
        found.append(decode_window(model, fed, place, cache, span=POSITIONS)[:, 0])
        cache.length += 1
    return torch.stack(found, dim=1)


def _class_logits(model: ImageGPTForImageClassification, tokens: Tensor) -> Tensor:
    return model(tokens, use_cache=False).logits


def main() -> None:
    """Prints a line for each difference over the whole grid; the exit code says whether any."""
    found = []
    for threads, sizes in SIZES.items():
        torch.set_num_threads(threads)
        for shape in SHAPES:
            for dtype in DTYPES:
                found += [f"{threads} threads: {x}" for x in differing(shape, dtype, sizes)]
    print(*found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
