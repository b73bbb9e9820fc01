"""Models on the Hugging Face Hub: fetched by huggingface_hub, which the extra `hub` installs.

That library's settings hold: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT and the rest.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from igpt_core.errors import CheckpointError, NoFileError, fetch_errors, one_of
from igpt_core.files.loading import FROM_THE_FOLDER, FetchOptions

_ID = re.compile(r"(\w[\w.\-]*/\w[\w.\-]*)(?:@(\w[\w.\-/]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_id(location: str) -> tuple[str, str | None] | None:
    """Splits `owner/name` or `owner/name@revision` into id and revision; None for other text."""
    found = _ID.fullmatch(location)
    return None if found is None else (found[1], found[2])


def is_commit(revision: str | None) -> bool:
    """Tells whether a revision names a commit, which always stands for the same files."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def hub_files(
    location: str, groups: Sequence[Sequence[str]], options: FetchOptions = FROM_THE_FOLDER
) -> list[Path]:
    """Fetches files of a model on the Hub, of each group the first it has; returns local paths.

    All are of one commit, in huggingface_hub's cache; what is there already is not fetched.

    Args:
        location: `owner/name` or `owner/name@revision` (a branch, a tag or a commit).
        groups: names of files, the preferred first.
        options: how they are fetched.

    Raises:
        CheckpointError: huggingface_hub is not installed, no such model or revision, nothing of a
            group in it, no access, or no connection and nothing in the cache.
    """
    repository, revision = split_id(location) or (location, None)
    paths: list[Path] = []
    for group in groups:
        path = _first(location, repository, revision, group, options)
        revision = commit_of(path, options)  # the next file must be of the same one
        paths.append(path)
    return paths


def commit_of(path: Path, options: FetchOptions) -> str:
    """Returns the commit of a file that was fetched, after which its folder is named."""
    return path.parents[len(Path(options.subfolder).parts)].name


def _first(
    location: str,
    repository: str,
    revision: str | None,
    group: Sequence[str],
    options: FetchOptions,
) -> Path:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"there is no local folder {location}; to fetch the model from the Hugging Face Hub, "
            "pip install 'igpt[hub]', or download it and give its folder"
        ) from error
    unreachable: Exception | None = None
    for name in group:
        try:
            # The library tries for half a minute to reach the Hub: not for each of the names.
            return Path(
                hf_hub_download(
                    repository,
                    name,
                    subfolder=options.subfolder or None,
                    revision=revision,
                    cache_dir=options.cache_dir,
                    token=options.token,
                    force_download=options.force_download and unreachable is None,
                    local_files_only=options.local_files_only or unreachable is not None,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            unreachable = unreachable or error
        except errors.EntryNotFoundError:
            continue
        except errors.HFValidationError as error:
            raise CheckpointError(
                f"there is no local folder {location}, and no model on the Hugging Face Hub can "
                "have that name"
            ) from error
        except fetch_errors() as error:
            raise CheckpointError(_reason(location, repository, error)) from error
    wanted = one_of(group)
    if unreachable is not None:
        raise NoFileError(
            f"there is no local folder {location}, {wanted} of that model is not in the cache of "
            f"huggingface_hub, and the Hub {_why_unreachable(unreachable, options)}"
        ) from unreachable
    raise NoFileError(f"{location}: expected {wanted}, the model on the Hub has none of these")


PUSH_OPTIONS = ("private", "token", "commit_message", "revision", "create_pr")


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads the files of a model folder to a repository on the Hub, which is made if need be.

    Args:
        private: whether a new repository is; as the account has it unless given.
        token, commit_message, revision, create_pr: as huggingface_hub has them.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: huggingface_hub is not installed, or the Hub refuses it.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise CheckpointError(
            "uploading to the Hugging Face Hub needs huggingface_hub; next: pip install 'igpt[hub]'"
        ) from error
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=Path(folder),
            commit_message=commit_message or "Upload of an ImageGPT model",
            revision=revision,
            create_pr=create_pr,
            allow_patterns=["*.json", "*.safetensors", "*.bin"],
        )
    except fetch_errors() as error:
        raise CheckpointError(_reason(repo_id, repo_id, error)) from error
    return str(commit.commit_url)


def _why_unreachable(error: Exception, options: FetchOptions) -> str:
    from huggingface_hub import constants

    if options.local_files_only:
        return "is not asked with local_files_only"
    if constants.HF_HUB_OFFLINE:
        return "is not asked while HF_HUB_OFFLINE is set"
    response = getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    return "cannot be reached" if status is None else f"answers with status {status}"


def _reason(location: str, repository: str, error: Exception) -> str:
    """Says what went wrong, without the library's text: addresses in it may hold a token."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{location}: access to this model must be asked for: accept its terms at "
            f"https://huggingface.co/{repository}, and set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no local folder {location}, and no such model on the Hugging Face Hub that "
            "can be read without a login or with the HF_TOKEN given"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{location}: the model {repository} on the Hugging Face Hub has no such revision"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{location}: the Hugging Face Hub answers with status {error.response.status_code}"
    detail = getattr(error, "strerror", None) or type(error).__name__
    return f"{location}: cannot be fetched from the Hugging Face Hub ({detail})"
