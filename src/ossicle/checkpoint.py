"""An ear on disk: its settings, the trained weights, and fingerprints of the backbones it was trained with."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ossicle import checkpoint_v1
from ossicle.atomic_io import atomic_write
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.embedding_table import open_embedding_table
from ossicle.backbones.fingerprints import (
    fingerprint_backbones,
    fingerprint_decoder_vocabulary,
    fingerprint_model,
    fingerprint_tokenizer,
)
from ossicle.backbones.model_files import resolve_model_path
from ossicle.backbones.pretrained import (
    build_meta_llm,
    load_llm,
    load_tokenizer,
    load_whisper,
    resolve_device,
    resolve_dtype,
)
from ossicle.backbones.silence import Silence
from ossicle.base_paths import from_portable, name_base, to_portable
from ossicle.config import BaseSettings
from ossicle.connectors import build_connector
from ossicle.connectors.vocabulary_overlap import SharedTokens, build_shared_vocabulary
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError, ConfigError, ModelNotFoundError
from ossicle.hub_download import find_ear_folder, is_on_hub
from ossicle.run_checkpoint import has_state, is_run, read_unfinished_run
from ossicle.settings_io import from_table, to_table
from ossicle.text_encoding import read_text_file
from ossicle.transformers_files import CONFIG_KEYS, MODEL_TYPE, SHIM, SHIM_TEXT
from ossicle.version import __version__

FORMAT = 2
"""Version of the folder's layout; `checkpoint_v1` reads the one before it."""
CONFIG, WEIGHTS, CARD = "config.json", "connector.safetensors", "README.md"
SILENCE = "silence.safetensors"
"""What the encoder makes of silence, with the window "sound+silence"; computed anew if it is missing."""
VOCABULARY = "vocabulary.safetensors"
"""Which tokens Whisper and the LLM share, for form autoregressive; found anew if it is missing or does not fit."""
_Stored = TypeVar("_Stored")
_KEYS = {"format", "base", "prompt", "connector", "fingerprints"}
_OPTIONAL = {"ossicle_version", "transformers_version", "dtype", *CONFIG_KEYS}
RUN_EAR = "ear"
"""Folder of the ear within the folder of a run."""


def save(
    ear: Ear, folder: Path | str, *, card: str | None = None, fingerprints: dict[str, str] | None = None
) -> None:
    """Writes the folder of an ear, completely or not at all.

    Args:
        card: Markdown for the model card, such as the three numbers of an evaluation
        fingerprints: those of the backbones, if the ear knows none and they have changed since they were loaded:
            quantized, or sharded

    Raises:
        CheckpointError: the disk is full or the folder cannot be written to
    """
    config = {
        "format": FORMAT,
        "ossicle_version": __version__,
        **CONFIG_KEYS,
        **to_table(replace(ear.settings, base=_make_portable(_pin_revisions(ear), Path(folder)))),
        "fingerprints": fingerprints
        or ear.fingerprints
        or fingerprint_backbones(ear.whisper, ear.llm, ear.tokenizer),
    }
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in ear.connector.state_dict().items()
    }
    with atomic_write(_check_replaceable(Path(folder)), is_folder=True) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, temporary / WEIGHTS)
        if ear.silence is not None:
            save_file(ear.silence.to_tensors(), temporary / SILENCE)
        if ear.connector.vocabulary_head is not None and ear.connector.vocabulary_head.ids:
            save_file(dict(ear.connector.vocabulary_head.ids), temporary / VOCABULARY)
        (temporary / CARD).write_text(build_model_card(ear, card), encoding="utf-8")
        (temporary / SHIM).write_text(SHIM_TEXT, encoding="utf-8")


def _pin_revisions(ear: Ear) -> BaseSettings:
    """Returns the backbones' settings, with those from the hub pinned to the commit that was loaded."""

    def commit(config: Any, revision: str | None) -> str | None:
        return getattr(config, "_commit_hash", None) or revision

    base = ear.settings.base
    return replace(
        base,
        encoder_revision=commit(ear.whisper.config, base.encoder_revision),
        llm_revision=commit(ear.llm.config, base.llm_revision),
    )


def _make_portable(base: BaseSettings, folder: Path) -> BaseSettings:
    """Returns the backbones' settings as the ear's own folder keeps them."""
    encoder, encoder_revision = to_portable(base.encoder, base.encoder_revision, folder)
    llm, llm_revision = to_portable(base.llm, base.llm_revision, folder)
    return replace(
        base, encoder=encoder, encoder_revision=encoder_revision, llm=llm, llm_revision=llm_revision
    )


