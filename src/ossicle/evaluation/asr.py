"""Another speech recogniser for the cascade: a Whisper in place of the encoder's own decoder, or an ear that writes."""

from ossicle import checkpoint
from ossicle.audio.waveform import AudioSource
from ossicle.backbones.pretrained import load_whisper
from ossicle.ear import Ear


class AsrModel:
    """What writes the transcripts: a Whisper, cutting long sound as the ear beside it does, or an ear.

    An ear writes down the words nearest to its audio tokens (`Ear.spell`). Beside the same ear's answers that is a
    cascade of equal training, which differs in one thing: each word is decided before the LLM reads it.

    Args:
        name: hub id or local folder of a Whisper; or an ear's folder or a run's

    Raises:
        CheckpointError: neither a Whisper nor an ear, or one that cannot be loaded
    """

    def __init__(self, name: str, ear: Ear) -> None:
        if checkpoint.is_ear(name):
            writer = checkpoint.load(name)
            self.name = f"the ear {name} ({checkpoint.fingerprint_model(writer.connector)})"
            self._write = writer.transcribe_audio_tokens
        else:
            whisper = load_whisper(name, None, ear.device)
            self.name = name
            self._write = Ear(whisper, ear.llm, ear.tokenizer, ear.connector, ear.settings).transcribe

    def __call__(self, sources: list[AudioSource]) -> list[str]:
        """What it writes for each sound."""
        return self._write(sources)
