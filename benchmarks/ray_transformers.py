"""Completing images with Ray Data and transformers, as people write it today: what igpt replaces.

    python benchmarks/ray_transformers.py FOLDER MODEL OUTPUT

It has no seeds for each image, begins again from zero, and ends with the first damaged file.
`job.py` times it.
"""

import sys

import numpy as np
import ray
import torch
import transformers
from PIL import Image

BATCH = 16


class Quantize:
    def __init__(self, model: str) -> None:
        from transformers import ImageGPTImageProcessor  # of a module that Ray pickles it is gone

        self.processor = ImageGPTImageProcessor.from_pretrained(model)

    def __call__(self, batch: dict) -> dict:
        images = [Image.fromarray(image) for image in batch["image"]]
        tokens = self.processor(images, return_tensors="np")["input_ids"]
        return {"path": batch["path"], "tokens": np.asarray(tokens, np.int64)}


class Complete:
    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self.model = transformers.ImageGPTForCausalImageModeling.from_pretrained(
            model, dtype=torch.float32
        ).eval()

    def __call__(self, batch: dict) -> dict:
        tokens = torch.from_numpy(np.stack(batch["tokens"]))
        start = torch.full((len(tokens), 1), self.model.config.vocab_size - 1)
        prompt = torch.cat([start, tokens[:, : tokens.shape[1] // 2]], dim=1)
        images = self.model.generate(
            prompt, max_length=tokens.shape[1] + 1, do_sample=True, use_cache=True
        )
        return {"path": batch["path"], "images": images[:, 1:].numpy().astype(np.uint16)}


def main() -> None:
    folder, model, output = sys.argv[1:]
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    cpus = int(ray.cluster_resources()["CPU"])
    dataset = ray.data.read_images(folder, mode="RGB", include_paths=True)
    dataset = dataset.map_batches(
        Quantize,
        fn_constructor_args=[model],
        batch_size=BATCH,
        num_cpus=0.1,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    dataset = dataset.map_batches(
        Complete,
        fn_constructor_args=[model],
        batch_size=BATCH,
        num_cpus=0.4,  # actors on all CPUs would leave none for the tasks that read: it would hang
        compute=ray.data.ActorPoolStrategy(size=cpus),
    )
    dataset.write_parquet(output)


if __name__ == "__main__":
    main()