def _check_replaceable(folder: Path) -> Path:
    """Returns the folder, which is going to be replaced, if it is empty or holds an ear."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; an ear is a folder: give another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds files that are not an ear's; give a new folder or an empty one"
        )
    return folder


def build_model_card(ear: Ear, numbers: str | None) -> str:
    """Renders the model card of an ear as Markdown."""
    base, connector = ear.settings.base, ear.settings.connector
    n_trained = sum(weight.numel() for weight in ear.connector.parameters())
    return (
        f"# An ear for {name_base(base.llm)}\n\n"
        f"It lets `{name_base(base.llm)}` hear through the encoder of `{name_base(base.encoder)}`. The LLM is"
        " unchanged:\n"
        f"ossicle added a connector (form `{connector.form}`, {n_trained / 1e6:.1f} M weights) and nothing else.\n\n"
        f'```python\nimport ossicle\n\near = ossicle.load("this folder")\n```\n\n'
        + (numbers or "It has not been evaluated; `ossicle eval` measures it.\n")
    )


def load(
    folder: Path | str,
    *,
    encoder: str | None = None,
    llm: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    with_llm: bool = True,
    llm_bits: int = 16,
    revision: str | None = None,
    token: str | None = None,
    notify: Callable[[str], None] | None = None,
) -> Ear:
    """Loads an ear and the backbones that it was trained with; of a run that is not finished, its newest state.

    Args:
        folder: folder of an ear or of a run, hub id of an ear, or "pocket/ear" for the embedded one
        encoder: another location of the same encoder, such as a local copy
        llm: another location of the same LLM
        device: "cpu" or "cuda"; by default the first GPU if there is one
        dtype: "float32", "bfloat16" or "float16", in which it computes; by default bfloat16 on a GPU and float32 on a
            CPU. The backbones' weights are not compared with the fingerprints in float16, which rounds otherwise
        with_llm: whether to load the LLM's weights; without them the ear hears and another program answers, whose
            weights are not compared with the fingerprint
        llm_bits: 8 or 4 quantizes the weights of the LLM's layers, which are then not compared either
        revision: branch, tag or commit of an ear on the hub
        token: for a private ear, in place of that of the hub's login
        notify: is told in a sentence if the ear is that of an unfinished run

    Raises:
        CheckpointError: not an ear, a damaged one, or backbones other than those it was trained with
    """
    folder = find_folder(str(folder), revision, token)
    config, weights = _read_ear(folder, notify)
    settings = _locate(parse_settings(config, folder), folder, encoder, llm)
    on_device = resolve_device(device)
    in_dtype, base = resolve_dtype(dtype, on_device), settings.base
    with _name_option(folder, "encoder", is_given=encoder is not None):
        whisper = load_whisper(base.encoder, base.encoder_revision, on_device, dtype=in_dtype)
    with _name_option(folder, "llm", is_given=llm is not None):
        if with_llm:
            model, tokenizer = load_llm(
                base.llm,
                base.llm_revision,
                on_device,
                bits=llm_bits,
                needs_gradient=False,
                dtype=in_dtype,
                is_known=llm_bits == 16 and in_dtype != torch.float16,  # its fingerprint is compared below
            )
        else:
            model = build_meta_llm(base.llm, base.llm_revision)
            if settings.connector.uses_shared_vocabulary:
                _load_embeddings(model, base, on_device)
            tokenizer = load_tokenizer(base.llm, base.llm_revision)
    if with_llm and llm_bits == 16:
        found = fingerprint_backbones(whisper, model, tokenizer)
    else:  # reading the state of 4-bit weights breaks them on a CPU
        found = {
            "encoder": fingerprint_model(whisper.model.model.encoder),
            "decoder_vocabulary": fingerprint_decoder_vocabulary(whisper),
            "tokenizer": fingerprint_tokenizer(tokenizer),
        }
    if in_dtype == torch.float16:
        found = {"tokenizer": found["tokenizer"]}
    if not settings.connector.uses_shared_vocabulary:
        found.pop("decoder_vocabulary", None)  # the connector does not use it
    _check_fingerprints(found, config["fingerprints"], base, folder)
    silence, tokens = _read_silence(folder), _read_shared_tokens(folder)
    try:
        shared = build_shared_vocabulary(settings.connector, whisper, model, tokenizer, tokens)
        with torch.device("meta"):  # its weights are read, not drawn
            connector = build_connector(
                whisper.config, settings.connector, get_input_embeddings(model).embedding_dim, shared
            )
        connector.load_state_dict(weights, assign=True)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit the connector that {CONFIG} describes:"
            f" {' '.join(str(error).split())}"
        ) from error
    if not with_llm:
        get_input_embeddings(model).to("meta")  # the connector has its own copy of what it needs
        if on_device.type == "cuda":
            torch.cuda.empty_cache()  # for the engine that answers on the same GPU
    connector.eval().requires_grad_(False)
    return Ear(
        whisper, model, tokenizer, connector.to(on_device), settings, silence, dict(config["fingerprints"])
    )


def _load_embeddings(meta_llm: PreTrainedModel, base: BaseSettings, device: torch.device) -> None:
    """Loads the one table of an LLM that hearing may need: the embeddings of the tokens that a connector shares."""
    stored = open_embedding_table(meta_llm, base.llm, base.llm_revision)
    table = get_input_embeddings(meta_llm)
    table.weight = nn.Parameter(stored.read_all().to(device, meta_llm.dtype), requires_grad=False)
    for name, _ in list(table.named_buffers()):  # transformers' own copy of the scale
        table.register_buffer(name, torch.tensor(table.scalar_embed_scale, device=device), persistent=False)


def load_connector(ear: Ear, folder: str, fingerprints: dict[str, str]) -> None:
    """Loads the trained connector of another ear on the same backbones into this one.

    Args:
        folder: folder of an ear or of a run, or "pocket/ear" for the embedded one
        fingerprints: those of the backbones of `ear`

    Raises:
        CheckpointError: not an ear, a damaged one, one on other backbones or with another connector
    """
    path = find_folder(folder)
    config, weights = _read_ear(path)
    settings = parse_settings(config, path)
    _check_fingerprints(fingerprints, config["fingerprints"], ear.settings.base, path)
    try:
        ear.connector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} has another connector ({settings.connector}) than the ear that is to start from it"
            f" ({ear.settings.connector}): {' '.join(str(error).split())[:300]}"
        ) from error


def read_fingerprints(folder: str) -> dict[str, str]:
    """Reads the fingerprints of the backbones that an ear was trained with.

    Args:
        folder: folder of an ear or of a run, or "pocket/ear" for the embedded one

    Raises:
        CheckpointError: not an ear, or a damaged one
    """
    config, _ = _read_ear(find_folder(folder))
    return config["fingerprints"]


def find_folder(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Returns the folder of an ear, downloaded if need be; for the arguments see `load`.

    Raises:
        CheckpointError: the hub has no such ear, or cannot be reached
    """
    return _resolve_ear_folder(find_ear_folder(name, WEIGHTS, revision, token))


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the weights of an ear in a local folder, those of format 1 under today's names.

    Raises:
        CheckpointError: not an ear, or a damaged one
    """
    return _read_ear(folder)[1]


def read_config(name: str, revision: str | None = None, token: str | None = None) -> dict[str, Any]:
    """Reads the config.json of an ear, one of format 1 as today's has it; for the arguments see `load`.

    Raises:
        CheckpointError: not an ear, or a damaged one
    """
    return _read_ear(find_folder(name, revision, token))[0]


def read_settings(name: str, revision: str | None = None, token: str | None = None) -> EarSettings:
    """Reads the settings of an ear, with the backbones where they lie; for the arguments see `load`.

    Raises:
        CheckpointError: not an ear, a damaged one, or one whose backbones lay beside it and are not there
    """
    folder = find_folder(name, revision, token)
    return _locate(parse_settings(read_config(name, revision, token), folder), folder)


def is_ear(name: str) -> bool:
    """Whether a name is the folder of an ear, or of a run that has one, or the hub id of an ear."""
    folder = _resolve_ear_folder(Path(resolve_model_path(name)))
    return (folder / WEIGHTS).is_file() or has_state(folder) or is_on_hub(name, WEIGHTS)


def _resolve_ear_folder(folder: Path) -> Path:
    """Returns the ear's own folder: a run keeps its ear in `ear/`, and its folder can be named instead."""
    inner = folder / RUN_EAR
    return inner if (inner / CONFIG).is_file() and not (folder / CONFIG).exists() else folder


