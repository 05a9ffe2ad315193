"""Transcription by Whisper's own decoder, by default greedily and without timestamps: the first half of the cascade.

Where Whisper itself expects that nobody speaks, its words are dropped: it finds some in every noise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ossicle.audio.waveform import SAMPLE_RATE
from ossicle.backbones.causal_lm import to_id_list
from ossicle.backbones.encoder import EncoderWindow, build_mel_batch
from ossicle.backbones.model_files import format_one_line, silence_transformers
from ossicle.backbones.pretrained import Whisper
from ossicle.backbones.whisper_prompt import Task, check_task, encode_previous_text
from ossicle.errors import CheckpointError

ENGLISH = "en"
_SECONDS_PER_TIMESTAMP = 0.02
NO_SPEECH_PROBABILITY, MIN_MEAN_LOG_PROB = 0.6, -1.0
"""Whisper's own rule: nobody speaks if the sign for that is at least so likely, and the words are less likely than this,
in nats a token."""


@dataclass(frozen=True)
class TranscriptSegment:
    """What was said in a part of a sound."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    """What was said, and in which language."""

    text: str
    language: str
    """Code such as "de"."""
    segments: tuple[TranscriptSegment, ...] = ()
    """The parts in which something was said: between Whisper's timestamps, or else its windows."""

    @property
    def language_name(self) -> str:
        """The language's English name in small letters, as OpenAI's server writes it."""
        return LANGUAGES.get(self.language, self.language)


@torch.inference_mode()
def transcribe_windows(
    whisper: Whisper,
    sounds: Sequence[np.ndarray],
    languages: Sequence[str | None],
    *,
    previous: str = "",
    temperature: float = 0.0,
    task: Task = "transcribe",
    has_timestamps: bool = False,
) -> list[Transcript]:
    """Transcribes sounds at 16 kHz, each at most as long as the encoder's window.

    Args:
        languages: the language of each sound; None to detect it
        previous: a text that came before each sound: Whisper continues its style and spelling
        temperature: of sampling; 0 is greedy
        has_timestamps: whether Whisper says when each part was said, as segments; where it can, the words are those
            that it writes with timestamps, and those may differ

    Returns: transcripts, empty where Whisper expects that nobody speaks

    Raises:
        RequestError: a previous text that holds control tokens, or a Whisper that takes none; a translation by a
            Whisper that knows only English
        CheckpointError: the Whisper's own settings of generation cannot be used
    """
    options, prompt = build_generation_config(whisper), whisper.prompt
    check_task(prompt, task)
    has_timestamps = has_timestamps and _knows_timestamps(whisper)
    options.return_timestamps = options.return_dict_in_generate = has_timestamps
    model = copy.copy(whisper.model)
    model.generation_config = options  # else what is None here is taken from the Whisper's own
    model.config = copy.copy(model.config)
    model.config.forced_decoder_ids = None  # the options have the prompt
    before: dict[str, Any] = {}
    if previous.strip():
        ids = encode_previous_text(
            whisper.tokenizer, whisper.token_ids, previous, whisper.config.max_target_positions
        )
        before["prompt_ids"] = torch.tensor(ids, device=model.device)
    with silence_transformers():  # its warnings are about flags in published Whispers' configs
        encoded = _encode(whisper, sounds)
        first: Tensor | None = None
        spoken: dict[str, Any] = {}
        if prompt.languages:
            if None in languages:
                first = _compute_first_logits(whisper, encoded)
                codes = list(prompt.languages)
                likeliest = first[:, list(prompt.languages.values())].argmax(1).tolist()
                languages = [given or codes[n] for given, n in zip(languages, likeliest, strict=True)]
            spoken = {"task": task, "language": [f"<|{code}|>" for code in languages]}
        log_probs = _MeanLogProb([prompt.end])
        try:
            generated: Any = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=torch.ones(
                    len(sounds), whisper.window_frames, dtype=torch.long, device=model.device
                ),
                generation_config=options,
                logits_processor=LogitsProcessorList([log_probs]),
                temperature=temperature,
                force_unique_generate_call=True,
                **spoken,
                **before,
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a Whisper's own settings ask for may fail in any way
            raise CheckpointError(
                f"the encoder's own generation_config.json cannot be used to transcribe: {format_one_line(error)}"
            ) from error
        is_speechless = _find_speechless(whisper, encoded, log_probs.compute(len(sounds)), first)
    rows = (generated.sequences if has_timestamps else generated)[:, log_probs.n_prompt :]
    if has_timestamps:
        parts = [
            _split_segments(whisper, ids, len(sound) / SAMPLE_RATE)
            for ids, sound in zip(rows.tolist(), sounds, strict=True)
        ]
        texts = [" ".join(part.text for part in own) for own in parts]
    else:
        parts = [[] for _ in sounds]
        texts = whisper.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [
        Transcript("", language or ENGLISH)
        if speechless
        else Transcript(text.strip(), language or ENGLISH, tuple(own))
        for text, own, language, speechless in zip(texts, parts, languages, is_speechless, strict=True)
    ]


