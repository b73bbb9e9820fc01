"""GenerationMixin: `generate`, as users of transformers know it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from igpt_core.errors import whole_tensor
from igpt_core.generation.decoding import decode, feed_prompts, new_cache
from igpt_core.generation.generate_arguments import (
    NOT_GIVEN,
    check_range,
    count_padding,
    options_of,
    padding_by,
    refuse_virtual_tokens,
    tokens_of,
)
from igpt_core.generation.noise import GumbelNoise
from igpt_core.generation.packed import prepacked
from igpt_core.generation.passes import CausalModel, has_own_forward
from igpt_core.generation.sampling import SamplingConfig, filter_logits
from igpt_core.generation.speculation import Windows
from igpt_core.model.generation_config import GenerationConfig
from igpt_core.model.outputs import GenerateOutput
from igpt_core.model.spans import whole_units


class GenerationMixin(CausalModel):
    """Adds `generate` to a model with a transformer and a next-pixel head.

    Attributes:
        generation_config: options of `generate` in the place of its defaults; those of the folder's
            generation_config.json, where there is one.
    """

    @cached_property
    def generation_config(self) -> Any:
        return GenerationConfig()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **arguments: Any
    ) -> dict[str, Any]:
        """Returns the arguments of a forward pass behind what a cache holds; `generate` does not
        call it, but adapters of others do."""
        new = input_ids if past_key_values is None else input_ids[:, -1:]
        return {"input_ids": new, "past_key_values": past_key_values, **arguments}

    def generate(
        self,
        inputs: Tensor | None = None,
        max_length: int | None = NOT_GIVEN,
        do_sample: bool = NOT_GIVEN,
        temperature: float = NOT_GIVEN,
        top_k: int | None = NOT_GIVEN,
        top_p: float | None = NOT_GIVEN,
        num_return_sequences: int = NOT_GIVEN,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pad_token_id: int | None = NOT_GIVEN,
        max_new_tokens: int | None = NOT_GIVEN,
        generation_config: Any = None,
        return_dict_in_generate: bool = NOT_GIVEN,
        output_scores: bool = NOT_GIVEN,
        seeds: Tensor | None = None,
        **arguments: Any,
    ) -> Tensor | GenerateOutput:
        """Goes on from the tokens given, which are fed as they are; see `complete`.

        Sample k of a row is a function of (model, tokens, row seed, k), and of the compute shape
        by rounding; not of the other rows.

        Args:
            inputs: (B, T) of any integer dtype in [0, vocab_size), T >= 1; for images the start
                token, config.vocab_size - 1, and what pixels there are. `input_ids` is another
                name.
            attention_mask: (B, T), zero or false for padding before a row's first token, which is
                as if it were not there.
            pad_token_id: the token of that padding, where no mask is given; later it is a color.
            max_length: tokens of a result, the given ones included, T < max_length <=
                n_positions + 1; the latter, a whole image after its start token, unless given.
            max_new_tokens: those that are added, in place of it.
            do_sample: draw each token; else the most probable is taken and the options that follow
                are not looked at.
            temperature, top_k, top_p: see `SamplingConfig`; top_k is 50 unless given, and 0 is no
                limit either.
            num_return_sequences: samples of each row.
            generation_config: such options as attributes or as a dict, where they are not given as
                arguments; the second argument may be it too. What it does not set
                `model.generation_config` may.
            return_dict_in_generate: return a `GenerateOutput`.
            output_scores: with the filtered logits from which each token was drawn; not looked at
                otherwise.
            seeds: (B,) of any integer dtype, one per row, to sample by; drawn from torch's global
                generator unless given.
            arguments: others of transformers, where they ask for nothing which is not so anyway.

        Returns:
            (B * num_return_sequences, max_length) int64, each row's samples together. What is
            added are colors, never the start token.

        Raises:
            ValueError: an option, a size or a token out of its range, or tokens or seeds that are
                no integers.
            TypeError: an argument that asks for what is not there, such as beams, or is of another
                type.
            NonFiniteError: a model that overflows in its dtype.
        """
        if isinstance(max_length, Mapping) or hasattr(max_length, "to_diff_dict"):
            max_length, generation_config = NOT_GIVEN, max_length
        configs = [self.generation_config, generation_config]
        given = {
            "max_length": max_length,
            "max_new_tokens": max_new_tokens,
            "do_sample": do_sample,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "num_return_sequences": num_return_sequences,
            "return_dict_in_generate": return_dict_in_generate,
            "output_scores": output_scores,
            "pad_token_id": pad_token_id,
            **arguments,
        }
        refuse_virtual_tokens(self)
        options = options_of(given, configs)
        tokens = tokens_of(inputs, input_ids)
        n_each = options["num_return_sequences"]
        rows, n_given = tokens.shape
        length = self._length(n_given, options["max_length"], options["max_new_tokens"])
        if options["do_sample"]:
            sampling = SamplingConfig(
                options["temperature"], options["top_k"] or None, options["top_p"]
            )
            seeds = torch.randint(2**63 - 1, (rows,)) if seeds is None else seeds
            seeds = whole_tensor("seeds", seeds)
        else:
            sampling = SamplingConfig(greedy=True)
            seeds = torch.zeros(rows, dtype=torch.int64)  # of noise that is not looked at
        if n_each < 1 or (n_each > 1 and not options["do_sample"]):
            raise ValueError(
                "generate: num_return_sequences must be 1, or more with do_sample=True, found "
                f"{n_each}"
            )
        if seeds.shape != (rows,):
            raise ValueError(f"generate: expected one seed per row, ({rows},), found {seeds.shape}")
        noise = GumbelNoise(seeds.to(tokens.device), n_each)
        if attention_mask is None and options["pad_token_id"] is not None:
            attention_mask = padding_by(options["pad_token_id"], tokens)
        n_padding = count_padding(attention_mask, tokens)
        check_range(tokens, n_padding, self.config.vocab_size)
        logits: list[Tensor] | None = None
        if options["return_dict_in_generate"] and options["output_scores"]:
            logits = []
        drawn = self._drawn(tokens, n_padding, length, noise, sampling, n_each, logits)
        drawn = drawn.clone()  # made here, so that it may enter a training step
        if not options["return_dict_in_generate"]:
            return drawn
        scores = None
        if logits is not None:
            scores = tuple(filter_logits(each, sampling) for each in logits)
        return GenerateOutput(sequences=drawn, scores=scores)

    def compute_transition_scores(
        self, sequences: Tensor, scores: tuple[Tensor, ...], normalize_logits: bool = False
    ) -> Tensor:
        """Returns the score of each token that was drawn, (R, N), of a result with `output_scores`.

        Args:
            sequences: (R, L) int64.
            scores: of the last N tokens, (R, V) each.
            normalize_logits: the log of their probabilities in nats in place of the scores.
        """
        stacked = torch.stack(scores, dim=1)
        stacked = stacked.log_softmax(dim=-1) if normalize_logits else stacked
        return stacked.gather(2, sequences[:, -len(scores) :, None])[..., 0]

    def _length(self, n_given: int, max_length: int | None, max_new: int | None) -> int:
        """Returns the tokens of a result, of which so many are given."""
        longest = self.config.n_positions + 1
        if max_new is not None:
            max_length = n_given + max_new
        max_length = longest if max_length is None else max_length
        if not 1 <= n_given < max_length <= longest:
            raise ValueError(
                f"generate: expected 1 or more tokens, fewer than max_length, and that at most "
                f"n_positions + 1 = {longest}, found {n_given} and max_length {max_length}"
            )
        return max_length

    @torch.inference_mode()
    def _drawn(
        self,
        tokens: Tensor,
        n_padding: list[int],
        length: int,
        noise: GumbelNoise,
        sampling: SamplingConfig,
        n_each: int,
        kept: list[Tensor] | None,
    ) -> Tensor:
        """Draws tokens up to a length behind those given, (B, T), of which the first of each row
        are padding. Returns (R, length); `kept` is extended by the logits (R, V) of each step."""
        rows, n_given = tokens.shape
        model, apart = prepacked(self), any(n_padding)
        if has_own_forward(self):  # which all rows need at one position
            apart = len(set(n_padding)) > 1
        windows = Windows(
            rows * n_each,
            length,
            size=1,
            sampling=sampling,
            n_colors=self.config.n_colors,
            device=tokens.device,
            kept=kept,
        )
        cache = new_cache(
            model,
            windows.n_rows,
            capacity=whole_units(length - 1),
            n_each=n_each,
            shared_length=0 if apart else n_given,
        )
        # Without its padding a row begins, and ends, so much earlier.
        whole, known = tokens.new_zeros(rows, length), torch.ones(rows, length, dtype=torch.bool)
        starts, logits = [n_given - n for n in n_padding], []
        groups = [[row] for row in range(rows)] if apart else [list(range(rows))]
        for group in groups if rows else []:
            fed = tokens[group, n_padding[group[0]] :]
            whole[group, : fed.shape[1]] = fed
            known[group, fed.shape[1] : length - n_padding[group[0]]] = False
            found, prompts = feed_prompts(model, fed)
            cache.put(prompts, group)
            logits.append(found)
        if rows:
            windows.begin(
                range(windows.n_rows),
                whole.repeat_interleave(n_each, dim=0),
                known.to(tokens.device).repeat_interleave(n_each, dim=0),
                [start for start in starts for _ in range(n_each)],
                noise,
                torch.cat(logits).repeat_interleave(n_each, dim=0),
            )
            decode(model, cache, windows, apart=apart)
        drawn = tokens.repeat_interleave(n_each, dim=0)
        drawn = pad(drawn, (0, length - n_given))
        for row, n in enumerate(n_padding):
            here = slice(row * n_each, (row + 1) * n_each)
            drawn[here, n_given:] = windows.tokens[here, n_given - n : length - n]
        return drawn
