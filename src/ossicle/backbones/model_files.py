"""Where a pretrained model lies, in a local folder or on the hub, and how its files are read.

No code from a model's folder is ever run, and every failure becomes one `CheckpointError` with one line of text.
"""

import contextlib
import json
import re
import threading
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, get_session
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from ossicle.backbones import ctranslate2_whisper
from ossicle.backbones.gguf_file import GgufFile, open_gguf
from ossicle.backbones.rust_panic import is_rust_panic
from ossicle.backbones.unmarked_folder import list_marked_files, open_unmarked
from ossicle.errors import CheckpointError, ModelNotFoundError
from ossicle.text_encoding import read_text_file

ENCODER, LLM = "encoder", "LLM"
"""The roles of models, as error messages name them."""
POCKET_DIR = Path(__file__).parents[1] / "pocket"
"""The folder of the embedded models and speech."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MAX_COUNT = 10_000
"""No model has as many layers or experts."""
_HUB_TIMEOUT_S = 10.0
_MAX_SHOWN = 300
"""Characters of a name that an error shows."""


def resolve_model_path(name: str) -> str:
    """Returns the folder of an embedded model for "pocket/..."; a hub id or local folder is returned unchanged."""
    if name.startswith("pocket/"):
        return str(POCKET_DIR / name.removeprefix("pocket/"))
    return str(Path(name).expanduser()) if name.startswith("~") else name


@contextlib.contextmanager
def silence_transformers(*, show_progress: bool = False) -> Generator[None]:
    """Silences transformers' warnings inside the block, and its progress bars unless `show_progress` is set.

    The settings of the process are restored afterwards, however many threads use this.
    """
    with _Silence.lock:
        if _Silence.depth == 0:
            _Silence.previous = (
                logging.get_verbosity(),
                logging.is_progress_bar_enabled(),
                are_progress_bars_disabled(),
            )
            logging.set_verbosity_error()
        if not show_progress and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
        _Silence.depth += 1
    try:
        yield
    finally:
        with _Silence.lock:
            _Silence.depth -= 1
            if _Silence.depth == 0:
                verbosity, had_bars, hub_had_none = _Silence.previous
                logging.set_verbosity(verbosity)
                if had_bars and not logging.is_progress_bar_enabled():
                    logging.enable_progress_bar()
                    if hub_had_none:
                        disable_progress_bars()


class _Silence:
    """The number of active `silence_transformers` blocks, and the settings from before the first."""

    lock = threading.Lock()
    depth = 0
    previous = (logging.WARNING, True, False)


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found, in a local folder or on the hub."""

    role: str
    """Its name in error messages: `ENCODER` or `LLM`."""
    name: str
    """Its name as the user gave it."""
    path: str
    """Its local folder or file, or its hub id."""
    options: dict[str, Any]
    """For `from_pretrained`: revision and local_files_only of a hub id."""
    gguf: GgufFile | None = None
    """The checked file, if it is a GGUF."""

    @property
    def is_ctranslate2(self) -> bool:
        """Whether it is a folder in CTranslate2's form, which transformers does not read."""
        return ctranslate2_whisper.is_ctranslate2_folder(Path(self.path))

    @contextlib.contextmanager
    def _open(self) -> Generator[tuple[str, dict[str, Any]]]:
        """Yields what `from_pretrained` takes."""
        folder = Path(self.path)
        if self.gguf is not None:
            with self.gguf.open_with_transformers() as source:
                yield source
        elif folder.is_dir() and (marked := list_marked_files(folder)):
            with open_unmarked(folder, marked) as copy:
                yield str(copy), self.options
        else:
            yield self.path, self.options

    def load(self, auto_class: Any, part: str = "", **options: Any) -> Any:
        """Returns what `auto_class.from_pretrained` loads; code from the folder is never run, nor a prompt shown.

        Args:
            part: what of the model it is, for errors

        Raises:
            CheckpointError: missing, damaged, of another kind, or in need of its own code
        """
        try:
            with (
                silence_transformers(show_progress=not Path(self.path).exists()),
                self._open() as (path, file_options),
            ):
                return auto_class.from_pretrained(path, trust_remote_code=False, **file_options, **options)
        except (SafetensorError, EOFError) as error:
            raise CheckpointError(
                f"{self.role} {self.name!r} is damaged: {format_one_line(error)}; copy or download it again"
            ) from error
        except BaseException as error:
            # What transformers and its Rust libraries raise depends on which file is missing, damaged or of another
            # kind: any exception, and Rust's own panics, which are not an Exception.
            if not (isinstance(error, Exception) or is_rust_panic(error)):
                raise
            if "trust_remote_code" in str(error):
                raise CheckpointError(
                    f"{self.role} {self.name!r} needs code from its own folder, which ossicle does not run: expected a"
                    " model that transformers supports"
                ) from error
            what = f"{self.role} {self.name!r}{part and ': its '}{part}"
            raise CheckpointError(f"{what} cannot be loaded: {format_one_line(error)}") from error

    def find_file(self, name: str) -> Path | None:
        """Returns the local path of one of the model's files, downloaded if need be; None if there is none."""
        if self.gguf is not None:
            return None
        if Path(self.path).is_dir():
            path = Path(self.path) / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.path, name, **self.options))
        except (OSError, ValueError, HfHubHTTPError):  # there is none, or it is not in the cache
            return None


