"""Another speech recogniser for the cascade: any Whisper in place of the encoder's own decoder."""

from earshot.audio import AudioSource
from earshot.bases import load_whisper
from earshot.model import Ear


class Recogniser:
    """A Whisper that writes transcripts, cutting long sound as the ear beside it does.

    Args:
        name: hub id or local folder

    Raises:
        CheckpointError: not a Whisper, or one that cannot be loaded
    """

    def __init__(self, name: str, ear: Ear) -> None:
        whisper = load_whisper(name, None, ear.device)
        self.name = name
        self._ear = Ear(whisper, ear.llm, ear.tokenizer, ear.connector, ear.settings)

    def __call__(self, sources: list[AudioSource]) -> list[str]:
        """What it writes for each sound."""
        return self._ear.transcribe(sources)
