"""An ear on disk: its settings, the trained weights, and fingerprints of the bases it was made for."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ossicle.atomic_io import written_whole
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import open_embedding_table
from ossicle.backbones.model_files import resolve_model_path
from ossicle.backbones.pretrained import (
    Whisper,
    build_meta_llm,
    load_llm,
    load_tokenizer,
    load_whisper,
    resolve_device,
)
from ossicle.config import BaseSettings
from ossicle.connectors.base import new_connector
from ossicle.connectors.vocabulary_overlap import shared_tokens
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError, ConfigError
from ossicle.settings_io import from_table, to_table
from ossicle.version import __version__

FORMAT = 1
"""Version of the folder's layout."""
CONFIG, WEIGHTS, CARD = "config.json", "connector.safetensors", "README.md"
_KEYS = {"format", "base", "prompt", "connector", "fingerprints"}
_OPTIONAL = {"ossicle_version"}
_SAMPLED_VALUES = 4_096
RUN_EAR = "ear"
"""Where the folder of a run has its ear."""


def fingerprints(whisper: Whisper, llm: nn.Module, tokenizer: Any) -> dict[str, str]:
    """Short hashes of the frozen bases: of the encoder alone, the words of its decoder, the LLM, and its tokenizer."""
    return {
        "encoder": fingerprint(whisper.model.model.encoder),
        "recogniser": recogniser_fingerprint(whisper),
        "llm": fingerprint(llm),
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights: every tensor's name and shape, and values spread evenly over each.

    Values are sampled so that a model of many gigabytes takes a second; rounding to another float type
    changes it only where that type is coarser than bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLED_VALUES)
        sample = flat[::step].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def recogniser_fingerprint(whisper: Whisper) -> str:
    """A short hash of a Whisper's tokens: how its decoder knows them, and how they are spelled."""
    known = fingerprint(whisper.model.model.decoder.embed_tokens)
    return hashlib.sha256(f"{known} {tokenizer_fingerprint(whisper.tokenizer)}".encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A short hash of a tokenizer's vocabulary and chat template."""
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:16]


def save(
    ear: Ear, folder: Path | str, *, card: str | None = None, bases: dict[str, str] | None = None
) -> None:
    """Writes an ear's folder, whole or not at all.

    Args:
        card: Markdown for the model card, such as the three numbers of an evaluation
        bases: fingerprints of the bases, where these are no more as they were loaded: rounded, or spread over ranks

    Raises:
        CheckpointError: the disk is full or the place cannot be written to
    """
    config = {
        "format": FORMAT,
        "ossicle_version": __version__,
        **to_table(replace(ear.settings, base=_pinned(ear))),
        "fingerprints": bases or fingerprints(ear.whisper, ear.llm, ear.tokenizer),
    }
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in ear.connector.state_dict().items()
    }
    with written_whole(_writable(Path(folder)), is_folder=True) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, temporary / WEIGHTS)
        (temporary / CARD).write_text(model_card(ear, card), encoding="utf-8")


def _pinned(ear: Ear) -> BaseSettings:
    """The bases, those from the hub by the commit that they were."""

    def commit(config: Any, given: str | None) -> str | None:
        return getattr(config, "_commit_hash", None) or given

    base = ear.settings.base
    return replace(
        base,
        encoder_revision=commit(ear.whisper.config, base.encoder_revision),
        llm_revision=commit(ear.llm.config, base.llm_revision),
    )


