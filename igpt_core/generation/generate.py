"""GenerationMixin: `generate`, as users of transformers know it."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.generation.decoding import decode, feed
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel
from igpt_core.generation.sampling import SamplingConfig
from igpt_core.generation.speculation import Windows


class GenerationMixin(CausalModel):
    """Adds `generate` to a model with a transformer and a next-pixel head."""

    def generate(
        self,
        input_ids: Tensor,
        max_length: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = 50,
        top_p: float | None = None,
        num_return_sequences: int = 1,
        *,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Goes on from the tokens given, which are fed as they are; see `complete`.

        Sample k of a row is a function of (model, tokens, row seed, k), and of the compute shape
        by rounding; not of the other rows.

        Args:
            input_ids: (B, T) int64 in [0, vocab_size), T >= 1; for images the start token,
                config.vocab_size - 1, and what pixels there are.
            max_length: tokens of a result, the given ones included, T < max_length <=
                n_positions + 1; the latter, a whole image after its start token, unless given.
            do_sample: draw each token; else the most probable is taken and the options that follow
                are not looked at.
            temperature, top_k, top_p: see `SamplingConfig`; top_k = 0 is no limit either.
            num_return_sequences: samples of each row.
            seeds: (B,) of any integer dtype, one per row; drawn from torch's global generator
                unless given.

        Returns:
            (B * num_return_sequences, max_length) int64, each row's samples together. What is
            added are colors, never the start token.

        Raises:
            ValueError: an option or a size out of its range, or seeds that are no integers.
            NonFiniteError: a model that overflows in its dtype.
        """
        rows, n_given = input_ids.shape
        longest = self.config.n_positions + 1
        max_length = longest if max_length is None else max_length
        if not 1 <= n_given < max_length <= longest:
            raise ValueError(
                f"generate: expected 1 or more tokens, fewer than max_length, and that at most "
                f"n_positions + 1 = {longest}, found {n_given} and max_length {max_length}"
            )
        if num_return_sequences < 1 or (num_return_sequences > 1 and not do_sample):
            raise ValueError(
                "generate: num_return_sequences must be 1, or more with do_sample=True, found "
                f"{num_return_sequences}"
            )
        if not do_sample:
            sampling = SamplingConfig(greedy=True)
            seeds = torch.zeros(rows, dtype=torch.int64)  # of noise that is not looked at
        else:
            sampling = SamplingConfig(temperature, top_k or None, top_p)
            seeds = torch.randint(2**63 - 1, (rows,)) if seeds is None else seeds
        if seeds.shape != (rows,):
            raise ValueError(f"generate: expected one seed per row, ({rows},), found {seeds.shape}")
        with torch.inference_mode():
            noise = GumbelNoise(seeds.to(input_ids.device), num_return_sequences)
            given = input_ids.repeat_interleave(num_return_sequences, dim=0)
            tokens = pad(given, (0, max_length - n_given))
            known = torch.arange(max_length, device=given.device).expand_as(tokens) < n_given
            windows = Windows(
                len(tokens),
                max_length,
                size=1,
                sampling=sampling,
                n_colors=self.config.n_colors,
                device=tokens.device,
            )
            model = prepacked(self)
            logits, cache = feed(
                model, input_ids, n_samples=num_return_sequences, capacity=max_length - 1
            )
            starts = [n_given] * len(tokens)
            windows.begin(range(len(tokens)), tokens, known, starts, noise, logits)
            decode(model, cache, windows)
        return windows.tokens.clone()  # made here, so that it may enter a training step
