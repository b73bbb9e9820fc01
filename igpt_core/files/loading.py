"""Keyword arguments of `from_pretrained` in transformers: honored, passed over, or refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from igpt_core.errors import ANY, refuse_unserved


@dataclass(frozen=True)
class FetchOptions:
    """How the files of a model are fetched, by the names of huggingface_hub.

    Attributes:
        subfolder: of the model's folder, in which its files are; anywhere, not on the Hub alone.
        cache_dir, token, local_files_only, force_download: of the Hub alone.
    """

    subfolder: str = ""
    cache_dir: str | None = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> "FetchOptions":
        """Takes these out of keyword arguments; `use_auth_token` is an old name of `token`.

        Raises TypeError for a token by both names.
        """
        if (token := arguments.pop("use_auth_token", None)) is not None:
            if arguments.get("token") is not None:
                raise TypeError("from_pretrained: use_auth_token is an old name of token: give one")
            arguments["token"] = token
        given = {name: arguments.pop(name) for name in cls.__annotations__ if name in arguments}
        return cls(**{name: value for name, value in given.items() if value is not None})


FROM_THE_FOLDER = FetchOptions()

# Arguments without a meaning here.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("low_cpu_mem_usage", "trust_remote_code", "resume_download", "use_kernels"),
            *("_fast_init", "_commit_hash", "_from_auto", "_from_pipeline"),
        ),
        ANY,
    ),
    **dict.fromkeys(
        (
            *("from_tf", "from_flax", "load_in_8bit", "load_in_4bit", "offload_state_dict"),
            *("proxies", "mirror", "variant", "max_memory", "offload_folder", "state_dict"),
            *("quantization_config", "adapter_kwargs", "tp_plan", "key_mapping", "gguf_file"),
        ),
        (None, False, {}),
    ),
    "weights_only": (None, True),
}
_INSTEAD = {
    "weights_only": "leave it out: pickles are read as weights only",
    "state_dict": "model.load_state_dict",
    "from_tf": "igpt convert",
    "variant": "rename the files of that variant",
    "proxies": "the environment variable HTTPS_PROXY",
}


def refuse_without_meaning(arguments: dict[str, Any]) -> None:
    """Takes those of transformers' arguments that mean nothing here out of keyword arguments.

    Raises TypeError for one that asks for what is not there, with what to do instead.
    """
    refuse_unserved("from_pretrained", arguments, _NEUTRAL, _INSTEAD)


def refuse_push(push_to_hub: bool) -> None:
    """Raises TypeError where what is no model is to be pushed as it is saved."""
    if push_to_hub:
        raise TypeError(
            "save_pretrained: expected push_to_hub=False, found True: nothing is pushed here; "
            "next: huggingface_hub.upload_folder on the folder"
        )
