"""GenerationConfig: options of `generate`, beside a model and in its folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GENERATION_CONFIG_FILE = "generation_config.json"

# Of `generate`, with what they are unless anything says otherwise.
DEFAULTS: Mapping[str, Any] = {
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


class GenerationConfig:
    """Options of `generate` as attributes: those of DEFAULTS, None where they are not set, and any
    others, of which `generate` refuses by name those that it does not have."""

    def __init__(self, **options: Any) -> None:
        vars(self).update(options)

    def __getattr__(self, name: str) -> Any:
        if name in DEFAULTS:
            return None
        raise AttributeError(f"GenerationConfig has no option {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the options that are set."""
        return dict(vars(self))

    to_diff_dict = to_dict

    def update(self, **options: Any) -> None:
        """Sets options."""
        vars(self).update(options)

    @classmethod
    def from_file(cls, file: Path) -> "GenerationConfig":
        """Reads a file as transformers writes it; raises ValueError or TypeError for another."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes generation_config.json into a folder that is there; without options there is
        none."""
        if not vars(self):
            Path(save_directory, GENERATION_CONFIG_FILE).unlink(missing_ok=True)
            return
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        Path(save_directory, GENERATION_CONFIG_FILE).write_text(text, encoding="utf-8")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # mutable, like a dict

    def __repr__(self) -> str:
        return f"GenerationConfig({vars(self)})"


def options_in(config: Any) -> dict[str, Any]:
    """Returns the options that are set in a mapping, a `GenerationConfig` of here or transformers,
    or any object with them as attributes."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        as_dict = getattr(config, "to_diff_dict", None)
        config = vars(config) if as_dict is None else as_dict()
    return {
        name: value
        for name, value in config.items()
        if value is not None and not name.startswith("_") and name != "transformers_version"
    }
