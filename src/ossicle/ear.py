"""The ear: a frozen Whisper encoder, a trained connector and a frozen LLM, which together hear and answer.

It knows how sound and text become prompt embeddings, for the student, who hears, and for the teacher, who reads. It does
not know how answers are generated from a prompt (`chat.generation`) or how the connector is trained (`training`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.audio.batching import batch_by_length
from ossicle.audio.speech import build_no_speech_error, load_speech
from ossicle.audio.waveform import HOP_LENGTH, SAMPLE_RATE, AudioSource, locate_windows
from ossicle.backbones.causal_lm import compute_logits, embed, get_input_embeddings
from ossicle.backbones.encoder import EncoderWindow, Features, build_mel_batch, encode
from ossicle.backbones.packed_forward import PackedLlm
from ossicle.backbones.pretrained import Whisper, load_llm, load_whisper, resolve_device
from ossicle.backbones.silence import Silence, compute_silence
from ossicle.backbones.transcription import (
    MIN_MEAN_LOG_PROB,
    Transcript,
    TranscriptSegment,
    expect_no_speech,
    find_speechless_windows,
    transcribe_windows,
)
from ossicle.backbones.whisper_prompt import Task, find_language
from ossicle.chat import choice_scoring, generation
from ossicle.chat.choice_scoring import ContinuationScores
from ossicle.chat.generation import Prompt
from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import AudioSegment, Segment, TextSegment
from ossicle.chat.template import ChatTemplate
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings, check_window
from ossicle.connectors import Connector, build_connector
from ossicle.connectors.autoregressive import AutoregressiveConnector
from ossicle.connectors.base import AudioTokens
from ossicle.connectors.vocabulary_overlap import build_shared_vocabulary
from ossicle.errors import CheckpointError, RequestError
from ossicle.listening import REHEAR_S, HeardWindow, Hearing, Listener

Messages = Sequence[dict[str, Any]]
"""A conversation in OpenAI's form; content is a text or a list of parts of type "text" or "audio"."""
_In = TypeVar("_In")
_Out = TypeVar("_Out")
_WINDOWS_PER_BATCH = 16
"""Encoder batches hold at most this many full windows of sound, so that an hour of sound does not fill the memory."""
_TOKENS_PER_LOOKUP, _EMBEDDINGS_PER_LOOKUP = 4_096, 8_192
"""Audio tokens and embeddings of the LLM that are compared in one call."""
DOUBTFUL_MEAN_LOG_PROB = MIN_MEAN_LOG_PROB / 2
"""Whisper is asked whether nobody speaks where an ear's words are less likely than this, in nats a token: an ear chooses
among fewer words, and is surer of those that it finds in noise."""


