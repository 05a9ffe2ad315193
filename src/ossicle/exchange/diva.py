"""The published DiVA's weights as an ear of form `diva`, and such an ear as the published model reads it.

Its safetensors hold Whisper's decoder under `connector.`, queries in place of token embeddings, and a projection that is
stored transposed; its config.json names the encoder and the LLM. A variant projects several decoder states together.
Source: DiVA, arXiv 2410.02678, and its published code
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ossicle.atomic_io import atomic_write
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.pretrained import load_llm, load_whisper, resolve_device
from ossicle.base_paths import name_base
from ossicle.config import BaseSettings, ConnectorSettings
from ossicle.connectors.query import QueryConnector
from ossicle.ear import Ear, EarSettings
from ossicle.errors import CheckpointError
from ossicle.hub_download import download_files, find_pickle
from ossicle.text_encoding import read_text_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_QUERIES, _PROJECTION, _BIAS, _DECODER = "query_tokens", "projection.weight", "projection.bias", "connector."
_POSITIONS = f"{_DECODER}embed_positions.weight"
_TOKENS = f"{_DECODER}embed_tokens.weight"
_ENCODER_KEY, _LLM_KEY = "reference_encoder", "reference_decoder"


def import_diva(
    source: str, *, encoder: str | None = None, llm: str | None = None, device: str | None = None
) -> Ear:
    """Builds an ear of form `diva` from the published model's folder or hub id.

    Args:
        encoder: another location of the Whisper that its config names
        llm: another location of the LLM that its config names

    Raises:
        CheckpointError: not of this layout, a pickle, damaged, or weights that do not fit the backbones
    """
    folder = download_files(source, (CONFIG, "*.safetensors"))
    names = _read_config(source, folder)
    weights = _read_weights(source, folder)
    n_queries, d_encoder = weights[_QUERIES].shape
    n_merged = len(weights[_PROJECTION]) // d_encoder
    settings = EarSettings(
        base=BaseSettings(encoder=encoder or names[0], llm=llm or names[1], encoder_window="full"),
        connector=ConnectorSettings(
            form="diva", n_queries=n_queries, n_merged=n_merged if n_merged > 1 else None
        ),
    )
    on_device = resolve_device(device)
    whisper = load_whisper(settings.base.encoder, None, on_device)
    model, tokenizer = load_llm(settings.base.llm, None, on_device)
    connector = QueryConnector(whisper.config, settings.connector, get_input_embeddings(model).embedding_dim)
    _load_connector(connector, weights, source)
    return Ear(whisper, model, tokenizer, connector.float().to(on_device).eval(), settings)


def export_diva(ear: Ear, folder: Path) -> None:
    """Writes an ear of form `diva` as the published model's folder.

    Raises:
        CheckpointError: an ear of another form, or of fewer layers than its Whisper's decoder
    """
    settings, decoder = ear.settings.connector, ear.whisper.model.model.decoder
    connector = ear.connector
    if settings.form != "diva" or not isinstance(connector, QueryConnector):
        raise CheckpointError(f"this ear has form {settings.form}, expected form diva, the published one")
    if len(connector.layers) != len(decoder.layers):
        raise CheckpointError(
            f"this ear's connector has {len(connector.layers)} layers, but the published model takes all"
            f" {len(decoder.layers)} of its Whisper's decoder"
        )
    state = connector.state_dict()
    positions = decoder.embed_positions.weight.detach().float().clone()
    positions[: len(connector.positions)] = state["positions"]
    weights = {
        _QUERIES: state["queries"],
        _PROJECTION: state["projection.weight"].T,
        _BIAS: state["projection.bias"],
        _POSITIONS: positions,
        _TOKENS: decoder.embed_tokens.weight.detach().float(),
        **{
            _DECODER + name: tensor
            for name, tensor in state.items()
            if name.startswith(("layers.", "layer_norm."))
        },
    }
    base = ear.settings.base
    config = {_ENCODER_KEY: name_base(base.encoder), _LLM_KEY: name_base(base.llm)}
    with atomic_write(folder, is_folder=True) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _read_config(source: str, folder: Path) -> tuple[str, str]:
    """Returns the names of the encoder and of the LLM."""
    try:
        config = json.loads(read_text_file(folder / CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise CheckpointError(
            f"{source}: {CONFIG} cannot be read ({reason}); expected that of a published DiVA"
        ) from error
    names = [config.get(key) if isinstance(config, dict) else None for key in (_ENCODER_KEY, _LLM_KEY)]
    if not all(isinstance(name, str) and name for name in names):
        found = ", ".join(sorted(config)) if isinstance(config, dict) else type(config).__name__
        raise CheckpointError(
            f"{source}: {CONFIG} is not a DiVA's: expected the keys {_ENCODER_KEY} and {_LLM_KEY}, found {found}"
        )
    return str(names[0]), str(names[1])


def _read_weights(source: str, folder: Path) -> dict[str, Tensor]:
    """Reads the connector's weights, and checks their shapes against each other."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = find_pickle(source, folder)
        has = (
            f"its weights as a pickle ({pickled}), which can run code and is not loaded"
            if pickled
            else "no weights"
        )
        raise CheckpointError(f"{source} has {has}: expected weights in safetensors")
    wanted = (_QUERIES, _PROJECTION, _BIAS)
    weights: dict[str, Tensor] = {}
    names: list[str] = []
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                keys = list(file.keys())
                names += keys
                chosen = [name for name in keys if name in wanted or name.startswith(_DECODER)]
                weights |= {name: file.get_tensor(name) for name in chosen}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): copy or download it again") from error
    if missing := [name for name in (*wanted, _POSITIONS) if name not in weights]:
        raise CheckpointError(
            f"{source} is not a DiVA: it lacks {missing[0]}, and has {', '.join(sorted(names)[:5]) or 'no tensors'}"
        )
    shapes = [tuple(weights[name].shape) for name in wanted]
    (queries, projection, bias) = shapes
    fits = len(queries) == len(projection) == 2 and len(bias) == 1 and min(*queries, *projection) > 0
    if not fits or projection[0] % queries[1] or projection[1:] != bias:
        raise CheckpointError(
            f"{source} has {_QUERIES} {list(queries)}, {_PROJECTION} {list(projection)} and {_BIAS} {list(bias)}:"
            " expected [Q, E], [n E, D] (stored transposed) and [D]"
        )
    return weights


def _load_connector(connector: QueryConnector, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads the published weights under our names."""
    state = {
        "queries": weights[_QUERIES],
        "positions": weights[_POSITIONS][: len(weights[_QUERIES])],
        "projection.weight": weights[_PROJECTION].T,
        "projection.bias": weights[_BIAS],
        **{
            name.removeprefix(_DECODER): tensor
            for name, tensor in weights.items()
            if name.startswith(_DECODER) and name not in (_POSITIONS, _TOKENS)
        },
    }
    try:
        connector.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} does not fit its encoder and LLM: {' '.join(str(error).split())[:300]}; name others"
        ) from error
