"""The two tokenizers of the pocket world: the same byte-level BPE for the LLM and for Whisper."""

import json
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, WhisperTokenizer

from tools.pocket import facts, world

N_BPE_TOKENS = 2_560
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLM_SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
WHISPER_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def _build_corpus() -> list[str]:
    rng = random.Random(2)
    spoken = [word for word in world.vocabulary() for _ in range(40)]
    spoken += [word[:1].upper() + word[1:] for word in world.vocabulary() for _ in range(12)]
    spoken += [word for word in facts.SPANISH.values() for _ in range(12)]
    answers = [skill(rng).answer for skill in world.SKILLS for _ in range(400)]
    instructions = [text for forms in world.INSTRUCTIONS.values() for text in forms] * 20
    return [
        *spoken,
        *instructions,
        *answers,
        *(answer.upper() for answer in answers[::4]),
        *world.SMALL_TALK.values(),
    ]


def train_bpe() -> Tokenizer:
    """Returns a byte-level BPE in which each word of the pocket world is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_BPE_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_build_corpus(), trainer)
    return tokenizer


def build_llm_tokenizer(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """Returns the chat LLM's tokenizer, with its chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(LLM_SPECIAL_TOKENS[3:])})
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 512
    return tokenizer


def build_whisper_tokenizer(bpe: Tokenizer) -> WhisperTokenizer:
    """Returns a Whisper tokenizer with the same tokens. It is English-only: its prompt has no language and no task."""
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = WhisperTokenizer(vocab=model["vocab"], merges=merges, add_prefix_space=True)
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(token, special=True, normalized=False) for token in WHISPER_SPECIAL_TOKENS
            ]
        }
    )
    return tokenizer
