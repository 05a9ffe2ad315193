"""Whether a Whisper can tell stored silence from its whole window: tried on a sound before it is relied on."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from ossicle.backbones.encoder import EncoderWindow, Features, build_mel_batch, encode
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.silence import Silence, synthesize_voice

MAX_DIVERGENCE = 0.05
"""Nats; published Whispers have a tenth of it, one that repeats itself in place of ending ten times as much."""
_SEED, _SECONDS = 1_000, 2.5
"""A sound that the silence was not computed with."""
_N_TOKENS = 12


@torch.inference_mode()
def measure_divergence(whisper: Whisper, silence: Silence, window: EncoderWindow) -> float:
    """Returns how far stored silence moves a Whisper's words of a sound like a voice from those with its whole window.

    Args:
        window: of the kind "sound+silence"

    Returns: mean KL divergence of the next token, in nats, over the words that it writes
    """
    sound = synthesize_voice(_SEED, _SECONDS)
    encoder, decoder = whisper.model.model.encoder, whisper.model.model.decoder

    def compute(window: EncoderWindow, behind: Silence | None) -> Features:
        mel, n_frames = build_mel_batch([sound], whisper.config.num_mel_bins, window)
        return encode(encoder, mel.to(encoder.conv1.weight.device), n_frames, behind)

    full = compute(EncoderWindow(window.n_frames, "full"), None)
    short = compute(window, silence.to(encoder.conv1.weight))
    prompt = whisper.prompt
    start = [prompt.start, *list(prompt.languages.values())[:1], prompt.transcribe, prompt.no_timestamps]
    ids = torch.tensor([[id_ for id_ in start if id_ is not None]], device=full.states.device)
    n_start = ids.shape[1]
    for _ in range(_N_TOKENS):
        ids = torch.cat([ids, _compute_log_probabilities(decoder, ids, full)[:, -1:].argmax(-1)], dim=1)
        if int(ids[0, -1]) == prompt.end:
            break
    exact, found = (_compute_log_probabilities(decoder, ids[:, :-1], heard)[0] for heard in (full, short))
    return float((exact.exp() * (exact - found)).sum(-1)[n_start - 1 :].mean())


def _compute_log_probabilities(
    decoder: WhisperDecoder, ids: Int[Tensor, "1 T"], features: Features
) -> Float[Tensor, "1 T V"]:
    """Runs Whisper's decoder, which in transformers takes no mask of the sound."""
    n = ids.shape[1]
    hidden = decoder.embed_tokens(ids) + decoder.embed_positions.weight[:n]
    causal = torch.full((n, n), -torch.inf, device=ids.device, dtype=hidden.dtype).triu(1)[None, None]
    for layer in decoder.layers:
        hidden = layer(
            hidden,
            attention_mask=causal,
            encoder_hidden_states=features.states,
            encoder_attention_mask=features.attention_mask,
            use_cache=False,
        )
    return (decoder.layer_norm(hidden) @ decoder.embed_tokens.weight.T).float().log_softmax(-1)