def _read_ear(
    folder: Path, notify: Callable[[str], None] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads the config and the weights of an ear, those of format 1 under today's names."""
    if is_run(folder) and not (folder / CONFIG).exists():
        run = read_unfinished_run(folder)
        if notify is not None:
            notify(run.describe(folder))
        return {**run.settings, "fingerprints": run.fingerprints}, run.weights
    config = _read_json(folder)
    if isinstance(config, dict) and config.get("format") == checkpoint_v1.FORMAT:
        config = checkpoint_v1.upgrade_config(config, FORMAT)
        return _check_config(config, folder), checkpoint_v1.upgrade_weights(_read_weights(folder))
    return _check_config(config, folder), _read_weights(folder)


def _read_json(folder: Path) -> Any:
    path = folder / CONFIG
    try:
        return json.loads(read_text_file(path))
    except OSError as error:
        if not folder.exists():
            raise CheckpointError(
                f"No such folder: {folder}; expected that of an ear or of a run on this computer, or pocket/ear"
            ) from error
        reason = f"its {CONFIG} cannot be read ({error.strerror})"
        if folder.is_file():
            reason = "a file"
        elif not path.exists():
            reason = f"it has no {CONFIG}"
        raise CheckpointError(
            f"{folder} is not an ear: {reason}; expected a folder that `ossicle train` or `ossicle new` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the ear again") from error


def _check_config(config: Any, folder: Path) -> dict[str, Any]:
    if isinstance(config, dict) and config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} is not an ear but a model ({config['model_type']}): build an ear for it with `ossicle new`"
        )
    if not isinstance(config, dict) or config.keys() - _OPTIONAL != _KEYS:
        found = ", ".join(sorted(config)) if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{folder / CONFIG} is not an ear's: expected the keys {', '.join(sorted(_KEYS))}, found {found}"
        )
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {config['format']!r}, this version of ossicle reads formats {checkpoint_v1.FORMAT} and"
            f" {FORMAT}: use the version that wrote it ({config.get('ossicle_version', 'unknown')})"
        )
    return config