def _knows_timestamps(whisper: Whisper) -> bool:
    """Whether a Whisper has a timestamp for each position of its window and for its end, behind the sign for none."""
    no_timestamps = whisper.prompt.no_timestamps
    n_needed = whisper.config.max_source_positions + 1
    return no_timestamps is not None and whisper.config.vocab_size > no_timestamps + n_needed


def _split_segments(whisper: Whisper, ids: Sequence[int], duration_s: float) -> list[TranscriptSegment]:
    """Returns what a window's tokens say between their timestamps; a part without an end lasts as long as the sound."""
    assert whisper.prompt.no_timestamps is not None, "there are timestamps"
    first = whisper.prompt.no_timestamps + 1
    segments: list[TranscriptSegment] = []
    start_s, words = 0.0, list[int]()
    for id_ in [*ids, None]:
        if id_ is not None and id_ < first:
            words.append(id_)
            continue
        time_s = duration_s if id_ is None else min((id_ - first) * _SECONDS_PER_TIMESTAMP, duration_s)
        text = str(whisper.tokenizer.decode(words, skip_special_tokens=True)).strip()
        if text:
            segments.append(TranscriptSegment(text, round(start_s, 2), round(time_s, 2)))
        start_s, words = time_s, []
    return segments


@torch.inference_mode()
def find_speechless_windows(
    whisper: Whisper, sounds: Sequence[np.ndarray], states: Sequence[Float[Tensor, "_ E"]]
) -> list[bool]:
    """Returns where nobody speaks, by Whisper's own rule; it transcribes only what may be such a sound.

    Args:
        states: the encoder's states of each sound, in its full window or in one that is as long as the sound
    """
    rows = [row for row, is_likely in enumerate(expect_no_speech(whisper, states)) if is_likely]
    if not rows:
        return [False] * len(sounds)
    transcripts = transcribe_windows(whisper, [sounds[row] for row in rows], [None] * len(rows))
    speechless = {row for row, transcript in zip(rows, transcripts, strict=True) if not transcript.text}
    return [row in speechless for row in range(len(sounds))]


@torch.inference_mode()
def expect_no_speech(whisper: Whisper, states: Sequence[Float[Tensor, "_ E"]]) -> list[bool]:
    """Returns where Whisper's sign that nobody speaks is likely, whatever words it finds.

    Args:
        states: as for `find_speechless_windows`
    """
    no_speech = whisper.prompt.no_speech
    if no_speech is None:
        return [False] * len(states)
    first = [_compute_first_logits(whisper, own[None].to(whisper.model.dtype)) for own in states]
    return [float(logits.softmax(-1)[0, no_speech]) > NO_SPEECH_PROBABILITY for logits in first]


def _encode(whisper: Whisper, sounds: Sequence[np.ndarray]) -> Float[Tensor, "B S E"]:
    mel, _ = build_mel_batch(
        sounds, whisper.config.num_mel_bins, EncoderWindow(whisper.window_frames, "full")
    )
    encoder = whisper.model.model.encoder
    return encoder(mel.to(whisper.model.device, whisper.model.dtype)).last_hidden_state


