"""Verifies that the LLM in an ear is untouched: all of its weights by hash, its answers to texts token by token.

It is compared with the reference LLM: the same LLM as transformers alone loads and runs it. The two are loaded one
after the other, because many computers have memory for only one.
"""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ossicle import checkpoint
from ossicle.backbones.fingerprints import fingerprint_model, fingerprint_tokenizer
from ossicle.backbones.pretrained import load_llm
from ossicle.console_progress import ProgressCallback
from ossicle.ear import Ear, EarSettings
from ossicle.evaluation import reference_llm
from ossicle.evaluation.suite import POCKET_SUITE, load_suite

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
"""The default prompts: short questions, which the embedded LLM knows, and longer ones."""
MAX_NEW_TOKENS = 64
_VALUES_PER_CHUNK = 2**24
"""Values that are hashed at a time: weights on a GPU are copied to the host in chunks of this size."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WeightHashes:
    """Hashes of every parameter and every buffer of a model, including those that are stored in no file."""

    digests: dict[str, str]
    """SHA-256 of each tensor's type, shape and bytes, by its name."""
    n_values: int
    n_bytes: int

    @property
    def sha256(self) -> str:
        """One hash of all names and digests."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def find_differences(self, other: "WeightHashes") -> list[str]:
        """Returns the names of the tensors that are missing in one of the two, or that differ."""
        names = sorted({*self.digests, *other.digests})
        return [name for name in names if self.digests.get(name) != other.digests.get(name)]


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """Weights and answers of the reference LLM."""

    weights: WeightHashes
    tokenizer: str
    """Hash of its vocabulary and chat template."""
    prompts: tuple[TokenIds, ...]
    answers: tuple[TokenIds, ...]
    """Greedy answers, with the end token if they are complete."""
    texts: tuple[str, ...]
    """The answers as text."""


@dataclass(frozen=True, kw_only=True)
class EarResult:
    """Weights and answers of the LLM in an ear."""

    settings: EarSettings
    dtype: str
    weights: WeightHashes
    """Hashed after all prompts and the sound."""
    tokenizer: str
    recorded_fingerprint: str
    """The fingerprint in the ear's folder, of the LLM that the ear was distilled against."""
    fingerprint: str
    """The LLM's fingerprint after all prompts and the sound."""
    prompts: tuple[TokenIds, ...]
    answers_before: tuple[TokenIds, ...]
    """The answers before the ear has heard a sound."""
    answer_to_sound: str
    answers_after: tuple[TokenIds, ...]
    """The answers after the sound."""


@dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """The comparison of the LLM in an ear with the reference LLM."""

    ear: str
    prompts: tuple[str, ...]
    reference: ReferenceResult
    in_ear: EarResult

    @property
    def differences(self) -> tuple[str, ...]:
        """All differences in words; empty if the LLM is untouched."""
        reference, in_ear = self.reference, self.in_ear
        differences = []
        if changed := reference.weights.find_differences(in_ear.weights):
            differences.append(
                f"{len(changed)} of {len(reference.weights.digests)} tensors, such as {changed[0]}"
            )
        if reference.tokenizer != in_ear.tokenizer:
            differences.append("the tokenizer")
        if in_ear.recorded_fingerprint != in_ear.fingerprint:
            differences.append(
                f"the fingerprint, which is {in_ear.fingerprint} but {in_ear.recorded_fingerprint} in the ear's folder"
            )
        differences += self._compare_ids("prompts' tokens", reference.prompts, in_ear.prompts)
        differences += self._compare_ids("answers before hearing", reference.answers, in_ear.answers_before)
        differences += self._compare_ids("answers after hearing", reference.answers, in_ear.answers_after)
        return tuple(differences)

    def _compare_ids(self, name: str, ids: Sequence[TokenIds], others: Sequence[TokenIds]) -> list[str]:
        differing = [prompt for prompt, a, b in zip(self.prompts, ids, others, strict=True) if a != b]
        return (
            [f"{len(differing)} of {len(self.prompts)} {name}, such as {differing[0]!r}"] if differing else []
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values, with one hash for all tensors."""
        reference, in_ear = self.reference, self.in_ear
        keys = ("prompt", "answer", "reference", "before_hearing", "after_hearing")
        rows = zip(
            self.prompts,
            reference.texts,
            reference.answers,
            in_ear.answers_before,
            in_ear.answers_after,
            strict=True,
        )
        return {
            "ear": self.ear,
            "llm": in_ear.settings.base.llm,
            "dtype": in_ear.dtype,
            "is_unchanged": not self.differences,
            "differences": [*self.differences],
            "n_tensors": len(reference.weights.digests),
            "n_values": reference.weights.n_values,
            "n_bytes": reference.weights.n_bytes,
            "weights_sha256": {"reference": reference.weights.sha256, "in_ear": in_ear.weights.sha256},
            "tokenizer": {"reference": reference.tokenizer, "in_ear": in_ear.tokenizer},
            "fingerprint": {"recorded": in_ear.recorded_fingerprint, "in_ear": in_ear.fingerprint},
            "answer_to_sound": in_ear.answer_to_sound,
            "answers": [dict(zip(keys, row, strict=True)) for row in rows],
        }


def verify(
    ear: str,
    prompts: Sequence[str] = PROMPTS,
    *,
    encoder: str | None = None,
    llm: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: ProgressCallback | None = None,
) -> VerificationReport:
    """Compares the LLM in an ear with the reference LLM.

    Prompts are asked one by one, because the two ways through an LLM round in the same way only for single prompts.

    Args:
        ear: its folder or a run's, its hub id, or "pocket/ear" for the embedded one
        prompts: one user turn each
        encoder: another location of the ear's encoder
        llm: another location of its LLM
        progress: called before and after each item of each stage

    Raises:
        CheckpointError: not an ear, a damaged one, or one whose backbones differ from those it was distilled against
        RequestError: a prompt that cannot be asked, such as one with a control token
    """
    report_progress = progress or (lambda stage, n_done, n: None)
    loaded = checkpoint.load(ear, encoder=encoder, llm=llm)
    in_ear = _run_ear(ear, loaded, prompts, max_new_tokens, report_progress)
    del loaded
    _free_memory()
    reference = _run_reference(in_ear.settings, prompts, max_new_tokens, report_progress)
    return VerificationReport(ear=ear, prompts=tuple(prompts), reference=reference, in_ear=in_ear)


def hash_weights(
    model: nn.Module, progress: Callable[[int, int], None] = lambda n_done, n: None
) -> WeightHashes:
    """Hashes all weights of a model, copying no more than a chunk of one tensor at a time.

    Args:
        progress: called before the first tensor and after each, with the number of tensors done and of all tensors
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    digests: dict[str, str] = {}
    progress(0, len(tensors))
    for name, tensor in tensors.items():
        digests[name] = _hash_tensor(tensor.detach())
        progress(len(digests), len(tensors))
    return WeightHashes(
        digests=digests,
        n_values=sum(tensor.numel() for tensor in tensors.values()),
        n_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _hash_tensor(tensor: Shaped[Tensor, "..."]) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    for chunk in tensor.reshape(-1).split(_VALUES_PER_CHUNK):
        digest.update(chunk.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _run_ear(
    name: str, ear: Ear, prompts: Sequence[str], max_new_tokens: int, progress: ProgressCallback
) -> EarResult:
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]

    def answer_all(stage: str) -> tuple[TokenIds, ...]:
        answers = [
            tuple(ear.generate_ids_batch([conversation], max_new_tokens=max_new_tokens)[0])
            for conversation in _iterate_with_progress(conversations, stage, progress)
        ]
        return tuple(answers)

    answers_before = answer_all("asking the ear")
    answer_to_sound = ear.chat(_build_spoken_turn(), max_new_tokens=max_new_tokens)
    answers_after = answer_all("asking the ear after a sound")
    return EarResult(
        settings=ear.settings,
        dtype=str(ear.llm.dtype).removeprefix("torch."),
        weights=hash_weights(ear.llm, lambda n_done, n: progress("hashing the ear's LLM", n_done, n)),
        tokenizer=fingerprint_tokenizer(ear.tokenizer),
        recorded_fingerprint=checkpoint.read_fingerprints(name)["llm"],
        fingerprint=fingerprint_model(ear.llm),
        prompts=tuple(
            tuple(ear.build_prompts([conversation])[0].ids.tolist()) for conversation in conversations
        ),
        answers_before=answers_before,
        answer_to_sound=answer_to_sound,
        answers_after=answers_after,
    )


def _build_spoken_turn() -> list[dict[str, Any]]:
    """Returns a spoken question of the embedded suite; any sound would do."""
    sound = load_suite(POCKET_SUITE)[0].audio
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _run_reference(
    settings: EarSettings, prompts: Sequence[str], max_new_tokens: int, progress: ProgressCallback
) -> ReferenceResult:
    base = settings.base
    llm, tokenizer = reference_llm.load_reference_llm(base)
    prompt_ids = [reference_llm.encode_prompt(tokenizer, prompt, settings.prompt) for prompt in prompts]
    answers = [
        reference_llm.generate_answer(llm, tokenizer, ids, max_new_tokens)
        for ids in _iterate_with_progress(prompt_ids, "asking the reference LLM", progress)
    ]
    if llm.config.get_text_config(decoder=True) is not llm.config:
        # A vision-language model. The ear has only its LLM, whose tensors have other names there.
        device = llm.device
        del llm
        _free_memory()
        llm, _ = load_llm(base.llm, base.llm_revision, device)
    return ReferenceResult(
        weights=hash_weights(llm, lambda n_done, n: progress("hashing the reference LLM", n_done, n)),
        tokenizer=fingerprint_tokenizer(tokenizer),
        prompts=tuple(prompt_ids),
        answers=tuple(answers),
        texts=tuple(str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers),
    )


def _iterate_with_progress(items: Sequence[Any], stage: str, progress: ProgressCallback) -> Iterator[Any]:
    """Yields the items and reports how many are done."""
    for n_done, item in enumerate(items):
        progress(stage, n_done, len(items))
        yield item
    progress(stage, len(items), len(items))
