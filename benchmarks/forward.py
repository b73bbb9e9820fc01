"""Time of a forward pass: features of the middle layer and of all, scores, and transformers'.

    python benchmarks/forward.py

One model (the shipped one unless given), float32 or another dtype, a batch of random tokens; each
way computes the same batch in turn, in one process, and the fastest of several rounds counts, as
these machines are shared. Prints a table, then one line of JSON. What is aimed at: the middle layer
in at most 60 % of the time of all layers.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from igpt_core.files.model_files import resolve
from igpt_core.generation.packed import prepacked
from igpt_core.heads import load_model
from igpt_core.learning.features import chosen_layers, pooled_features
from igpt_core.learning.scoring import token_nll, with_start

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def ways(model_folder: str, device: str, dtype: torch.dtype) -> dict[str, Callable]:
    causal = prepacked(load_model(model_folder, device=device, dtype=dtype, head="causal"))
    ours = causal.transformer
    # Unless told, it computes in the dtype of the stored weights, and half is slow on CPUs.
    theirs_causal = transformers.ImageGPTForCausalImageModeling.from_pretrained(
        resolve(model_folder), dtype=dtype
    )
    theirs_causal = theirs_causal.to(device).eval()
    theirs = theirs_causal.transformer
    n_layer = ours.config.n_layer
    middle, every = chosen_layers("middle", n_layer), chosen_layers("all", n_layer)

    def reference(tokens: Tensor) -> object:
        inputs = with_start(tokens, ours.config.start_token)
        states = theirs(inputs, output_hidden_states=True, use_cache=False).hidden_states
        return {layer: state.mean(dim=1) for layer, state in enumerate(states)}

    def reference_scores(tokens: Tensor) -> object:
        inputs = with_start(tokens, ours.config.start_token)
        logits = theirs_causal(inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), reduction="none"
        )

    return {
        f"middle layer ({middle[0]})": lambda tokens: pooled_features(ours, tokens, middle),
        f"all layers (0 to {n_layer})": lambda tokens: pooled_features(ours, tokens, every),
        "transformers, all layers": reference,
        "scores": lambda tokens: token_nll(causal, tokens),
        "transformers, scores": reference_scores,
    }


def seconds(way: Callable[[Tensor], object], tokens: Tensor) -> float:
    begun = time.perf_counter()
    way(tokens)
    if tokens.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = load_model(options.model, device="cpu", dtype=None, head=None).config
    tokens = torch.randint(config.n_colors, (options.images, config.n_positions), device=device)
    found = ways(options.model, device, DTYPES[options.dtype])
    for way in found.values():
        seconds(way, tokens)  # warms up
    best = dict.fromkeys(found, float("inf"))
    for _ in range(options.rounds):
        for name, way in found.items():
            best[name] = min(best[name], seconds(way, tokens))
    middle, every, reference, scores, their_scores = best.values()
    print(f"{options.images} images of {config.n_positions} pixels, {device}, {options.dtype}")
    for name, spent in best.items():
        print(f"{name:26} {spent:8.3f} s  {options.images / spent:8.1f} images/s")
    print(f"middle / all {middle / every:.2f}, transformers / all {reference / every:.2f}")
    print(f"transformers' scores / ours {their_scores / scores:.2f}")
    result = {
        "benchmark": "forward",
        "device": device,
        "dtype": options.dtype,
        "middle_seconds": round(middle, 4),
        "all_seconds": round(every, 4),
        "transformers_seconds": round(reference, 4),
        "middle_share": round(middle / every, 3),
        "ratio": round(reference / every, 3),
        "scores_seconds": round(scores, 4),
        "scores_ratio": round(their_scores / scores, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
