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
        name: hub id or local folder of a Whisper; or an ear's folder or a run's, or its hub id
        is_own: whether it is the evaluated ear, which is then not loaded twice
        llm_bits: bits of the weights of another ear's LLM

    Raises:
        CheckpointError: neither a Whisper nor an ear, or one that cannot be loaded
    """

    def __init__(self, name: str, ear: Ear, *, is_own: bool = False, llm_bits: int = 16) -> None:
        dtype = ear.whisper.model.dtype
        if is_own or checkpoint.is_ear(name):
            asr_ear = ear
            if not is_own:
                asr_ear = checkpoint.load(
                    name,
                    device=str(ear.device),
                    dtype=str(dtype).removeprefix("torch."),
                    llm_bits=llm_bits,
                )
            self.name = f"the ear {name} ({fingerprint_model(asr_ear.connector)})"
            self._transcribe = asr_ear.transcribe_audio_tokens
        else:
            whisper = load_whisper(name, None, ear.device, dtype=dtype)
            self.name = f"{name} ({fingerprint_model(whisper.model)})"
            self._transcribe = Ear(whisper, ear.llm, ear.tokenizer, ear.connector, ear.settings).transcribe

    def __call__(self, sources: list[AudioSource]) -> list[str]:
        """Returns the transcript of each sound."""
        return self._transcribe(sources)
