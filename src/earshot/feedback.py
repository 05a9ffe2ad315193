"""What an autoregressive connector is told of the audio token before: in place of the token that Whisper wrote last.

It knows points in two spaces, those by which Whisper's decoder is told what it wrote and the LLM's own embeddings, and
nothing of the models or the vocabularies that they come from.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

_STEPS, _TOKENS_A_STEP, _PEAK_LR = 1_000, 512, 3e-3
"""For the pocket models 14 seconds of a core; 0.94 of the variance of the tokens in use is explained then."""


@dataclass(frozen=True)
class SharedTokens:
    """The tokens that a speech recogniser and an LLM both have, and what the recogniser's decoder begins with."""

    written: Float[Tensor, "C E"]
    """By which the recogniser's decoder is told that it wrote them."""
    read: Float[Tensor, "C D"]
    """As the LLM's first layer is given them."""
    begin: Float[Tensor, " E"]
    """The last token of the recogniser's prompt, behind which it writes its first one."""
    n_before: int
    """Tokens of that prompt before it."""


class Feedback(nn.Module):
    """From an audio token to what the decoder takes for the token that it wrote last."""

    def __init__(self, d_llm: int, d_encoder: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_llm, eps=1e-12)  # LLMs' embeddings differ in size by a hundred times
        self.token = nn.Sequential(
            nn.Linear(d_llm, 4 * d_encoder), nn.GELU(), nn.Linear(4 * d_encoder, d_encoder)
        )

    def fit(self, shared: SharedTokens) -> None:
        """Learns which token of the recogniser each of the LLM's is: no sound, a thousand short steps.

        With it a decoder that Whisper's weights start is told what it was always told, and writes on as the recogniser
        does from the first step on.
        """
        device = self.norm.weight.device
        read, written = (rows.detach().to(device) for rows in (shared.read, shared.written))
        optimizer = torch.optim.Adam(self.parameters(), lr=_PEAK_LR)
        with torch.enable_grad():
            for step in range(_STEPS):
                optimizer.param_groups[0]["lr"] = _PEAK_LR * (1 - step / _STEPS)
                some = torch.randint(len(read), (_TOKENS_A_STEP,), device=device)
                loss = (self(read[some].float()) - written[some].float()).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        optimizer.zero_grad()

    def forward(self, audio: Float[Tensor, "B Q D"] | Float[Tensor, "B D"]) -> Float[Tensor, "..."]:
        """The same number of rows, as wide as the decoder."""
        return self.token(self.norm(audio.to(self.norm.weight.dtype)))