def _writable(folder: Path) -> Path:
    """The folder, if it holds nothing but an ear: it is going to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; an ear is a folder: give another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds other things than an ear; give a new folder or an empty one")
    return folder


def model_card(ear: Ear, numbers: str | None) -> str:
    """What a person should know of an ear, as Markdown."""
    base, connector = ear.settings.base, ear.settings.connector
    n_trained = sum(weight.numel() for weight in ear.connector.parameters())
    return (
        f"# An ear for {base.llm}\n\n"
        f"It lets `{base.llm}` hear through the encoder of `{base.encoder}`. The LLM is unchanged:\n"
        f"only a connector (form `{connector.form}`, {n_trained / 1e6:.1f} M weights) was added, by ossicle.\n\n"
        f'```python\nimport ossicle\n\near = ossicle.load("this folder")\n```\n\n'
        + (numbers or "It has not been evaluated; `ossicle eval` measures it.\n")
    )


def load(
    folder: Path | str,
    *,
    encoder: str | None = None,
    llm: str | None = None,
    device: str | None = None,
    with_llm: bool = True,
) -> Ear:
    """Loads an ear and the bases that it was distilled against.

    Args:
        folder: of an ear or of a run, or "pocket/ear" for the embedded one
        encoder: another place of the same encoder, such as a local copy
        llm: another place of the same LLM
        device: "cpu" or "cuda"; the first GPU if there is one
        with_llm: whether the LLM's weights are read; without them the ear hears, and another program answers, whose
            weights nobody compares with the fingerprint

    Raises:
        CheckpointError: not an ear, a damaged one, or bases other than those it was distilled against
    """
    folder = _ear_folder(Path(resolve_model_path(str(folder))))
    config = _read_config(folder)
    settings = _moved(_settings(config, folder), encoder, llm)
    weights = _read_weights(folder)
    place = resolve_device(device)
    base = settings.base
    whisper = load_whisper(base.encoder, base.encoder_revision, place)
    if with_llm:
        model, tokenizer = load_llm(base.llm, base.llm_revision, place)
        found = fingerprints(whisper, model, tokenizer)
    else:
        model = build_meta_llm(base.llm, base.llm_revision)
        if settings.connector.knows_words:
            _read_embeddings(model, base, place)
        tokenizer = load_tokenizer(base.llm, base.llm_revision)
        found = {
            "encoder": fingerprint(whisper.model.model.encoder),
            "recogniser": recogniser_fingerprint(whisper),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
    if not settings.connector.knows_words:
        del found["recogniser"]  # of which it has nothing but what it started from
    _check_bases(found, config["fingerprints"], base, folder)
    try:
        shared = shared_tokens(settings.connector, whisper, model, tokenizer)
        connector = new_connector(
            whisper.config, settings.connector, get_input_embeddings(model).embedding_dim, shared
        )
        connector.load_state_dict(weights)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit the connector that {CONFIG} describes:"
            f" {' '.join(str(error).split())}"
        ) from error
    if not with_llm:
        get_input_embeddings(model).to("meta")  # what is heard in their place is the connector's by now
        if place.type == "cuda":
            torch.cuda.empty_cache()  # for whoever answers on the same GPU
    connector.eval().requires_grad_(False)
    return Ear(whisper, model, tokenizer, connector.to(place), settings)


def _read_embeddings(outline: PreTrainedModel, base: BaseSettings, place: torch.device) -> None:
    """The one table of an LLM that hearing may need: the words that a connector has in common with it."""
    stored = open_embedding_table(outline, base.llm, base.llm_revision)
    table = get_input_embeddings(outline)
    table.weight = nn.Parameter(stored.read_all().to(place, outline.dtype), requires_grad=False)
    for name, _ in list(table.named_buffers()):  # transformers' own copy of the scale
        table.register_buffer(name, torch.tensor(table.scalar_embed_scale, device=place), persistent=False)


def start_from(ear: Ear, folder: str, bases: dict[str, str]) -> None:
    """Gives an ear the trained connector of another one on the same bases.

    Args:
        folder: of an ear or of a run, or "pocket/ear" for the embedded one
        bases: fingerprints of the bases that `ear` stands on

    Raises:
        CheckpointError: not an ear, a damaged one, one of other bases or with a connector of another kind
    """
    path = _ear_folder(Path(resolve_model_path(folder)))
    config = _read_config(path)
    settings = _settings(config, path)
    _check_bases(bases, config["fingerprints"], ear.settings.base, path)
    try:
        ear.connector.load_state_dict(_read_weights(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} has another connector ({settings.connector}) than the one that is to start from it"
            f" ({ear.settings.connector}): {' '.join(str(error).split())[:300]}"
        ) from error


def is_ear(name: str) -> bool:
    """Whether a name is the folder of an ear, or of a run that has one."""
    return (_ear_folder(Path(resolve_model_path(name))) / WEIGHTS).is_file()


def _ear_folder(folder: Path) -> Path:
    """The ear's own folder: a run keeps its ear in `ear/` and can be named in its place."""
    inner = folder / RUN_EAR
    return inner if (inner / CONFIG).is_file() and not (folder / CONFIG).exists() else folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is not an ear: {CONFIG} cannot be read ({error.strerror}); expected a folder that"
            " `ossicle train` or `ossicle new` wrote"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the ear again") from error
    if not isinstance(config, dict) or config.keys() - _OPTIONAL != _KEYS:
        found = ", ".join(sorted(config)) if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{path} is not an ear's: expected the keys {', '.join(sorted(_KEYS))}, found {found}"
        )
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {config['format']!r}, this ossicle reads format {FORMAT}: use the ossicle"
            f" that wrote it ({config.get('ossicle_version', 'unknown')})"
        )
    return config


def _settings(config: dict[str, Any], folder: Path) -> EarSettings:
    parts = {name: config[name] for name in ("base", "prompt", "connector")}
    try:
        return from_table(EarSettings, parts)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _moved(settings: EarSettings, encoder: str | None, llm: str | None) -> EarSettings:
    """The settings with the bases in other places, whose revisions are then not known."""
    base = settings.base
    if encoder:
        base = replace(base, encoder=encoder, encoder_revision=None)
    if llm:
        base = replace(base, llm=llm, llm_revision=None)
    return replace(settings, base=base)


def _check_bases(found: dict[str, str], recorded: Any, base: BaseSettings, folder: Path) -> None:
    """Refuses bases whose fingerprints are other than those recorded."""
    names = {"encoder": base.encoder, "recogniser": base.encoder, "llm": base.llm, "tokenizer": base.llm}
    for part, mark in found.items():
        expected = recorded.get(part) if isinstance(recorded, dict) else None
        if expected != mark:
            raise CheckpointError(
                f"{folder} was made for another {part}: it expects fingerprint {expected}, but"
                f" {names[part]!r} has {mark}; load it with the {part} it was made for, or distil a new ear"
            )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is missing or damaged ({error}); expected safetensors: copy the ear again"
        ) from error
