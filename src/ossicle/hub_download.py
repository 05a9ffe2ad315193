"""Ears on the hub, in the local cache once they are asked for; it knows their file names only."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ossicle.backbones.model_files import (
    format_one_line,
    is_hub_reachable,
    is_meant_as_folder,
    resolve_model_path,
)
from ossicle.errors import CheckpointError

_CONFIG = "config.json"
_OTHER_WEIGHTS = ("silence.safetensors", "vocabulary.safetensors")
"""Files that an ear may have besides its weights; of another model nothing large is downloaded."""
_ADVICE = {
    401: "it does not accept this token: log in again with `hf auth login`",
    403: "this token has no right to read it: log in with `hf auth login` and a token that has",
    429: "it was asked too often: wait some minutes, and log in with `hf auth login` if you are not",
}
"""What to do about the hub's answers, by their status."""
_SERVER_FAULT = 500
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Forms of weights that can run code when they are loaded."""


def find_ear_folder(name: str, weights: str, revision: str | None = None, token: str | None = None) -> Path:
    """Returns the folder of an ear: a local one as it is named, else the downloaded one of that hub id.

    Args:
        weights: name of the file that an ear's weights are in
        revision: branch, tag or commit, for the hub

    Raises:
        CheckpointError: the hub has no such ear, cannot be reached, or does not give it
    """
    if not _may_be_hub_id(name):
        return Path(resolve_model_path(name))
    folder = download_files(name, (_CONFIG, weights, *_OTHER_WEIGHTS), revision, token)
    if not (folder / weights).is_file() and is_hub_reachable():
        raise CheckpointError(_describe_other(name, weights, revision, token))
    return folder


def _may_be_hub_id(name: str) -> bool:
    """Whether a name is that of nothing local."""
    is_local = Path(resolve_model_path(name)).exists() or name.startswith(("pocket/", "~"))
    return "/" in name and not is_local and not is_meant_as_folder(name)


def is_on_hub(name: str, file: str) -> bool:
    """Whether a model on the hub has a file; where the hub cannot be reached, whether its copy here has."""
    if not _may_be_hub_id(name):
        return False
    if isinstance(try_to_load_from_cache(name, file), str):
        return True
    try:
        return is_hub_reachable() and HfApi().file_exists(name, file)
    except (HfHubHTTPError, OSError, ValueError):  # loading it will say what is wrong
        return False


def download_files(
    name: str, patterns: Sequence[str], revision: str | None = None, token: str | None = None
) -> Path:
    """Returns the folder of a model on the hub with some of its files; a local folder is returned unchanged.

    Raises:
        CheckpointError: the hub has no such model, cannot be reached, or does not give it
    """
    if Path(name).exists() or is_meant_as_folder(name):
        return Path(name)
    is_reachable = is_hub_reachable()
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            allow_patterns=list(patterns),
            local_files_only=not is_reachable,
        )
    except LocalEntryNotFoundError as error:
        if (refusal := describe_refusal(error)) is not None:
            raise CheckpointError(f"{name} cannot be downloaded: {refusal}") from error
        raise CheckpointError(
            f"No such folder: {name}; {constants.ENDPOINT} cannot be reached to look for a model of that name: check the"
            " path, or connect"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated on {constants.ENDPOINT}: accept its terms there, and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision!r} on {constants.ENDPOINT}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"No such folder: {name}, and no public model of that name on {constants.ENDPOINT}: check the name, or log"
            " in with `hf auth login` if it is private"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = describe_refusal(error) or format_one_line(error)
        raise CheckpointError(f"{name} cannot be downloaded: {reason}") from error
    return Path(folder)


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that led to it: libraries hide the hub's own behind others."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def describe_refusal(error: BaseException) -> str | None:
    """Returns what the hub answered in place of a file, and what to do; None if nothing was refused."""
    for cause in iterate_causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and not isinstance(cause, RepositoryNotFoundError):
            advice = _ADVICE.get(status) or (
                "the fault is there: try again later" if status >= _SERVER_FAULT else None
            )
            if advice is not None:
                return f"{constants.ENDPOINT} answers {status}: {advice}"
    return None


def find_pickle(name: str, folder: Path) -> str | None:
    """Returns the name of weights that can run code, of a model that has no others: in its folder, or on the hub.

    Args:
        folder: where some of its files are, which need not be all
    """
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not Path(name).exists() and is_hub_reachable():
        files += HfApi().list_repo_files(name)
    return next((file for file in files if file.endswith(_PICKLES)), None)


def _describe_other(name: str, weights: str, revision: str | None, token: str | None) -> str:
    """Returns what a repository has in place of an ear's weights."""
    files = HfApi(token=token).list_repo_files(name, revision=revision)
    if pickles := [file for file in files if file.endswith(_PICKLES)]:
        return (
            f"{name} has its weights as a pickle ({pickles[0]}), which can run code and is not loaded: ask for"
            f" {weights}"
        )
    found = ", ".join(sorted(Path(file).name for file in files)[:8]) or "nothing"
    return f"{name} is not an ear: it has no {weights}, but {found}"
