"""Proof that the LLM within an ear is untouched: all of its weights hashed, its answers to texts token for token.

Beside it stands the same LLM as transformers alone loads and asks it. The two are loaded one after the other, as many
a computer has room for one.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ossicle import checkpoint
from ossicle.backbones.model_files import resolve_model_path
from ossicle.backbones.pretrained import load_llm
from ossicle.console_progress import ProgressCallback
from ossicle.ear import EarSettings
from ossicle.evaluation import reference_llm
from ossicle.evaluation.suite import POCKET_SUITE, load_suite
from ossicle.evaluation.weight_hash import WeightHashes, hash_weights

PROMPTS = (
    *("what is the capital of japan", "what is the opposite of cold", "how many legs does a spider have"),
    *("what is seven plus eight", "what does night mean in spanish", "how do you spell bread"),
    *("count from two to five", "what month comes after october", "which is bigger a dog or a mouse"),
    *("what is the plural of leaf", "what do you call a young sheep", "how are you today"),
    "Explain in two sentences why the sky is blue.",
    "Write a haiku about the sea.",
    "Translate into French: The train leaves at half past nine.",
    "A shirt costs 40 euros after a discount of 20 percent. What did it cost before?",
    "Write a Python function that tells whether a word is a palindrome.",
    "List three differences between a violin and a cello.",
    'Give me a JSON object with the keys "name" and "age".',
    "Summarise the story of Little Red Riding Hood in one sentence.",
    "Who wrote Pride and Prejudice, and in which year did it appear?",
    "Which of these does not belong: apple, pear, hammer, plum? Say why.",
    "Schreibe einen Satz über den Winter.",
    "请用一句话介绍北京。",
)
"""What is asked unless something else is: small questions, which the embedded LLM knows, and larger ones."""
MAX_NEW_TOKENS = 64

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """What the LLM shows that transformers alone loads and asks."""

    weights: WeightHashes
    tokenizer: str
    """Hash of its vocabulary and chat template."""
    prompts: tuple[Ids, ...]
    answers: tuple[Ids, ...]
    """Greedy, with the token that ends them where they came to an end."""
    texts: tuple[str, ...]
    """The answers as words."""


@dataclass(frozen=True, kw_only=True)
class EarResult:
    """What the LLM shows that is within an ear."""

    settings: EarSettings
    dtype: str
    weights: WeightHashes
    """After all that was asked and heard."""
    tokenizer: str
    recorded_fingerprint: str
    """The LLM's fingerprint in the ear's folder: of the one that the ear was distilled against."""
    fingerprint: str
    """Its fingerprint after all that was asked and heard."""
    prompts: tuple[Ids, ...]
    answers_before: tuple[Ids, ...]
    """The answers before it has heard anything."""
    answer_to_sound: str
    """Its answer to a sound."""
    answers_after: tuple[Ids, ...]
    """The answers after that."""


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """Whether an ear's LLM is the stock one, with all that says so."""

    ear: str
    prompts: tuple[str, ...]
    reference: ReferenceResult
    in_ear: EarResult

    @property
    def differences(self) -> tuple[str, ...]:
        """What is not the same, in words; nothing if the LLM is untouched."""
        stock, within = self.reference, self.in_ear
        found = []
        if changed := stock.weights.differences(within.weights):
            found.append(f"{len(changed)} of {len(stock.weights.digests)} tensors, such as {changed[0]}")
        if stock.tokenizer != within.tokenizer:
            found.append("the tokenizer")
        if within.recorded_fingerprint != within.fingerprint:
            found.append(
                f"the fingerprint, {within.fingerprint} where {within.recorded_fingerprint} is recorded"
            )
        found += self._unlike("prompts' tokens", stock.prompts, within.prompts)
        found += self._unlike("answers before hearing", stock.answers, within.answers_before)
        found += self._unlike("answers after hearing", stock.answers, within.answers_after)
        return tuple(found)

    def _unlike(self, what: str, one: Sequence[Ids], other: Sequence[Ids]) -> list[str]:
        asked = [prompt for prompt, a, b in zip(self.prompts, one, other, strict=True) if a != b]
        return [f"{len(asked)} of {len(self.prompts)} {what}, such as {asked[0]!r}"] if asked else []

    def to_json(self) -> dict[str, Any]:
        """All of it, of the tensors one hash."""
        stock, within = self.reference, self.in_ear
        rows = zip(
            self.prompts, stock.texts, stock.answers, within.answers_before, within.answers_after, strict=True
        )
        keys = ("prompt", "answer", "stock", "before_hearing", "after_hearing")
        return {
            "ear": self.ear,
            "llm": within.settings.base.llm,
            "dtype": within.dtype,
            "is_untouched": not self.differences,
            "differences": [*self.differences],
            "n_tensors": len(stock.weights.digests),
            "n_values": stock.weights.n_values,
            "n_bytes": stock.weights.n_bytes,
            "weights_sha256": {"stock": stock.weights.sha256, "within": within.weights.sha256},
            "tokenizer": {"stock": stock.tokenizer, "within": within.tokenizer},
            "fingerprint": {"recorded": within.recorded_fingerprint, "within": within.fingerprint},
            "answer_to_sound": within.answer_to_sound,
            "answers": [dict(zip(keys, row, strict=True)) for row in rows],
        }


