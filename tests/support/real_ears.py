"""Ears of real models, and the same models as transformers alone runs them: the reference of the tests in tests/real."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.pretrained import load_llm, load_whisper
from ossicle.cli import main
from ossicle.ear import Ear
from ossicle.real_models import find_real_model, get_cache_folder

TINY, BASE = "whisper-tiny.en", "whisper-base"
SMOLLM, QWEN = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
_CPU = torch.device("cpu")
_BATCH_SIZE = 8
_loaded: dict[Path, Ear] = {}


@dataclass(frozen=True)
class EarFolder:
    """An untrained ear as `ossicle new` writes it."""

    path: Path
    whisper: str
    """Name of the Whisper, as of the LLM, for `find_real_model`."""
    llm: str

    def load(self) -> Ear:
        """Loads the ear. One at a time is kept in memory: tests of the same one follow each other."""
        if self.path not in _loaded:
            _loaded.clear()
            _loaded[self.path] = ossicle.load(self.path, device="cpu")
        return _loaded[self.path]


def build_ear_folder(folder: Path, whisper: str, llm: str) -> EarFolder:
    """Builds an untrained ear by the command line, unless it is there already."""
    path = folder / f"{whisper}-{llm}"
    if not path.exists():
        argv = ("new", str(path), "--encoder", find_real_model(whisper), "--llm", find_real_model(llm))
        assert main([*argv, "--device", "cpu"]) == 0
    return EarFolder(path, whisper, llm)


def find_transformers_folder(name: str) -> str:
    """Returns a model as transformers itself reads it: a hub id, or a folder with its weights in safetensors.

    Models in another form are converted once, next to where they are kept.
    """
    source = find_real_model(name)
    if not Path(source).exists() or (Path(source) / "model.safetensors").is_file():
        return source
    folder = get_cache_folder() / f"{name}-transformers"
    if not (folder / "model.safetensors").is_file():
        if name in (TINY, BASE):
            whisper = load_whisper(source, None, _CPU)
            model, tokenizer = whisper.model, whisper.tokenizer
        else:
            model, tokenizer = load_llm(source, None, _CPU)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return str(folder)


def load_stock_llm(name: str) -> tuple[Any, Any]:
    """Loads an LLM as transformers alone does."""
    folder = find_transformers_folder(name)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return llm, AutoTokenizer.from_pretrained(folder)


@functools.lru_cache(maxsize=1)
def _load_stock_whisper(name: str) -> tuple[Any, WhisperFeatureExtractor, Any]:
    folder = find_transformers_folder(name)
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    return model, extractor, AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def transcribe_by_transformers(name: str, sounds: Sequence[np.ndarray], language: str | None) -> list[str]:
    """Transcribes samples of at most 30 s at 16 kHz with transformers' own Whisper, greedily.

    Args:
        language: of all sounds; None detects that of each
    """
    model, extractor, tokenizer = _load_stock_whisper(name)
    options = {"task": "transcribe", "language": language} if model.generation_config.is_multilingual else {}
    texts: list[str] = []
    for start in range(0, len(sounds), _BATCH_SIZE):
        inputs = extractor(
            list(sounds[start : start + _BATCH_SIZE]), sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )
        ids = model.generate(inputs.input_features, do_sample=False, num_beams=1, **options)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]