def find_model(role: str, name: str, revision: str | None) -> tuple[ModelFiles, PreTrainedConfig]:
    """Returns where a model lies, and its config.

    Raises:
        ModelNotFoundError: there is no such model, or the hub cannot be reached
        CheckpointError: it cannot be read
    """
    path = resolve_model_path(name)
    _check_is_path(role, path)
    options: dict[str, Any] = {}
    gguf = None
    if name and Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise CheckpointError(
                f"{role} {name!r} is a folder without a config.json, expected a Hugging Face model"
            )
    elif name and Path(path).is_file():
        if role != LLM:
            raise CheckpointError(f"{role} {name!r} is a file, expected a local folder or a hub id")
        gguf = open_gguf(name, Path(path))
    elif is_meant_as_folder(name):
        raise ModelNotFoundError(
            f"{role} {name!r}: there is no such {'file' if name.lower().endswith('.gguf') else 'folder'}, expected a"
            f" local folder{', a GGUF file' if role == LLM else ''} or a hub id"
        )
    else:
        options = {"revision": revision or "main", "local_files_only": not is_hub_reachable()}
    files = ModelFiles(role, name, path, options, gguf)
    if files.is_ctranslate2:
        return files, ctranslate2_whisper.read_config(Path(path))
    try:
        _check_numbers(files)
        config = files.load(AutoConfig)
    except CheckpointError as error:
        if options.get("local_files_only"):
            raise ModelNotFoundError(
                f"{role} {name!r}: there is no such folder, and no model of that name in the local cache;"
                f" {constants.ENDPOINT} cannot be reached: check the path, or connect to download a model of that name"
            ) from error
        if options and isinstance(error.__cause__, OSError) and "valid model identifier" in str(error):
            raise ModelNotFoundError(
                f"{role} {name!r}: there is no such folder, and no public model of that name on {constants.ENDPOINT}:"
                " check the name, or log in to the hub if the model is private"
            ) from error
        raise
    return files, config


def _check_is_path(role: str, path: str) -> None:
    """Refuses a name that no file can have, or whose folder may not be read.

    Raises:
        ModelNotFoundError: with the reason
    """
    try:
        Path(path).exists()
    except OSError as error:
        raise ModelNotFoundError(
            f"{role} {path[:_MAX_SHOWN]!r} cannot be looked for ({error.strerror}), expected a local folder or a hub id"
        ) from error


def _check_numbers(files: ModelFiles) -> None:
    """Refuses a config whose numbers fail only later: more layers or experts than any model has, which would be built
    without end, and rates of dropout that are none.
    """
    path = files.find_file("config.json")
    try:
        config = json.loads(read_text_file(path)) if path is not None else {}
    except (OSError, ValueError, RecursionError):  # loading it says what is wrong
        return
    for part in (config, *config.values()) if isinstance(config, dict) else ():
        for name, value in part.items() if isinstance(part, dict) else ():
            expected = _find_broken_bound(name, value)
            if expected is not None:
                raise CheckpointError(
                    f"{files.role} {files.name!r} is damaged: its config.json has {str(value)[:20]} as {name},"
                    f" expected {expected}; copy or download it again"
                )


def _find_broken_bound(name: str, value: Any) -> str | None:
    """Returns what was expected of a number in a config that has another; None if it is possible."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if "drop" in name:
        return None if 0 <= value <= 1 else "a rate from 0 to 1"
    is_count = ("layer" in name or "expert" in name) and "size" not in name
    return f"at most {_MAX_COUNT}" if is_count and value > _MAX_COUNT else None


def is_meant_as_folder(name: str) -> bool:
    """Whether a name without a folder was meant as one: it is no hub id, or the folder above it exists."""
    is_hub_id = _HUB_ID.fullmatch(name) and not name.startswith((".", "pocket/"))
    if name.lower().endswith(".gguf"):
        return True
    return not is_hub_id or ("/" in name and Path(name).parent.is_dir())


def is_hub_reachable() -> bool:
    """Whether the hub answers: asked once here, where transformers would try six times for each file."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # the class depends on the installed HTTP library
        return False
    return True


def format_one_line(error: BaseException) -> str:
    """Returns an error's first paragraph on one line of at most 300 characters."""
    text = " ".join(str(error).strip().split("\n\n", 1)[0].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