def parse_settings(config: dict[str, Any], folder: Path) -> EarSettings:
    """Returns the settings in the config.json of an ear.

    Raises:
        CheckpointError: settings that are none
    """
    parts = {name: config[name] for name in ("base", "prompt", "connector")}
    try:
        return from_table(EarSettings, parts)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _locate(
    settings: EarSettings, folder: Path, encoder: str | None = None, llm: str | None = None
) -> EarSettings:
    """Returns the settings with the backbones where they lie; at given locations, their revisions are not known."""
    base = settings.base
    base = replace(base, encoder=from_portable(base.encoder, folder), llm=from_portable(base.llm, folder))
    if encoder:
        base = replace(base, encoder=encoder, encoder_revision=None)
    if llm:
        base = replace(base, llm=llm, llm_revision=None)
    return replace(settings, base=base)


@contextmanager
def _name_option(folder: Path, option: str, *, is_given: bool) -> Generator[None]:
    """Says how a base is named that is not where the ear in `folder` expects it."""
    try:
        yield
    except ModelNotFoundError as error:
        if is_given:
            raise
        raise ModelNotFoundError(
            f"{error}; {folder} needs it: if it lies elsewhere, name it with --{option} (in Python: {option}=...)"
        ) from error


def _check_fingerprints(found: dict[str, str], recorded: Any, base: BaseSettings, folder: Path) -> None:
    """Raises CheckpointError for backbones whose fingerprints differ from those recorded."""
    names = {
        "encoder": base.encoder,
        "decoder_vocabulary": base.encoder,
        "llm": base.llm,
        "tokenizer": base.llm,
    }
    for part, fingerprint in found.items():
        expected = recorded.get(part) if isinstance(recorded, dict) else None
        if expected != fingerprint:
            label = part.replace("_", " ")
            raise CheckpointError(
                f"{folder} was trained with another {label}: it expects fingerprint {expected}, but {names[part]!r} has"
                f" {fingerprint}; load it with the {label} that it was trained with, or train a new ear"
            )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        # In the mapping of a file, weights lie at any multiple of 8 bytes, on which the last digits of products depend.
        return {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is missing or damaged ({error}); expected safetensors: copy the ear again"
        ) from error


def _read_silence(folder: Path) -> Silence | None:
    return _read_stored(folder / SILENCE, Silence)


def _read_shared_tokens(folder: Path) -> SharedTokens | None:
    return _read_stored(folder / VOCABULARY, SharedTokens)


def _read_stored(path: Path, kind: Callable[..., _Stored]) -> _Stored | None:
    """Reads what can be computed anew, and is not."""
    if not path.exists():
        return None
    try:
        stored = load_file(path)
        return kind(**{name: ids.long() if ids.dtype == torch.int32 else ids for name, ids in stored.items()})
    except (OSError, SafetensorError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())}); copy the ear again, or delete that file: it is then"
            " computed anew"
        ) from error
