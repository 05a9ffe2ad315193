"""Which tokens a speech recogniser and an LLM have in common."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from earshot.bases import Whisper, embed, embeddings
from earshot.config import ConnectorSettings
from earshot.words import SharedTokens


def spelled_alike(
    recogniser: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, n_rows: int
) -> list[tuple[int, int]]:
    """Ids of the ordinary tokens that both spell alike, in the LLM's vocabulary and in the recogniser's.

    SentencePiece's mark for a space is taken for that of byte-level BPE, which Whisper has.

    Args:
        n_rows: how many embeddings the LLM has
    """
    written = recogniser.get_vocab()
    special, unread = set(recogniser.all_special_ids), set(tokenizer.all_special_ids)
    spelled = ((token.replace("\u2581", "\u0120"), number) for token, number in tokenizer.get_vocab().items())
    return sorted(
        (number, written[token])
        for token, number in spelled
        if token in written and number < n_rows and number not in unread and written[token] not in special
    )


def shared_tokens(
    settings: ConnectorSettings, whisper: Whisper, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> SharedTokens | None:
    """What a connector has to know of both vocabularies; None where it needs none, or they have nothing in common."""
    if not settings.knows_words:
        return None
    pairs = spelled_alike(whisper.tokenizer, tokenizer, embeddings(llm).num_embeddings)
    if not pairs:
        return None
    known = whisper.model.model.decoder.embed_tokens.weight.detach()
    read, written = (list(ids) for ids in zip(*pairs, strict=True))
    languages, prompt = _beginning(whisper)
    return SharedTokens(
        written=known[written],
        read=embed(llm, torch.tensor(read, device=llm.device)),
        prompt=torch.stack([known[0] * 0 if id_ is None else known[id_] for id_ in prompt]),
        end=known[whisper.config.eos_token_id],
        languages=known[languages],
    )


def _beginning(whisper: Whisper) -> tuple[list[int], list[int | None]]:
    """The languages that have to be told from each other, and the prompt, with a gap for the one that is spoken."""
    options, start = whisper.model.generation_config, whisper.config.decoder_start_token_id
    languages = (
        sorted((getattr(options, "lang_to_id", None) or {}).values()) if whisper.is_multilingual else []
    )
    task = (getattr(options, "task_to_id", None) or {}).get("transcribe")
    between = [None, task] if languages and task is not None else []
    no_times = getattr(options, "no_timestamps_token_id", None)
    return languages if between else [], [start, *between, *([] if no_times is None else [no_times])]
