"""Which tokens a speech recogniser and an LLM have in common."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from earshot.bases import Whisper, embed, embeddings
from earshot.feedback import SharedTokens


def shared_tokens(
    whisper: Whisper, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> SharedTokens | None:
    """The tokens that both vocabularies spell alike; None if there are none.

    SentencePiece's mark for a space is taken for that of byte-level BPE, which Whisper has.
    """
    written, n_rows = whisper.tokenizer.get_vocab(), embeddings(llm).num_embeddings
    spelled = ((token.replace("\u2581", "\u0120"), number) for token, number in tokenizer.get_vocab().items())
    pairs = sorted(
        (number, written[token]) for token, number in spelled if token in written and number < n_rows
    )
    if not pairs:
        return None
    told = whisper.model.model.decoder.embed_tokens.weight
    start = [whisper.config.decoder_start_token_id]
    *before, begin = getattr(whisper.tokenizer, "prefix_tokens", start)
    with torch.no_grad():
        return SharedTokens(
            written=told[[number for _, number in pairs]],
            read=embed(llm, torch.tensor([number for number, _ in pairs], device=llm.device)),
            begin=told[begin],
            # Of several languages it is told which one, and what to do; tokenizers do not say so by themselves.
            n_before=max(len(before), 3 if whisper.is_multilingual else 0),
        )
