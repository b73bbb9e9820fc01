"""What `generate` takes: its options, the tokens to begin with, and the padding before them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from igpt_core.errors import ANY, check_whole, refuse_unserved

# Arguments of transformers without a meaning here, see `refuse_unserved`.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    # Images have one length, so that nothing is padded behind an end; a cache is kept always.
    **dict.fromkeys(("bos_token_id", "use_cache", "synced_gpus"), ANY),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (None, 1)),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "typical_p"), (None, 1, 1.0)),
    **dict.fromkeys(
        (
            *("penalty_alpha", "diversity_penalty", "no_repeat_ngram_size", "min_length"),
            *("min_new_tokens", "min_p", "epsilon_cutoff", "eta_cutoff", "guidance_scale"),
            *("bad_words_ids", "force_words_ids", "constraints", "suppress_tokens", "eos_token_id"),
            *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "max_time"),
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

# Of `generate`, which a configuration may have other values of.
_DEFAULTS: Mapping[str, Any] = {
    "max_length": None,
    "max_new_tokens": None,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "pad_token_id": None,
}


def options_of(given: dict[str, Any], config: Any) -> dict[str, Any]:
    """Returns the options of a call, by the names of `_DEFAULTS`."""
    if config is not None:
        if not isinstance(config, Mapping):
            as_dict = getattr(config, "to_diff_dict", None)
            config = vars(config) if as_dict is None else as_dict()
        for name, value in config.items():
            by_default = given.get(name) == _DEFAULTS.get(name)
            if by_default and not name.startswith("_") and name != "transformers_version":
                given[name] = value
    refuse_unserved("generate", given, _NEUTRAL, _INSTEAD)
    if unknown := [name for name in given if name not in _DEFAULTS]:
        raise TypeError(f"generate: there is no argument {unknown[0]!r}")
    for name in ("do_sample", "temperature", "num_return_sequences"):  # None is no choice
        given[name] = _DEFAULTS[name] if given[name] is None else given[name]
    for name in ("max_length", "max_new_tokens", "num_return_sequences"):
        if given[name] is not None:
            check_whole(f"generate: {name}", given[name])
    return given


def tokens_of(inputs: Tensor | None, input_ids: Tensor | None) -> Tensor:
    if (inputs is None) == (input_ids is None):
        raise ValueError("generate: give the tokens to begin with once, as inputs or as input_ids")
    given = input_ids if inputs is None else inputs
    assert given is not None
    if given.dim() != 2:
        raise ValueError(f"generate: expected tokens (B, T), found {tuple(given.shape)}")
    return given.long()


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
