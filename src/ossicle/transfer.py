"""Carries a trained ear over to another LLM, without training."""

import time
from dataclasses import dataclass, replace

import torch

from ossicle import checkpoint
from ossicle.backbones.causal_lm import get_input_embeddings
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.backbones.pretrained import load_llm
from ossicle.connectors import build_connector
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.connectors.transfer import SharedRows, TransferFit, transfer_connector
from ossicle.connectors.vocabulary_overlap import build_shared_vocabulary, match_shared_tokens
from ossicle.ear import Ear
from ossicle.errors import CheckpointError, ModelNotFoundError

_MIN_WORDS = 100
"""Fewest words that all three vocabularies must share for a fit."""


@dataclass(frozen=True, kw_only=True)
class TransferredEar:
    """An ear carried over to another LLM."""

    ear: Ear
    source: str
    source_llm: str
    n_shared: int
    """Words that Whisper and both LLMs have."""
    fit: TransferFit
    seconds: float
    """Time of the fit alone, after all models were loaded."""


def transfer_ear(
    folder: str, llm: str, *, encoder: str | None = None, device: str | None = None
) -> TransferredEar:
    """Builds an ear for another LLM from a trained one. Of the LLM before, only tokenizer and embeddings are read.

    Args:
        folder: folder of an ear or of a run, or "pocket/ear" for the embedded one
        encoder: another location of the ear's encoder

    Raises:
        CheckpointError: not an ear, one of another form, another encoder, the same LLM, or an LLM that shares too few
            words
    """
    try:
        source = checkpoint.load(folder, encoder=encoder, device=device, with_llm=False)
    except ModelNotFoundError as error:
        if "--encoder" in str(error):
            raise
        raise CheckpointError(f"{error.__cause__}; {folder} was made for it: copy it there first") from error
    before = source.connector
    if not isinstance(before, AutoregressiveConnector) or before.vocabulary_head is None:
        raise CheckpointError(
            f"{folder} is an ear of form {source.settings.connector.form} without a shared vocabulary: what it has"
            " learned is bound to its LLM; expected form autoregressive started from Whisper, or train a new ear"
        )
    model, tokenizer = load_llm(llm, None, source.device)
    base = source.settings.base
    if fingerprint_model(model) == checkpoint.read_fingerprints(folder)["llm"]:
        raise CheckpointError(
            f"{folder} is an ear for {llm} already, the same LLM: use it, or name another LLM"
        )
    settings = replace(source.settings, base=replace(base, llm=llm, llm_revision=None))
    shared = build_shared_vocabulary(settings.connector, source.whisper, model, tokenizer)
    d_llm, n_rows = get_input_embeddings(model).embedding_dim, get_input_embeddings(model).num_embeddings
    old_pairs = match_shared_tokens(
        source.whisper, source.tokenizer, get_input_embeddings(source.llm).num_embeddings
    )
    new_pairs = match_shared_tokens(source.whisper, tokenizer, n_rows)
    words = _pair_rows(old_pairs, new_pairs)
    n_shared = len(words.source)
    if n_shared < _MIN_WORDS:
        raise CheckpointError(
            f"{base.encoder}, {base.llm} and {llm} have {n_shared} tokens in common, too few to carry an ear over:"
            f" expected at least {_MIN_WORDS}; train a new ear"
        )
    connector = build_connector(source.whisper.config, settings.connector, d_llm, shared)
    assert isinstance(connector, AutoregressiveConnector)
    connector = connector.float().to(source.device).eval()
    start_s = time.monotonic()
    fit = transfer_connector(before, connector, words)
    seconds = time.monotonic() - start_s
    ear = Ear(source.whisper, model, tokenizer, connector, settings, source.silence)
    return TransferredEar(
        ear=ear, source=folder, source_llm=base.llm, n_shared=n_shared, fit=fit, seconds=seconds
    )


def _pair_rows(source: list[tuple[int, int]], target: list[tuple[int, int]]) -> SharedRows:
    """Pairs the rows of two vocabulary heads that stand for the same token of Whisper."""
    rows = {whisper_id: row for row, (_, whisper_id) in enumerate(source)}
    pairs = [(rows[id_], row) for row, (_, id_) in enumerate(target) if id_ in rows]
    source_rows, target_rows = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return SharedRows(source_rows, target_rows)


def build_transfer_card(transferred: TransferredEar) -> str:
    """Renders the part of a model card that says where an ear comes from."""
    return (
        f"It was carried over from `{transferred.source}`, which was trained for `{transferred.source_llm}`, without"
        f" training: the layers that touch the LLM were refitted on {transferred.n_shared:,} shared tokens.\n\n"
        "It has not been evaluated; `ossicle eval` measures it.\n"
    )
