"""Another ASR model for the cascade: a Whisper in place of the encoder's own decoder, or an ear that transcribes."""

from ossicle import checkpoint
from ossicle.audio.waveform import AudioSource
from ossicle.backbones.fingerprints import fingerprint_model
from ossicle.backbones.pretrained import load_whisper
from ossicle.ear import Ear


class AsrModel:
    """Transcribes sounds for the cascade, with a Whisper or with an ear.

    A Whisper cuts long sound into the same windows as the evaluated ear. An ear writes the words nearest to its audio
    tokens (`Ear.transcribe_audio_tokens`). With the evaluated ear itself, this is a cascade with equal training, which
    differs only in that each word is decided before the LLM reads it.

    Args:
        name: hub id or local folder of a Whisper; or an ear's folder or a run's

    Raises:
        CheckpointError: neither a Whisper nor an ear, or one that cannot be loaded
    """

    def __init__(self, name: str, ear: Ear) -> None:
        if checkpoint.is_ear(name):
            dtype = str(ear.whisper.model.dtype).removeprefix("torch.")
            asr_ear = checkpoint.load(name, device=str(ear.device), dtype=dtype)
            self.name = f"the ear {name} ({fingerprint_model(asr_ear.connector)})"
            self._transcribe = asr_ear.transcribe_audio_tokens
        else:
            whisper = load_whisper(name, None, ear.device, dtype=ear.whisper.model.dtype)
            self.name = name
            self._transcribe = Ear(whisper, ear.llm, ear.tokenizer, ear.connector, ear.settings).transcribe

    def __call__(self, sources: list[AudioSource]) -> list[str]:
        """Returns the transcript of each sound."""
        return self._transcribe(sources)
