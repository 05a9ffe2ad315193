"""The ear: a frozen Whisper encoder, a trained connector and a frozen LLM, which together hear and answer.

It knows how sound and text become a prompt of embeddings, for the student (who hears) and the teacher (who
reads). How an answer is drawn from a prompt is `generate`'s business, how the connector learns is training's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ossicle.audio.waveform import SAMPLE_RATE, SILENCE_PEAK, AudioSource, load_audio, split_at_quiet
from ossicle.backbones.causal_lm import compute_logits, embed, get_input_embeddings
from ossicle.backbones.encoder import Features, build_mel_batch, encode
from ossicle.backbones.model_files import silence_transformers
from ossicle.backbones.packed_forward import PackedLlm
from ossicle.backbones.pretrained import Whisper, load_llm, load_whisper, resolve_device
from ossicle.chat import choice_scoring, generation
from ossicle.chat.choice_scoring import ContinuationScores
from ossicle.chat.generation import Prompt
from ossicle.chat.messages import parse_conversation
from ossicle.chat.prompt_segments import AudioSegment, Segment, TextSegment
from ossicle.chat.template import ChatTemplate
from ossicle.config import BaseSettings, ConnectorSettings, PromptSettings
from ossicle.connectors import Connector, build_connector
from ossicle.connectors.vocabulary_overlap import build_shared_vocabulary
from ossicle.errors import CheckpointError

Messages = Sequence[dict[str, Any]]
"""A conversation in OpenAI's form; content is a text or a list of parts of type "text" or "audio"."""
_Out = TypeVar("_Out")
_WINDOWS_AT_ONCE = 16
"""Full windows whose worth of sound is encoded together: an hour of sound must not need an hour's memory."""
_NAMED_AT_ONCE = 4_096
"""Audio tokens that are compared with all of the LLM's embeddings together."""
_LIKE_LENGTH, _LIKE_SAMPLES = 1.5, SAMPLE_RATE
"""Sounds that are heard together are padded to at most so many times their length, and so many samples."""


@dataclass(frozen=True, kw_only=True)
class EarSettings:
    """All that has to be known of an ear beside its weights."""

    base: BaseSettings = field(default_factory=BaseSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)