@dataclass(frozen=True, kw_only=True)
class EarSettings:
    """The settings of an ear: together with its weights, all that an ear is."""

    base: BaseSettings = field(default_factory=BaseSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that exclude each other."""
        check_window(self.base, self.connector)


class Ear:
    """An open text LLM that hears.

    Only the connector is trained; the encoder and the LLM stay bit-identical.

    Args:
        fingerprints: those of the backbones that the connector was trained with; None to compute them when it is saved
    """

    def __init__(
        self,
        whisper: Whisper,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector,
        settings: EarSettings,
        silence: Silence | None = None,
        fingerprints: dict[str, str] | None = None,
    ) -> None:
        self.whisper, self.llm, self.tokenizer = whisper, llm, tokenizer
        self.connector, self.settings = connector, settings
        self._stored_silence, self.fingerprints = silence, fingerprints
        self.template = ChatTemplate(tokenizer, settings.prompt)
        check_tokenizer_fits(llm, tokenizer, self.template)

    @classmethod
    def new(
        cls,
        settings: EarSettings,
        device: torch.device | str | None = None,
        *,
        llm_bits: int = 16,
        on_host: bool = False,
    ) -> "Ear":
        """Builds an ear with an untrained connector.

        Args:
            device: by default the first GPU if there is one
            llm_bits: 8 or 4 quantizes the weights of the LLM's layers
            on_host: keeps the frozen models in host memory, to be sharded over several devices

        Raises:
            CheckpointError: a backbone that cannot be found, is of the wrong kind or is damaged
            ConfigError: connector settings that do not fit the encoder, or no such device
        """
        on_device = resolve_device(device)
        base = settings.base
        whisper = load_whisper(base.encoder, base.encoder_revision, on_device, on_host=on_host)
        llm, tokenizer = load_llm(base.llm, base.llm_revision, on_device, bits=llm_bits, on_host=on_host)
        vocabulary = build_shared_vocabulary(settings.connector, whisper, llm, tokenizer)
        connector = build_connector(
            whisper.config, settings.connector, get_input_embeddings(llm).embedding_dim, vocabulary
        )
        if settings.connector.init == "whisper":
            connector.init_from_decoder(whisper.model.model.decoder)
        return cls(whisper, llm, tokenizer, connector.float().to(on_device).eval(), settings)

    @property
    def device(self) -> torch.device:
        """The device of the connector, and of the LLM if it was loaded."""
        is_loaded = self.llm.device.type != "meta"
        return self.llm.device if is_loaded else next(self.connector.parameters()).device

    # Hearing

    @property
    def window(self) -> EncoderWindow:
        """How much of a window the encoder gets."""
        return EncoderWindow.build(self.whisper.window_frames, self.settings.base)

    @cached_property
    def silence(self) -> Silence | None:
        """What stands behind each clip, on the encoder's device; None with another window than "sound+silence"."""
        if self.settings.base.encoder_window != "sound+silence":
            return None
        encoder = self.whisper.model.model.encoder
        stored = self._stored_silence
        if stored is None or not stored.fits(encoder):
            stored = compute_silence(encoder)
        return stored.to(encoder.conv1.weight)

    def encode_sounds(self, sounds: Sequence[np.ndarray]) -> Features:
        """Encodes samples at 16 kHz.

        Raises:
            AudioError: a sound is longer than the encoder's window
        """
        return self.encode_mels(*build_mel_batch(sounds, self.whisper.config.num_mel_bins, self.window))

    @torch.no_grad()
    def encode_mels(self, mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"]) -> Features:
        """Encodes spectrograms, of which the first n_frames belong to each clip."""
        encoder = self.whisper.model.model.encoder
        features = encode(encoder, mel.to(self.device, non_blocking=True), n_frames, self.silence)
        return features.upcast() if self.device.type == "cpu" else features

    def wrap_states(self, states: Float[Tensor, "B S E"], n_positions: Int[Tensor, " B"]) -> Features:
        """Returns stored states of clips as `encode_mels` does.

        Args:
            states: on the ear's device, padded to the longest clip
            n_positions: those of each clip, on the host
        """
        mask = torch.arange(states.shape[1]) < n_positions[:, None]
        bias = None
        if self.silence is not None:
            rows = self.silence.rows_behind(n_positions, states.shape[1])
            states, bias = self.silence.append(states, rows), rows.bias
        return Features(
            states=states,
            mask=mask.to(states.device, non_blocking=True),
            is_unpadded=bool(mask.all()),
            silence_bias=bias,
        )

    @overload
    def hear(self, source: list[AudioSource]) -> list[Float[Tensor, "_ D"]]: ...

    @overload
    def hear(self, source: AudioSource) -> Float[Tensor, "_ D"]: ...

    @torch.inference_mode()
    def hear(
        self, source: AudioSource | list[AudioSource]
    ) -> Float[Tensor, "_ D"] | list[Float[Tensor, "_ D"]]:
        """Returns audio tokens in the LLM's embedding space, for any engine that takes prompt embeddings.

        Sound longer than the encoder's window is split where it is quietest, and the tokens of all windows are
        concatenated.

        Args:
            source: one sound gives one tensor; a list of sounds gives a list, computed in batches

        Raises:
            AudioError: not audio, longer than an hour, or too short or too even for speech
        """
        sources = source if isinstance(source, list) else [source]
        tokens = self.embed_audio([load_speech(item) for item in sources])
        return tokens if isinstance(source, list) else tokens[0]

    def listen(self, rehear_s: float = REHEAR_S) -> Listener:
        """Returns a listener, which hears a sound while it is spoken: feed it samples, then finish it.

        With form autoregressive, little is left to do when the sound ends: what was heard before is only checked. In
        messages, a listener stands for its sound: {"type": "audio", "audio": listener}.

        Args:
            rehear_s: new sound after which the sound so far is heard again
        """
        return Listener(self.start_hearing(), rehear_s)

    def start_hearing(self) -> Hearing:
        """Returns what a listener keeps of a sound, before any of it is heard."""
        return Hearing(
            hear_window=self._hear_window,
            decode=lambda tokens: self.decode_audio_tokens(tokens),
            is_speech=lambda samples: self._embed_spoken([samples])[0] is not None,
            window_samples=self.whisper.window_samples,
        )

    @torch.inference_mode()
    def _hear_window(self, samples: np.ndarray, draft: Int[Tensor, " S"] | None) -> HeardWindow:
        features = self.encode_sounds([samples])
        with self.autocast():
            if isinstance(self.connector, AutoregressiveConnector):
                audio = self.connector(features, draft=draft)
            else:
                audio = self.connector(features)
        return HeardWindow(
            tokens=self._cut_tokens(audio)[0],
            written=None if audio.written is None else audio.written[0],
            is_doubtful=bool(_find_doubtful(audio))
            and expect_no_speech(self.whisper, _list_states(features))[0],
        )

    @torch.inference_mode()
    def embed_speech(self, sounds: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"] | None]:
        """Returns the audio tokens of samples at 16 kHz, without windows in which nobody speaks; None if all are such.

        Nobody speaks where the connector is in doubt about the words, or has none, and the encoder's own decoder
        expects it, too. So speech costs nothing more.
        """
        windows = self._map_windows(sounds, self._embed_spoken)
        spoken = [[tokens for tokens in own if tokens is not None] for own in windows]
        return [torch.cat(tokens) if tokens else None for tokens in spoken]

    def _embed_spoken(self, windows: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"] | None]:
        with self.autocast():
            features = self.encode_sounds(windows)
            audio = self.connector(features)
        doubtful, states = _find_doubtful(audio), _list_states(features)
        is_speechless = find_speechless_windows(
            self.whisper, [windows[row] for row in doubtful], [states[row] for row in doubtful]
        )
        speechless = {row for row, speechless in zip(doubtful, is_speechless, strict=True) if speechless}
        tokens = self._cut_tokens(audio)
        return [None if row in speechless else own for row, own in enumerate(tokens)]

    def embed_audio(self, sounds: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"]]:
        """Returns the audio tokens of samples at 16 kHz, each sound split into windows."""
        windows = self._map_windows(sounds, self._embed_windows)
        return [torch.cat(tokens) for tokens in windows]

    def _embed_windows(self, windows: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"]]:
        with self.autocast():
            return self.embed_features(self.encode_sounds(windows))

    def embed_features(self, features: Features) -> list[Float[Tensor, "_ D"]]:
        """Returns the audio tokens of encoded clips."""
        with self.autocast():
            return self._cut_tokens(self.connector(features))

    def _cut_tokens(self, audio: AudioTokens) -> list[Float[Tensor, "_ D"]]:
        tokens = audio.tokens.to(self.llm.dtype)
        return [row[:n] for row, n in zip(tokens, audio.n_tokens.tolist(), strict=True)]

    @torch.inference_mode()
    def transcribe_audio_tokens(self, sources: Sequence[AudioSource]) -> list[str]:
        """Transcribes sounds by the ear itself: each audio token becomes the nearest token of the LLM.

        This makes the ear an ASR model. The LLM loses what audio tokens say beyond a single word each. Slots without a
        target, as in the right-aligned forms diva and stack, are transcribed too.

        Raises:
            AudioError: not audio, longer than an hour, or too short or too even for speech
            CheckpointError: an ear that was loaded without its LLM
        """
        self._check_llm_is_loaded()
        sounds = [load_speech(source) for source in sources]
        texts = self._map_windows(sounds, self._decode_windows)
        return [_join_texts(windows) for windows in texts]

    def _decode_windows(self, windows: Sequence[np.ndarray]) -> list[str]:
        return self.decode_audio_tokens(self._embed_windows(windows))

    def decode_audio_tokens(self, audio: Sequence[Float[Tensor, "_ D"]]) -> list[str]:
        """Returns the text of the LLM's tokens that are nearest to the audio tokens of each sound.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
        """
        nearest = self.nearest_tokens(torch.cat(list(audio))).split([len(tokens) for tokens in audio])
        texts = self.tokenizer.batch_decode([ids.tolist() for ids in nearest], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.inference_mode()
    def nearest_tokens(self, audio_tokens: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """Finds the LLM's tokens whose embeddings are nearest to audio tokens, by L2.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
        """
        self._check_llm_is_loaded()
        chunks = audio_tokens.float().split(_TOKENS_PER_LOOKUP)
        return torch.cat([self._find_nearest(points) for points in chunks])

    def _find_nearest(self, points: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        likeness, nearest, start = points.new_full((len(points),), -torch.inf), None, 0
        for rows, half_norms in zip(self._split_embeddings(), self._half_norms, strict=True):
            best = torch.addmm(-half_norms, points, rows.T).max(1)
            found = best.indices + start
            nearest = found if nearest is None else torch.where(best.values > likeness, found, nearest)
            likeness, start = likeness.maximum(best.values), start + len(rows)
        assert nearest is not None, "an LLM has tokens"
        return nearest

    @cached_property
    def _half_norms(self) -> list[Float[Tensor, " _"]]:
        """Half of the squared norm of each of the LLM's embeddings, in parts."""
        return [rows.square().sum(1) / 2 for rows in self._split_embeddings()]

    def _split_embeddings(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Yields the LLM's input embeddings in float32, in parts that are copied only where they are not stored so."""
        table = get_input_embeddings(self.llm)
        is_stored = type(table).forward is nn.Embedding.forward and table.max_norm is None
        for start in range(0, table.num_embeddings, _EMBEDDINGS_PER_LOOKUP):
            end = min(start + _EMBEDDINGS_PER_LOOKUP, table.num_embeddings)
            rows = table.weight[start:end] if is_stored else self.embed(torch.arange(start, end))
            yield rows.float()

    def _map_windows(
        self,
        sounds: Sequence[np.ndarray],
        function: Callable[[Sequence[np.ndarray]], list[_Out]],
    ) -> list[list[_Out]]:
        """Calls a function on the windows of all sounds, in batches of bounded size and similar length.

        Returns: the results of each sound's windows
        """
        n_samples = self.whisper.window_samples
        windows_of = [[window for _, window in locate_windows(sound, n_samples)] for sound in sounds]
        windows = [window for own in windows_of for window in own]
        lengths = [self.window.count_frames(len(window)) * HOP_LENGTH for window in windows]
        in_order = iter(self._map_batches(windows, lengths, function))
        return [list(islice(in_order, len(own))) for own in windows_of]

    def _map_batches(
        self, windows: Sequence[_In], lengths: Sequence[int], function: Callable[[Sequence[_In]], list[_Out]]
    ) -> list[_Out]:
        """Calls a function on windows in batches of bounded size and similar length; returns its results in order.

        Args:
            lengths: samples of each window, as the function pads it
        """
        results: dict[int, _Out] = {}
        for batch in batch_by_length(lengths, _WINDOWS_PER_BATCH * self.whisper.window_samples):
            results |= zip(batch, function([windows[number] for number in batch]), strict=True)
        return [results[number] for number in range(len(windows))]

    def autocast(self) -> torch.autocast:
        """The precision of the connector in training and at inference: that of the frozen models, on a GPU.

        On a CPU it is float32: half precision is slower there for one slot after the other.
        """
        dtype, place = self.whisper.model.dtype, self.device.type
        return torch.autocast(place, dtype, enabled=place != "cpu" and dtype.itemsize == 2)

    # Answering

    def chat(self, messages: Messages, **options: Any) -> str:
        """Answers a conversation whose user messages may contain sound; greedy by default.

        Args:
            options: passed to transformers' `generate`: max_new_tokens, do_sample, temperature, stop_strings, ...;
                `chat_template_kwargs` holds variables of the chat template, such as {"enable_thinking": False}

        Raises:
            RequestError: a malformed conversation, one longer than the LLM's context, or an option that `generate`
                does not know
            AudioError: sound that cannot be decoded
            CheckpointError: an ear that was loaded without its LLM
        """
        prompts = self.build_prompts([messages], options.pop("chat_template_kwargs", None), only_speech=True)
        return generation.generate_answers(self.llm, self.tokenizer, prompts, **options)[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[str]:
        """Answers several conversations in one batch; each answer is the same as alone.

        Sound in which nobody speaks is answered, too, as evaluations need it.
        """
        prompts = self.build_prompts(conversations, chat_template_kwargs)
        return generation.generate_answers(self.llm, self.tokenizer, prompts, **options)

    def read_batch(self, conversations: Sequence[Messages], **options: Any) -> list[str]:
        """Answers conversations of text, as the stock LLM does: the text ceiling of an evaluation."""
        return self.chat_batch(conversations, **options)

    def generate_ids_batch(self, conversations: Sequence[Messages], **options: Any) -> list[list[int]]:
        """Returns the tokens of `chat_batch`'s answers, including the end token where the LLM produced one."""
        return generation.generate_answer_ids(
            self.llm, self.tokenizer, self.build_prompts(conversations), **options
        )

    def choose_batch(self, conversations: Sequence[Messages], choices: Sequence[str]) -> list[int]:
        """Returns for each conversation the index of the choice that most likely begins the LLM's answer.

        Raises:
            RequestError: as `chat`; or no choices, an empty one, or two equal ones
            AudioError: sound that cannot be decoded
        """
        return choice_scoring.choose(self.llm, self.tokenizer, self.build_prompts(conversations), choices)

    def score_continuations(
        self, conversations: Sequence[Messages], answers: Sequence[Sequence[int]]
    ) -> list[ContinuationScores]:
        """Scores given answers, as token ids, under the LLM's next-token distributions after each conversation."""
        return choice_scoring.score_continuation(self.llm, self.build_prompts(conversations), answers)

    def stream(
        self, messages: Messages, *, chat_template_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[str]:
        """Yields pieces of the answer while it is generated; joined, they equal `chat`.

        The conversation is checked and its sound encoded before the first piece is requested.
        """
        (prompt,) = self.build_prompts([messages], chat_template_kwargs, only_speech=True)
        return generation.stream_answer(self.llm, self.tokenizer, prompt, **options)

    @torch.inference_mode()
    def build_prompts(
        self,
        conversations: Sequence[Messages],
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        only_speech: bool = False,
    ) -> list[Prompt]:
        """Builds the prompt embeddings of each conversation: text embeddings and audio tokens in order.

        Args:
            chat_template_kwargs: variables of the chat template
            only_speech: refuses sound in which nobody speaks

        Raises:
            CheckpointError: an ear that was loaded without its LLM
            RequestError: as `chat`
            AudioError: as `chat`
        """
        self._check_llm_is_loaded()
        parsed = [parse_conversation(messages) for messages in conversations]
        sources = [sound for conversation in parsed for sound in conversation.sounds]
        is_heard = [isinstance(source, Listener) for source in sources]
        sounds = [load_speech(source) for source in sources if not isinstance(source, Listener)]
        template = self.template.with_variables(chat_template_kwargs)
        layouts = [template.render(conversation) for conversation in parsed]
        listeners = [source for source in sources if isinstance(source, Listener)]
        heard = iter([each.finish_speech() if only_speech else each.finish() for each in listeners])
        embedded = iter(self.embed_speech(sounds) if only_speech else self.embed_audio(sounds))
        found = [next(heard if is_before else embedded) for is_before in is_heard]
        spoken = [tokens for tokens in found if tokens is not None]
        if len(spoken) < len(found):
            raise build_no_speech_error()
        tokens = iter(spoken)
        return [
            self.build_prompt(pieces, [next(tokens) for _ in conversation.sounds])
            for pieces, conversation in zip(layouts, parsed, strict=True)
        ]

    def build_prompt(self, segments: Sequence[Segment], tokens: Sequence[Float[Tensor, "_ D"]]) -> Prompt:
        """Builds the prompt embeddings of a rendered conversation from the audio tokens of its sounds."""
        placeholder = next(i for segment in segments if isinstance(segment, TextSegment) for i in segment.ids)
        embeds, ids = [], []
        for segment in segments:
            is_audio = isinstance(segment, AudioSegment)
            embeds.append(tokens[segment.index] if is_audio else self.embed(segment.ids))
            ids += [placeholder] * len(embeds[-1]) if is_audio else segment.ids
        return Prompt(torch.cat(embeds), torch.tensor(ids, device=self.device))

    def embed(self, ids: Sequence[int] | Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns the LLM's input embeddings, scaled as its first layer gets them.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
        """
        self._check_llm_is_loaded()
        return embed(self.llm, ids)

    def _check_llm_is_loaded(self) -> None:
        if get_input_embeddings(self.llm).weight.is_meta:
            raise CheckpointError(
                "this ear was loaded without its LLM: it can hear and transcribe, but not answer; load it with"
                " with_llm=True"
            )

    # The cascade

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Uploads the ear and returns the address of its commit; options as of `ossicle.push_to_hub`."""
        import ossicle  # uploading stands above ears

        return ossicle.push_to_hub(self, repo, **options)

    def transcribe(self, sources: Sequence[AudioSource]) -> list[str]:
        """Transcribes sounds with Whisper's own decoder: the first half of the plain cascade.

        Long sound is split as `hear` splits it, so that both are compared on equal terms.
        """
        return [transcript.text for transcript in self.transcribe_with_language(sources)]

    def transcribe_with_language(
        self,
        sources: Sequence[AudioSource],
        *,
        languages: Sequence[str | None] | None = None,
        previous: str = "",
        temperature: float = 0.0,
        task: Task = "transcribe",
        has_timestamps: bool = False,
    ) -> list[Transcript]:
        """Transcribes as `transcribe`, and names the language of each sound and when its parts were said.

        Args:
            languages: the language of each sound, as a code or name; None to detect it in the first window with words
            previous: a text whose style and spelling Whisper continues, such as names
            temperature: of sampling; 0 is greedy
            task: "translate" writes English, whatever is spoken
            has_timestamps: whether segments are those of Whisper's own timestamps; else they are windows

        Raises:
            RequestError: a language that the Whisper does not know, a previous text or a task that it cannot take, or
                another number of languages than of sounds
        """
        sounds = [load_speech(source) for source in sources]
        windows_of = [locate_windows(sound, self.whisper.window_samples) for sound in sounds]
        given = languages or [None] * len(sounds)
        if len(given) != len(sounds):
            raise RequestError(
                f"{len(given)} languages for {len(sounds)} sounds: expected one for each, or none"
            )
        codes = [find_language(self.whisper.prompt, name) if name else None for name in given]

        def transcribe_batch(batch: Sequence[tuple[np.ndarray, str | None]]) -> list[Transcript]:
            windows, spoken = zip(*batch, strict=True)
            return transcribe_windows(
                self.whisper,
                windows,
                spoken,
                previous=previous,
                temperature=temperature,
                task=task,
                has_timestamps=has_timestamps,
            )

        def transcribe(windows: Sequence[tuple[np.ndarray, str | None]]) -> list[Transcript]:
            lengths = [self.whisper.window_samples] * len(windows)
            return self._map_batches(windows, lengths, transcribe_batch)

        first = transcribe([(windows[0][1], code) for windows, code in zip(windows_of, codes, strict=True)])
        following = [
            (window, start.language if start.text or code else None)
            for windows, start, code in zip(windows_of, first, codes, strict=True)
            for _, window in windows[1:]
        ]
        rest = iter(transcribe(following))
        return [
            _join_transcripts(windows, [start, *(next(rest) for _ in windows[1:])])
            for windows, start in zip(windows_of, first, strict=True)
        ]

    # Student and teacher

    @cached_property
    def packed_llm(self) -> PackedLlm:
        """The LLM with the keys and values of the chat template's prefix."""
        prefix, _ = self.template.frame
        return PackedLlm(self.llm, prefix)

    def llm_states(
        self,
        middle: Float[Tensor, "B M D"],
        n_middle: Sequence[int],
        n_last: Sequence[int],
        *,
        after: Float[Tensor, "B A D"] | None = None,
        n_after: Sequence[int] = (),
    ) -> Float[Tensor, "B P D"]:
        """Returns the LLM's last hidden states, after its final norm, at the last positions of one user turn.

        The turn is [prefix; middle; suffix; after]. Gradients flow to `middle`; the LLM itself has none. Lengths are
        taken from the host, so that the device is not waited for.

        Args:
            middle: audio tokens or text embeddings
            n_middle: rows of `middle` that belong to each clip
            n_last: number of states to return for each clip, all of them after the prefix; they end together
            after: embeddings of the LLM's answer so far
            n_after: rows of `after` that belong to each clip
        """
        _, suffix_ids = self.template.frame
        suffix = self.embed(suffix_ids)
        (n_clips, longest), n_suffix = middle.shape[:2], len(suffix)
        answer = suffix[:0] if after is None else after.flatten(0, 1)
        table = torch.cat([middle.flatten(0, 1), suffix, answer.to(suffix.dtype)]).to(suffix.dtype)
        suffix_rows = n_clips * longest + np.arange(n_suffix)
        texts = []
        for clip, n in enumerate(n_middle):
            rows = [clip * longest + np.arange(n), suffix_rows]
            if after is not None:
                rows.append(suffix_rows[-1] + 1 + clip * after.shape[1] + np.arange(n_after[clip]))
            texts.append(np.concatenate(rows))
        return self.packed_llm.compute_last_states(table, texts, n_last)

    def next_token_logits(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Computes next-token logits from last hidden states, as the LLM itself does."""
        return compute_logits(self.llm, states)


def _list_states(features: Features) -> list[Float[Tensor, "_ E"]]:
    """Returns each clip's own states, with those of the silence behind it, if that is stored."""
    n_behind = features.states.shape[1] - features.mask.shape[1]
    is_own = functional.pad(features.mask, (0, n_behind), value=True)
    return [own[kept] for own, kept in zip(features.states, is_own, strict=True)]


def _find_doubtful(audio: AudioTokens) -> list[int]:
    """Returns the clips whose words are so unlikely that perhaps nobody speaks; all, where that is not known."""
    if audio.mean_log_prob is None:
        return list(range(len(audio.n_tokens)))
    return (audio.mean_log_prob < DOUBTFUL_MEAN_LOG_PROB).nonzero()[:, 0].tolist()


def _join_transcripts(
    windows: Sequence[tuple[int, np.ndarray]], transcripts: Sequence[Transcript]
) -> Transcript:
    """Returns the transcript of a sound from those of its windows."""
    segments: list[TranscriptSegment] = []
    for (start, window), transcript in zip(windows, transcripts, strict=True):
        start_s = start / SAMPLE_RATE
        whole = TranscriptSegment(transcript.text, 0.0, len(window) / SAMPLE_RATE)
        segments += [
            replace(part, start_s=round(start_s + part.start_s, 3), end_s=round(start_s + part.end_s, 3))
            for part in transcript.segments or [whole]
            if part.text
        ]
    text = _join_texts([transcript.text for transcript in transcripts])
    languages = [transcript.language for transcript in transcripts if transcript.text]
    return Transcript(text, languages[0] if languages else transcripts[0].language, tuple(segments))


def _join_texts(windows: Sequence[str]) -> str:
    """Joins the texts of one sound's windows."""
    return " ".join(filter(None, windows))


def check_tokenizer_fits(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> None:
    """Raises CheckpointError for a tokenizer of another LLM, which would end in an index error, on a GPU a fatal one."""
    n_rows = get_input_embeddings(llm).num_embeddings
    n_needed = max(tokenizer.vocab_size, max(*template.frame.prefix, *template.frame.suffix) + 1)
    if n_needed > n_rows:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name_or_path!r} has {n_needed} tokens, but the LLM has embeddings for"
            f" {n_rows}: expected the tokenizer that the LLM was trained with"
        )
