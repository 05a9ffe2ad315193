"""An ear on disk: a folder with its settings, the trained weights, and fingerprints of the bases it was made for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from earshot.bases import fingerprint, tokenizer_fingerprint
from earshot.config import from_table, to_table
from earshot.errors import CheckpointError, ConfigError
from earshot.model import Ear, EarSettings
from earshot.storage import written_whole
from earshot.version import __version__

FORMAT = 1
"""Version of the folder's layout."""
CONFIG, WEIGHTS, CARD = "config.json", "connector.safetensors", "README.md"


def fingerprints(ear: Ear) -> dict[str, str]:
    """Short hashes of the frozen bases."""
    return {
        "encoder": fingerprint(ear.whisper.model.model.encoder),
        "llm": fingerprint(ear.llm),
        "tokenizer": tokenizer_fingerprint(ear.tokenizer),
    }


def save(ear: Ear, folder: Path | str, *, card: str | None = None) -> None:
    """Writes an ear's folder, whole or not at all.

    Args:
        card: Markdown for the model card, such as the three numbers of an evaluation

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    config = {
        "format": FORMAT,
        "earshot_version": __version__,
        **to_table(ear.settings),
        "fingerprints": fingerprints(ear),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in ear.connector.state_dict().items()}
    with written_whole(Path(folder), is_folder=True) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, temporary / WEIGHTS)
        (temporary / CARD).write_text(model_card(ear, card), encoding="utf-8")


def model_card(ear: Ear, numbers: str | None) -> str:
    """What a person should know of an ear, as Markdown."""
    base, connector = ear.settings.base, ear.settings.connector
    n_trained = sum(weight.numel() for weight in ear.connector.parameters())
    return (
        f"# An ear for {base.llm}\n\n"
        f"It lets `{base.llm}` hear through the encoder of `{base.encoder}`. The LLM is unchanged: only a connector\n"
        f"(form `{connector.form}`, {n_trained / 1e6:.1f} M weights) was trained, by distillation with earshot.\n\n"
        f"```python\nimport earshot\near = earshot.load(\"this folder\")\n```\n\n"
        + (numbers or "It has not been evaluated; `earshot eval` measures it.\n")
    )


def load(
    folder: Path | str, *, encoder: str | None = None, llm: str | None = None, device: str | None = None
) -> Ear:
    """Loads an ear and the bases that it was distilled against.

    Args:
        encoder: another place of the same encoder, such as a local copy
        llm: another place of the same LLM
        device: "cpu" or "cuda"; the first GPU if there is one

    Raises:
        CheckpointError: not an ear, a damaged one, or bases other than those it was distilled against
    """
    folder = Path(folder)
    config = _read_config(folder)
    recorded = config.pop("fingerprints")
    settings = _settings(config, folder)
    base = replace(
        settings.base, encoder=encoder or settings.base.encoder, llm=llm or settings.base.llm
    )
    ear = Ear.new(replace(settings, base=base), device)
    _check_bases(ear, recorded, folder)
    weights = _read_weights(folder)
    try:
        ear.connector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit the connector that {CONFIG} describes: {' '.join(str(error).split())}"
        ) from error
    ear.connector.eval().requires_grad_(False)
    return ear


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder} is not an ear: {CONFIG} cannot be read; expected a folder that `earshot train` wrote"
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or not {"format", "connector", "fingerprints"} <= config.keys():
        raise CheckpointError(f"{path} is not an ear's: expected the keys format, base, connector and fingerprints")
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {config['format']!r}, this earshot reads format {FORMAT}; use the earshot that wrote it"
        )
    return config


def _settings(config: dict[str, Any], folder: Path) -> EarSettings:
    parts = {name: config[name] for name in ("base", "prompt", "connector") if name in config}
    try:
        return from_table(EarSettings, parts)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _check_bases(ear: Ear, recorded: Any, folder: Path) -> None:
    found = fingerprints(ear)
    names = {"encoder": ear.settings.base.encoder, "llm": ear.settings.base.llm, "tokenizer": ear.settings.base.llm}
    for part, name in names.items():
        expected = recorded.get(part) if isinstance(recorded, dict) else None
        if expected != found[part]:
            raise CheckpointError(
                f"{folder} was distilled against another {part}: it expects fingerprint {expected}, but {name!r} has"
                f" {found[part]}; load it with the {part} it was made for, or distil a new ear"
            )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}") from error