class Ear:
    """An open text LLM that hears.

    Only the connector is trained; the encoder and the LLM stay bit for bit what they were.
    """

    def __init__(
        self,
        whisper: Whisper,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        connector: Connector,
        settings: EarSettings,
    ) -> None:
        self.whisper, self.llm, self.tokenizer = whisper, llm, tokenizer
        self.connector, self.settings = connector, settings
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
        """An ear whose connector has not learned anything yet.

        Args:
            device: the first GPU if there is one
            llm_bits: 8 or 4 rounds the weights of the LLM's layers
            on_host: leaves the frozen models in the host's memory, ready to be spread over several devices

        Raises:
            CheckpointError: a base that cannot be found, is of the wrong kind or is damaged
            ConfigError: connector settings that do not fit the encoder, or no such device
        """
        place = resolve_device(device)
        base = settings.base
        whisper = load_whisper(base.encoder, base.encoder_revision, place, on_host=on_host)
        llm, tokenizer = load_llm(base.llm, base.llm_revision, place, bits=llm_bits, on_host=on_host)
        shared = build_shared_vocabulary(settings.connector, whisper, llm, tokenizer)
        connector = build_connector(
            whisper.config, settings.connector, get_input_embeddings(llm).embedding_dim, shared
        )
        if settings.connector.init == "whisper":
            connector.init_from_decoder(whisper.model.model.decoder)
        return cls(whisper, llm, tokenizer, connector.float().to(place).eval(), settings)

    @property
    def device(self) -> torch.device:
        """Where the ear lives; its LLM too, unless that was left out."""
        is_there = self.llm.device.type != "meta"
        return self.llm.device if is_there else next(self.connector.parameters()).device

    # Hearing

    @property
    def _hears_whole_windows(self) -> bool:
        return self.settings.base.encoder_window == "full"

    def encode_sounds(self, sounds: Sequence[np.ndarray]) -> Features:
        """The encoder's states for samples at 16 kHz.

        Raises:
            AudioError: a sound is longer than the encoder's window
        """
        config, n_frames = self.whisper.config, self.whisper.window_frames
        mel = build_mel_batch(sounds, config.num_mel_bins, n_frames, full_window=self._hears_whole_windows)
        return self.encode_mels(*mel)

    @torch.no_grad()
    def encode_mels(self, mel: Float[Tensor, "B M F"], n_frames: Int[Tensor, " B"]) -> Features:
        """The encoder's states for spectrograms, of which so many frames belong to each clip."""
        return encode(self.whisper.model.model.encoder, mel.to(self.device, non_blocking=True), n_frames)

    @overload
    def hear(self, source: list[AudioSource]) -> list[Float[Tensor, "_ D"]]: ...

    @overload
    def hear(self, source: AudioSource) -> Float[Tensor, "_ D"]: ...

    @torch.inference_mode()
    def hear(
        self, source: AudioSource | list[AudioSource]
    ) -> Float[Tensor, "_ D"] | list[Float[Tensor, "_ D"]]:
        """Audio tokens in the LLM's embedding space, for any engine that takes embeddings.

        Sound beyond the encoder's window is cut where it is quietest, and the tokens of the pieces stand in a row.

        Args:
            source: one sound gives one tensor; a list gives a list, heard in batches

        Raises:
            AudioError: not audio, or longer than an hour
        """
        sources = source if isinstance(source, list) else [source]
        heard = self._hear([load_audio(item) for item in sources])
        return heard if isinstance(source, list) else heard[0]

    def _hear(self, sounds: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"]]:
        heard = self._in_windows(sounds, self._hear_windows, is_full=self._hears_whole_windows)
        return [torch.cat(tokens) for tokens in heard]

    def _hear_windows(self, windows: Sequence[np.ndarray]) -> list[Float[Tensor, "_ D"]]:
        with self.autocast():
            audio = self.connector(self.encode_sounds(windows))
        tokens = audio.tokens.to(self.llm.dtype)
        return [row[:n] for row, n in zip(tokens, audio.n_tokens.tolist(), strict=True)]

    @torch.inference_mode()
    def transcribe_audio_tokens(self, sources: Sequence[AudioSource]) -> list[str]:
        """What it hears, written down: of each audio token the LLM's token that is nearest to it.

        An ear made a recogniser: what the LLM loses by this is what it has from words that were left open. Slots that
        stand for no word, as forms aligned to the right and frame stacks have them, are written down too.

        Raises:
            AudioError: not audio, or longer than an hour
            CheckpointError: an ear that was loaded without its LLM
        """
        self._check_can_read()
        sounds = [load_audio(source) for source in sources]
        return _joined(self._in_windows(sounds, self._spell_windows, is_full=self._hears_whole_windows))

    def _spell_windows(self, windows: Sequence[np.ndarray]) -> list[str]:
        heard = self._hear_windows(windows)
        names = self.nearest_tokens(torch.cat(heard)).split([len(tokens) for tokens in heard])
        texts = self.tokenizer.batch_decode([ids.tolist() for ids in names], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.inference_mode()
    def nearest_tokens(self, heard: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """The LLM's tokens whose embeddings are nearest to audio tokens, by L2.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
        """
        table = self.embed(torch.arange(get_input_embeddings(self.llm).num_embeddings)).float()
        return torch.cat([torch.cdist(rows, table).argmin(1) for rows in heard.float().split(_NAMED_AT_ONCE)])

    def _in_windows(
        self,
        sounds: Sequence[np.ndarray],
        call: Callable[[Sequence[np.ndarray]], list[_Out]],
        *,
        is_full: bool,
    ) -> list[list[_Out]]:
        """What `call` makes of the windows of each sound, a bounded number of them at a time, long with long.

        Args:
            is_full: whether `call` gives each of them the encoder's whole window
        """
        windows = [self._windows(sound) for sound in sounds]
        row = [window for pieces in windows for window in pieces]
        whole = self.whisper.window_samples
        made: dict[int, _Out] = {}
        for batch in _of_like_length(
            [whole if is_full else len(window) for window in row], _WINDOWS_AT_ONCE * whole
        ):
            made |= zip(batch, call([row[number] for number in batch]), strict=True)
        in_order = (made[number] for number in range(len(row)))
        return [list(islice(in_order, len(pieces))) for pieces in windows]

    def _windows(self, sound: np.ndarray) -> list[np.ndarray]:
        """The pieces in which a sound is heard; one of nothing but zeros would be made words of, and is left out."""
        pieces = split_at_quiet(sound, self.whisper.window_samples)
        return [piece for piece in pieces if np.abs(piece).max() >= SILENCE_PEAK] or pieces[:1]

    def autocast(self) -> torch.autocast:
        """How the connector is computed, in training and at inference alike: on a GPU in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    # Answering

    def chat(self, messages: Messages, **options: Any) -> str:
        """The LLM's answer to a conversation in which the user's parts may be sound; greedy by default.

        Args:
            options: for transformers' `generate`: max_new_tokens, do_sample, temperature, stop_strings, ...

        Raises:
            RequestError: a malformed conversation, one beyond the LLM's context, or an option that
                generate does not know
            AudioError: sound that cannot be heard
            CheckpointError: an ear that was loaded without its LLM
        """
        return self.chat_batch([messages], **options)[0]

    def chat_batch(self, conversations: Sequence[Messages], **options: Any) -> list[str]:
        """The answers to several conversations at once, each the same as if it were alone."""
        return generation.generate_answers(
            self.llm, self.tokenizer, self.build_prompts(conversations), **options
        )

    def read_batch(self, conversations: Sequence[Messages], **options: Any) -> list[str]:
        """The stock LLM's answers to conversations of text: what hearing is measured against."""
        return self.chat_batch(conversations, **options)

    def generate_ids_batch(self, conversations: Sequence[Messages], **options: Any) -> list[list[int]]:
        """The tokens of `chat_batch`'s answers, with the one that ends it where the LLM came to an end."""
        return generation.generate_answer_ids(
            self.llm, self.tokenizer, self.build_prompts(conversations), **options
        )

    def choose_batch(self, conversations: Sequence[Messages], choices: Sequence[str]) -> list[int]:
        """For each conversation, which of some words the LLM is likeliest to begin its answer with.

        Raises:
            RequestError: as `chat`; or no choices, an empty one, or two that are alike
            AudioError: sound that cannot be heard
        """
        return choice_scoring.choose(self.llm, self.tokenizer, self.build_prompts(conversations), choices)

    def score_continuations(
        self, conversations: Sequence[Messages], answers: Sequence[Sequence[int]]
    ) -> list[ContinuationScores]:
        """What the LLM would say to each conversation, and along an answer to it that is given as ids."""
        return choice_scoring.score_continuation(self.llm, self.build_prompts(conversations), answers)

    def stream(self, messages: Messages, **options: Any) -> Iterator[str]:
        """Pieces of the answer while it is made; joined, they equal `chat`.

        The conversation is checked and heard at once, not when the first piece is asked for.
        """
        return generation.stream_answer(
            self.llm, self.tokenizer, self.build_prompts([messages])[0], **options
        )

    @torch.inference_mode()
    def build_prompts(self, conversations: Sequence[Messages]) -> list[Prompt]:
        """What the LLM is given for each conversation: embeddings of text and audio tokens in a row.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
            RequestError: as `chat`
            AudioError: as `chat`
        """
        self._check_can_read()
        parsed = [parse_conversation(messages) for messages in conversations]
        sounds = [[load_audio(sound) for sound in conversation.sounds] for conversation in parsed]
        layouts = [self.template.render(conversation) for conversation in parsed]
        heard = iter(self._hear([sound for row in sounds for sound in row]))
        return [
            self.build_prompt(pieces, [next(heard) for _ in row])
            for pieces, row in zip(layouts, sounds, strict=True)
        ]

    def build_prompt(self, pieces: Sequence[Segment], tokens: Sequence[Float[Tensor, "_ D"]]) -> Prompt:
        """What the LLM is given for a conversation that `template.render` laid out, whose sounds were heard."""
        first = next(i for piece in pieces if isinstance(piece, TextSegment) for i in piece.ids)
        embeds, ids = [], []
        for piece in pieces:
            is_heard = isinstance(piece, AudioSegment)
            embeds.append(tokens[piece.index] if is_heard else self.embed(piece.ids))
            ids += [first] * len(embeds[-1]) if is_heard else piece.ids
        return Prompt(torch.cat(embeds), torch.tensor(ids, device=self.device))

    def embed(self, ids: Sequence[int] | Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The LLM's own input embeddings, as its first layer is given them: scaled where a family does.

        Raises:
            CheckpointError: an ear that was loaded without its LLM
        """
        self._check_can_read()
        return embed(self.llm, ids)

    def _check_can_read(self) -> None:
        if get_input_embeddings(self.llm).weight.is_meta:
            raise CheckpointError(
                "this ear was loaded without its LLM: it hears and transcribes, and cannot read or answer; load it"
                " with with_llm=True"
            )

    # The cascade

    @torch.inference_mode()
    def transcribe(self, sources: Sequence[AudioSource]) -> list[str]:
        """What the encoder's own decoder writes for each sound: the first half of the plain cascade.

        Long sound is cut as `hear` cuts it, so that both are measured on equal terms.
        """
        sounds = [load_audio(source) for source in sources]
        return _joined(self._in_windows(sounds, self._transcribe_windows, is_full=True))

    def _transcribe_windows(self, windows: Sequence[np.ndarray]) -> list[str]:
        model, config = self.whisper.model, self.whisper.config
        mel, _ = build_mel_batch(windows, config.num_mel_bins, self.whisper.window_frames, full_window=True)
        options: dict[str, Any] = {}
        if not model.generation_config.max_length:
            options["max_length"] = config.max_target_positions
        with silence_transformers():  # of advice about flags that published Whispers carry
            ids = model.generate(
                input_features=mel.to(self.device, model.dtype),
                attention_mask=torch.ones_like(mel[:, 0], dtype=torch.long, device=self.device),
                **options,
            )
        return [text.strip() for text in self.whisper.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    # Student and teacher

    @cached_property
    def packed_llm(self) -> PackedLlm:
        """The LLM behind the chat template's beginning."""
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
        """The LLM's final hidden states, after its last norm, at the last positions of one user turn.

        The turn is [prefix; middle; suffix; after], of which each clip has as many rows as are said to belong to it.
        Gradients flow to `middle`; the LLM itself has none. What is known on the host is taken from there, so that the
        device is not waited for.

        Args:
            n_last: how many states of each clip are wanted, from after the prefix on; they end together
            after: what the LLM has answered so far
        """
        _, behind_sound = self.template.frame
        suffix = self.embed(behind_sound)
        (n_clips, longest), n_suffix = middle.shape[:2], len(suffix)
        answer = suffix[:0] if after is None else after.flatten(0, 1)
        table = torch.cat([middle.flatten(0, 1), suffix, answer.to(suffix.dtype)]).to(suffix.dtype)
        behind = n_clips * longest + np.arange(n_suffix)
        texts = []
        for clip, n in enumerate(n_middle):
            own = [clip * longest + np.arange(n), behind]
            if after is not None:
                own.append(behind[-1] + 1 + clip * after.shape[1] + np.arange(n_after[clip]))
            texts.append(np.concatenate(own))
        return self.packed_llm.compute_last_states(table, texts, n_last)

    def next_token_logits(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Next-token logits from final hidden states, as the LLM itself makes them."""
        return compute_logits(self.llm, states)


def _joined(texts: Sequence[Sequence[str]]) -> list[str]:
    """The texts of each sound's windows as one."""
    return [" ".join(filter(None, pieces)) for pieces in texts]


def _of_like_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of sounds in batches, longest first, so that none is padded to one that is much longer.

    Args:
        most: samples of a batch, padding included, unless a single sound has more
    """
    batch: list[int] = []
    longest = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        is_like = longest <= _LIKE_LENGTH * lengths[number] + _LIKE_SAMPLES
        if batch and not (is_like and (len(batch) + 1) * longest <= most):
            yield batch
            batch = []
        longest = longest if batch else lengths[number]
        batch.append(number)
    if batch:
        yield batch


def check_tokenizer_fits(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate
) -> None:
    """Refuse a tokenizer of another LLM, which would end in an index error, on a GPU a fatal one."""
    n_rows = get_input_embeddings(llm).num_embeddings
    n_needed = max(tokenizer.vocab_size, max(*template.frame.prefix, *template.frame.suffix) + 1)
    if n_needed > n_rows:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name_or_path!r} has {n_needed} tokens, but the LLM has embeddings for"
            f" {n_rows}: expected the tokenizer that the LLM was trained with"
        )