def _compute_first_logits(whisper: Whisper, encoded: Float[Tensor, "B S E"]) -> Float[Tensor, "B V"]:
    """Computes the logits behind the prompt's first token: Whisper's languages, and the sign that nobody speaks."""
    ids = torch.full((len(encoded), 1), whisper.prompt.start, device=encoded.device)
    output = whisper.model(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False)
    return output.logits[:, -1].float()


def _find_speechless(
    whisper: Whisper,
    encoded: Float[Tensor, "B S E"],
    mean_log_probs: Float[Tensor, " B"],
    first: Float[Tensor, "B V"] | None,
) -> list[bool]:
    """Returns where nobody speaks, by Whisper's own rule.

    Args:
        first: the logits of the first token; None computes them, which is only done for doubtful words
    """
    is_doubtful = mean_log_probs < MIN_MEAN_LOG_PROB
    if whisper.prompt.no_speech is None or not bool(is_doubtful.any()):
        return [False] * len(mean_log_probs)
    logits = _compute_first_logits(whisper, encoded) if first is None else first
    probability = logits.softmax(-1)[:, whisper.prompt.no_speech]
    return (is_doubtful & (probability > NO_SPEECH_PROBABILITY)).tolist()


class _MeanLogProb(LogitsProcessor):
    """Follows the log-probability of the likeliest token of each step, up to the end of each row.

    Args:
        eos_ids: the tokens that end a row
    """

    def __init__(self, eos_ids: Sequence[int]) -> None:
        self.eos_ids = eos_ids
        self.n_prompt = 0
        """Tokens in front of the first step, which `generate` returns in front of the new ones."""
        self.steps: list[Float[Tensor, " N"]] = []
        self.is_running: list[Bool[Tensor, " N"]] = []

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Returns the scores unchanged."""
        if not self.steps:
            self.n_prompt = input_ids.shape[1]
        ends = torch.tensor(self.eos_ids, device=input_ids.device)
        self.is_running.append(~torch.isin(input_ids[:, self.n_prompt :], ends).any(1))
        self.steps.append(scores.float().log_softmax(-1).amax(1))
        return scores

    def compute(self, n_sounds: int) -> Float[Tensor, " B"]:
        """Computes the mean of each sound, in nats; of several beams, that of the first."""
        is_running = torch.stack(self.is_running)
        total = torch.stack(self.steps).where(is_running, 0.0).sum(0)
        return (total / is_running.sum(0)).view(n_sounds, -1)[:, 0]


def build_generation_config(whisper: Whisper) -> Any:
    """Returns the Whisper's own `GenerationConfig`, with its prompt in the form that `generate` reads."""
    options: Any = copy.deepcopy(whisper.model.generation_config)
    prompt = whisper.prompt
    options.language = options.task = options.forced_decoder_ids = None
    options.is_multilingual = prompt.is_multilingual
    for name in ("lang_to_id", "task_to_id"):
        vars(options).pop(name, None)
    options.decoder_start_token_id = prompt.start
    options.eos_token_id = options.pad_token_id = prompt.end
    if prompt.is_multilingual:
        options.lang_to_id = {f"<|{code}|>": id_ for code, id_ in prompt.languages.items()}
        options.task_to_id = {"transcribe": prompt.transcribe, "translate": prompt.translate}
    if prompt.no_timestamps is not None:
        options.no_timestamps_token_id = prompt.no_timestamps
    options.suppress_tokens = to_id_list(options.suppress_tokens) or None
    options.begin_suppress_tokens = to_id_list(options.begin_suppress_tokens) or None
    options.return_timestamps = options.return_dict_in_generate = False
    options.num_return_sequences = 1
    # Thresholds would ask for further passes, with other temperatures.
    options.no_speech_threshold = options.logprob_threshold = options.compression_ratio_threshold = None
    options.max_length = options.max_length or whisper.config.max_target_positions
    return options