def verify(
    ear: str,
    prompts: Sequence[str] = PROMPTS,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: ProgressCallback | None = None,
) -> VerificationReport:
    """Compares the LLM within an ear with the stock one; what differs, if anything does, is in the verdict.

    Prompts are asked one by one: the two ways through an LLM round alike only if nothing stands beside them.

    Args:
        ear: its folder or a run's, or "pocket/ear" for the embedded one
        prompts: one user turn each
        progress: called before and after each item of each stage

    Raises:
        CheckpointError: not an ear, a damaged one, or one of other bases than those it was distilled against
        RequestError: a prompt that cannot be asked, such as one with a control token
    """
    tell = progress or (lambda stage, n_done, n: None)
    within = _ask_within(ear, prompts, max_new_tokens, tell)
    _free_memory()
    beside = _ask_stock(within.settings, prompts, max_new_tokens, tell)
    return VerificationReport(ear=ear, prompts=tuple(prompts), reference=beside, in_ear=within)


def _ask_within(name: str, prompts: Sequence[str], max_new_tokens: int, tell: ProgressCallback) -> EarResult:
    ear = checkpoint.load(name)
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]

    def asked(stage: str) -> tuple[Ids, ...]:
        answers = [
            tuple(ear.generate_ids_batch([talk], max_new_tokens=max_new_tokens)[0])
            for talk in _told(talks, stage, tell)
        ]
        return tuple(answers)

    before = asked("asking the ear")
    spoken = ear.chat(_spoken_turn(), max_new_tokens=max_new_tokens)
    after = asked("once it has heard")
    return EarResult(
        settings=ear.settings,
        dtype=str(ear.llm.dtype).removeprefix("torch."),
        weights=hash_weights(ear.llm, lambda n_done, n: tell("hashing its LLM", n_done, n)),
        tokenizer=checkpoint.fingerprint_tokenizer(ear.tokenizer),
        recorded_fingerprint=_recorded(name),
        fingerprint=checkpoint.fingerprint_model(ear.llm),
        prompts=tuple(tuple(ear.build_prompts([talk])[0].ids.tolist()) for talk in talks),
        answers_before=before,
        answer_to_sound=spoken,
        answers_after=after,
    )


def _spoken_turn() -> list[dict[str, Any]]:
    """A question aloud; of the embedded suite, as any sound will do."""
    sound = load_suite(POCKET_SUITE)[0].audio
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]


def _recorded(name: str) -> str:
    """The LLM's fingerprint in an ear's folder, or in that of a run."""
    folder = Path(resolve_model_path(name))
    place = folder if (folder / checkpoint.CONFIG).is_file() else folder / checkpoint.RUN_EAR
    return json.loads((place / checkpoint.CONFIG).read_text(encoding="utf-8"))["fingerprints"]["llm"]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ask_stock(
    settings: EarSettings, prompts: Sequence[str], max_new_tokens: int, tell: ProgressCallback
) -> ReferenceResult:
    base = settings.base
    llm, tokenizer = reference_llm.load_reference_llm(base)
    asked = [reference_llm.encode_prompt(tokenizer, prompt, settings.prompt) for prompt in prompts]
    answers = [
        reference_llm.generate_answer(llm, tokenizer, ids, max_new_tokens)
        for ids in _told(asked, "asking the stock LLM", tell)
    ]
    if llm.config.get_text_config(decoder=True) is not llm.config:
        # It sees as well, and the ear has only the LLM within it: the same tensors by other names.
        device = llm.device
        del llm
        _free_memory()
        llm, _ = load_llm(base.llm, base.llm_revision, device)
    return ReferenceResult(
        weights=hash_weights(llm, lambda n_done, n: tell("hashing the stock LLM", n_done, n)),
        tokenizer=checkpoint.fingerprint_tokenizer(tokenizer),
        prompts=tuple(asked),
        answers=tuple(answers),
        texts=tuple(str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers),
    )


def _told(items: Sequence[Any], stage: str, tell: ProgressCallback) -> Iterator[Any]:
    """The items, with word of how many of them are done."""
    for n_done, item in enumerate(items):
        tell(stage, n_done, len(items))
        yield item
    tell(stage, len(items), len(items))
