"""Form `stack`: neighboring encoder positions, n in a row, through an MLP; each such stretch is an audio token.

The usual connector elsewhere, here for comparison. Its tokens are aligned to the right and match no transcript one to
one.

Source: SLAM-LLM, arXiv 2402.08846; Ultravox.
"""

from torch.nn import functional
from transformers import WhisperConfig

from ossicle.backbones.encoder import Features
from ossicle.config import ConnectorSettings
from ossicle.connectors.base import AudioTokens, Connector, Transcripts
from ossicle.connectors.layers import build_mlp


class FrameStackingConnector(Connector):
    """An MLP over n encoder positions side by side."""

    def __init__(self, whisper: WhisperConfig, settings: ConnectorSettings, d_llm: int) -> None:
        super().__init__(settings)
        self.alignment = "right"
        self.mlp = build_mlp(whisper.d_model * settings.n_stacked, 4 * whisper.d_model, d_llm)

    def forward(self, features: Features, transcripts: Transcripts | None = None) -> AudioTokens:
        """Returns the audio tokens of a batch of clips, from the first slot of each; transcripts change nothing."""
        n_stacked = self.settings.n_stacked
        states = features.states.to(next(self.parameters()).dtype) * features.mask[..., None]
        states = functional.pad(states, (0, 0, 0, -states.shape[1] % n_stacked))  # S to a multiple of n
        stacked = states.reshape(len(states), -1, n_stacked * states.shape[2])  # (B, S, E) -> (B, Q, n E)
        n_tokens = -(-features.mask.sum(1) // n_stacked)
        return AudioTokens(tokens=self.mlp(stacked), n_tokens=n_tokens, end_logits=None, log_likelihood=None)
