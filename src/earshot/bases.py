"""The two frozen models of an ear: where they come from, what they must be, and how they are told from others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from earshot.audio import HOP_LENGTH
from earshot.encoder import FRAMES_PER_POSITION
from earshot.errors import CheckpointError

POCKET = Path(__file__).parent / "pocket"
"""The embedded models and speech."""
_SAMPLED_VALUES = 4_096


@dataclass(frozen=True)
class Whisper:
    """A Whisper with its tokenizer: the encoder listens, the decoder writes the cascade's transcripts."""

    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase

    @property
    def config(self) -> WhisperConfig:
        """Its sizes."""
        return self.model.config

    @property
    def window_frames(self) -> int:
        """Mel frames of the full window: 3,000 (30 s) in all published Whispers."""
        return self.config.max_source_positions * FRAMES_PER_POSITION

    @property
    def window_samples(self) -> int:
        """Samples of the full window, at 16 kHz."""
        return self.window_frames * HOP_LENGTH


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU, where bfloat16 is slow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def locate(name: str) -> str:
    """The folder of an embedded model for "pocket/...", any other name as it is (hub id or local folder)."""
    return str(POCKET / name.removeprefix("pocket/")) if name.startswith("pocket/") else name


def load_whisper(name: str, revision: str | None, device: torch.device) -> Whisper:
    """A frozen Whisper by hub id or local folder.

    Raises:
        CheckpointError: nothing there, or not a Whisper
    """
    config = _load_config(name, revision, "encoder")
    if not isinstance(config, WhisperConfig):
        raise CheckpointError(
            f"encoder {name!r} is of type {config.model_type!r}, expected a Whisper such as openai/whisper-small"
        )
    try:
        model = WhisperForConditionalGeneration.from_pretrained(
            locate(name), revision=revision or "main", dtype=frozen_dtype(device), attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(locate(name), revision=revision or "main")
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"encoder {name!r} cannot be loaded: {_first_line(error)}") from error
    return Whisper(model=_frozen(model, device), tokenizer=tokenizer)


def load_llm(
    name: str, revision: str | None, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A frozen causal LM and its tokenizer, by hub id or local folder.

    Raises:
        CheckpointError: nothing there, not a causal LM, or no chat template
    """
    config = _load_config(name, revision, "LLM")
    if type(config) not in AutoModelForCausalLM._model_mapping or config.is_encoder_decoder:
        raise CheckpointError(
            f"LLM {name!r} is of type {config.model_type!r}, expected a causal LM such as meta-llama/Llama-3.1-8B-Instruct"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            locate(name), revision=revision or "main", dtype=frozen_dtype(device)
        )
        tokenizer = AutoTokenizer.from_pretrained(locate(name), revision=revision or "main")
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"LLM {name!r} cannot be loaded: {_first_line(error)}") from error
    return _frozen(model, device), tokenizer


def _load_config(name: str, revision: str | None, role: str):
    try:
        return AutoConfig.from_pretrained(locate(name), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{role} {name!r} cannot be found: expected a hub id or a local folder with a config.json"
            f" ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _frozen(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    return model.requires_grad_(False).eval().to(device)


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's weights: every tensor's name and shape, and values spread evenly over each.

    Values are sampled so that a model of many gigabytes takes a second; rounding to another float type changes it
    only where that type is coarser than bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLED_VALUES)
        sample = flat[::step].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of a tokenizer's vocabulary and chat template."""
    digest = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()[:16]
