"""What `generate` takes: its options, the tokens to begin with, and the padding before them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from igpt_core.errors import ANY, check_whole, refuse_unserved, whole_tensor
from igpt_core.model.generation_config import DEFAULTS, options_in

# Arguments of transformers without a meaning here, see `refuse_unserved`.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Images have one length, so that nothing is padded behind an end; a cache is kept always.
    **dict.fromkeys(("bos_token_id", "use_cache", "synced_gpus"), ANY),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (None, 1)),
    **dict.fromkeys(
        ("repetition_penalty", "length_penalty", "typical_p", "guidance_scale"), (None, 1, 1.0)
    ),
    # 0 is a color and the shortest time.
    **dict.fromkeys(
        ("eos_token_id", "forced_bos_token_id", "forced_eos_token_id", "max_time"), (None, [])
    ),
    **dict.fromkeys(
        (
            *("penalty_alpha", "diversity_penalty", "no_repeat_ngram_size", "min_length"),
            *("min_new_tokens", "min_p", "epsilon_cutoff", "eta_cutoff", "begin_suppress_tokens"),
            *("bad_words_ids", "force_words_ids", "constraints", "suppress_tokens"),
            *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"),
            *("assistant_model", "early_stopping", "output_attentions", "output_hidden_states"),
            *("output_logits", "renormalize_logits", "remove_invalid_values", "low_memory"),
            *("negative_prompt_ids", "negative_prompt_attention_mask", "cache_implementation"),
            *("custom_generate", "use_model_defaults"),
        ),
        (None, False, 0, 0.0, [], {}),
    ),
}
_BEAMS = "do_sample=True with top_k or top_p, and num_return_sequences of which the best is kept"
_HOOK = "a forward hook on model.lm_head, which may change the logits"
_INSTEAD = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "penalty_alpha", "assistant_model"), _BEAMS),
    **dict.fromkeys(
        (
            *("logits_processor", "repetition_penalty", "bad_words_ids", "suppress_tokens"),
            *("prefix_allowed_tokens_fn", "begin_suppress_tokens", "min_p", "guidance_scale"),
        ),
        _HOOK,
    ),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_logits"),
        "model(tokens, output_hidden_states=True, ...) on what is generated",
    ),
    "eos_token_id": "max_length: no color ends an image",
}

_LENGTHS = {"max_length", "max_new_tokens"}
_NO_CHOICE = ("do_sample", "temperature", "num_return_sequences", *_LENGTHS)  # where None

# In the place of an argument that is not given: None may be one.
NOT_GIVEN: Any = type("NotGiven", (), {"__repr__": lambda _: "not given"})()


def options_of(arguments: dict[str, Any], configs: Sequence[Any]) -> dict[str, Any]:
    """Returns the options of a call, by the names of `DEFAULTS`: an argument that is given beats
    the configurations, and of these the last that sets an option."""
    given: dict[str, Any] = {}
    last = {
        name: value
        for name, value in arguments.items()
        if value is not NOT_GIVEN and (value is not None or name not in _NO_CHOICE)
    }
    for options in (*map(options_in, configs), last):
        if _LENGTHS & options.keys():  # either of the two takes the place of both
            given = {name: value for name, value in given.items() if name not in _LENGTHS}
        given |= options
    refuse_unserved("generate", given, _NEUTRAL, _INSTEAD)
    if unknown := [name for name in given if name not in DEFAULTS]:
        raise TypeError(f"generate: there is no argument {unknown[0]!r}")
    given = {**DEFAULTS, **given}
    for name in ("max_length", "max_new_tokens", "top_k", "num_return_sequences", "pad_token_id"):
        if given[name] is not None:
            given[name] = check_whole(f"generate: {name}", given[name])
    return given


def tokens_of(inputs: Tensor | None, input_ids: Tensor | None) -> Tensor:
    if (inputs is None) == (input_ids is None):
        raise ValueError("generate: give the tokens to begin with once, as inputs or as input_ids")
    tokens = whole_tensor("inputs", input_ids if inputs is None else inputs)
    if tokens.dim() != 2:
        raise ValueError(f"generate: expected tokens (B, T), found {tuple(tokens.shape)}")
    return tokens


def count_padding(mask: Tensor | None, tokens: Tensor) -> list[int]:
    """Counts the tokens before the first of each row that is seen."""
    if mask is None:
        return [0] * len(tokens)
    if mask.shape != tokens.shape:
        raise ValueError(
            f"generate: expected an attention_mask {tuple(tokens.shape)}, a number for each token, "
            f"found {tuple(mask.shape)}"
        )
    seen = mask.bool().long()
    if not (seen.diff(dim=1) >= 0).all() or not seen[:, -1:].all():
        raise ValueError(
            "generate: expected padding before the first token of each row alone, found some "
            "behind it; next: move the padding to the left"
        )
    return (1 - seen).sum(dim=1).tolist()


def padding_by(token: int, tokens: Tensor) -> Tensor:
    """Makes the mask (B, T) of tokens that are this one before any other: where it comes later it
    is a color."""
    return (tokens != token).long().cummax(dim=1).values


def check_range(tokens: Tensor, n_padding: list[int], vocab_size: int) -> None:
    """Raises ValueError for tokens behind the padding, which may be any, that have no embedding."""
    seen = torch.arange(tokens.shape[1]) >= torch.tensor(n_padding)[:, None]
    whole_tensor("inputs", tokens[seen.to(tokens.device)], below=vocab_size)


def refuse_virtual_tokens(model: Any) -> None:
    """Raises TypeError for a model before whose tokens an adapter of peft puts its own: it would
    have each step prepared by itself, which `generate` does not."""
    adapted = getattr(vars(model).get("prepare_inputs_for_generation"), "__self__", None)
    config = getattr(adapted, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise TypeError(
            f"generate: expected no virtual tokens, found those of {type(config).__name__}; next: "
            "an adapter on projections, such as LoRA, or the next pixel's logits, model(input_ids)"
        )
