"""The pocket chat LLM, trained from random weights on the pocket world's conversations (text only)."""

import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.pocket import world

BATCH_SIZE, WARMUP_STEPS = 48, 100
STAGES = ((3_000, 2e-3), (1_500, 1.2e-3), (700, 8e-4))
"""Steps and peak learning rate of each training stage. Later stages draw the skills that are still hard more often."""
HARD_SKILL_WEIGHTS = {"repeating": 4, "sums": 3, "differences": 3, "spanish words": 2, "opposites": 2}
"""How often later stages draw these skills, relative to the others."""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant with ears.",
    "You are ossicle.",
)
_FUNCTION_WORDS = "what is the of tell me do you how does a an in can".split()
_NAME_UNKNOWN_ANSWER = "I do not know your name yet."


def _maybe_as_typed(text: str, rng: random.Random) -> str:
    """Returns a text as it is spoken (mostly), or as a person would type it."""
    if rng.random() < 0.65:
        return text
    words = [
        word.capitalize() if word in _CAPITALIZED_WORDS or word == "i" else word for word in text.split()
    ]
    written = " ".join(words)
    return written[:1].upper() + written[1:] + rng.choice(("?", ".", "", ""))


_CAPITALIZED_WORDS = {
    *world.facts.CAPITALS,
    *world.facts.CAPITALS.values(),
    *world.facts.NAMES,
    *world.facts.DAYS,
    "spanish",
}


def _corrupt_function_word(text: str, rng: random.Random) -> str:
    """Returns the text with one function word dropped, doubled or replaced, as people and ASR models do."""
    words = text.split()
    candidates = [place for place, word in enumerate(words) if word in _FUNCTION_WORDS]
    if not candidates or len(words) < 4:
        return text
    position = rng.choice(candidates)
    words[position] = rng.choice(("", words[position] + " " + words[position], rng.choice(_FUNCTION_WORDS)))
    return " ".join(" ".join(words).split())


def _draw_question_turn(rng: random.Random, weights_hard_skills: bool) -> tuple[str, str]:
    drawn = [skill(rng) for skill in world.SKILLS]
    exchange = rng.choices(
        drawn, [HARD_SKILL_WEIGHTS.get(e.skill, 1) if weights_hard_skills else 1 for e in drawn]
    )[0]
    question = exchange.question
    if exchange.skill != "repeating" and rng.random() < 0.12:
        question = _corrupt_function_word(question, rng)
    question = _maybe_as_typed(question, rng) if exchange.skill != "repeating" else question
    kind = rng.choice(list(world.INSTRUCTIONS)) if rng.random() < 0.4 else None
    answer = exchange.answer_for(kind) if kind else None
    if kind is None or answer is None:
        return question, exchange.answer
    instruction = rng.choice(world.INSTRUCTIONS[kind])
    gap = rng.choice((" ", " ", "\n"))
    content = f"{instruction}{gap}{question}" if rng.random() < 0.2 else f"{question}{gap}{instruction}"
    return content, answer


def _draw_statement_turn(rng: random.Random) -> tuple[str, str]:
    statement = world.draw_statement(rng) if rng.random() < 0.4 else world.draw_word_sequence(rng)
    return _maybe_as_typed(statement, rng), f"You said {statement}."


def draw_conversation(rng: random.Random, weights_hard_skills: bool) -> list[dict[str, str]]:
    """Returns one to three turns, sometimes with a system prompt, sometimes about the user's name."""
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    turns = [
        _draw_statement_turn(rng) if rng.random() < 0.25 else _draw_question_turn(rng, weights_hard_skills)
        for _ in range(rng.choices((1, 2, 3), (0.7, 0.2, 0.1))[0])
    ]
    if rng.random() < 0.12:
        recall = rng.choice(("what is my name", "do you remember my name", "who am i"))
        answer = _NAME_UNKNOWN_ANSWER
        if rng.random() < 0.8:
            introduction = world.draw_introduction(rng)
            name = introduction.split()[-1].capitalize()
            turns.insert(
                rng.randint(0, len(turns)), (_maybe_as_typed(introduction, rng), f"Nice to meet you, {name}.")
            )
            answer = f"Your name is {name}."
        turns.append((_maybe_as_typed(recall, rng), answer))
    elif rng.random() < 0.06:
        introduction = world.draw_introduction(rng)
        turns.append((introduction, f"Nice to meet you, {introduction.split()[-1].capitalize()}."))
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _encode_conversation(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]
) -> tuple[list[int], list[int]]:
    """Returns token ids and labels. Only the assistant's tokens, with their end token, are labels."""
    ids: list[int] = [tokenizer.bos_token_id]
    labels = [-100]
    for message in messages:
        role = tokenizer.get_vocab()[f"<|{message['role']}|>"]
        content_ids = [
            *tokenizer(message["content"].strip(), add_special_tokens=False).input_ids,
            tokenizer.eos_token_id,
        ]
        ids += [role, *content_ids]
        labels += [-100, *(content_ids if message["role"] == "assistant" else [-100] * len(content_ids))]
    return ids, labels


def _draw_batches(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, weights_hard_skills: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches of conversations of similar length, without end."""
    while True:
        encoded = sorted(
            (
                _encode_conversation(tokenizer, draw_conversation(rng, weights_hard_skills))
                for _ in range(16 * BATCH_SIZE)
            ),
            key=lambda e: len(e[0]),
        )
        batches = [encoded[first : first + BATCH_SIZE] for first in range(0, len(encoded), BATCH_SIZE)]
        for batch in rng.sample(batches, len(batches)):
            yield _collate(batch, tokenizer.pad_token_id)


def _collate(encoded: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    max_length = max(len(ids) for ids, _ in encoded)
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (max_length - len(ids)) for ids, _ in encoded]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (max_length - len(ids)) for ids, _ in encoded]
        ),
        "labels": torch.tensor([labels + [-100] * (max_length - len(labels)) for _, labels in encoded]),
    }


def build_llm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns the pocket LLM with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def compute_lr_factor(step: int, n_steps: int, n_warmup_steps: int) -> float:
    """Returns the factor of the peak learning rate: linear warm-up, then half a cosine down to 3 %."""
    if step < n_warmup_steps:
        return (step + 1) / n_warmup_steps
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (step - n_warmup_steps) / (n_steps - n_warmup_steps)))


def train_llm(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Trains a new LLM for all `STAGES`. Writes model and tokenizer to `folder`."""
    torch.manual_seed(0)
    save_llm(build_llm(tokenizer), tokenizer, folder)
    for number in range(len(STAGES)):
        train_stage(tokenizer, folder, number)


def train_stage(tokenizer: PreTrainedTokenizerFast, folder: Path, stage: int) -> None:
    """Trains the weights in `folder` for one of the `STAGES` and writes them back."""
    n_steps, peak_lr = STAGES[stage]
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_lr_factor(step, n_steps, WARMUP_STEPS)
    )
    batches = _draw_batches(tokenizer, random.Random(f"llm {stage}"), weights_hard_skills=stage > 0)
    start_s = time.monotonic()
    for step in range(n_steps):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print_progress(f"step {step} loss {loss.item():.4f} {time.monotonic() - start_s:.0f} s")
    save_llm(model, tokenizer, folder)


def print_progress(line: str) -> None:
    """Prints a line of progress without delay."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def save_llm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes model and tokenizer in Hugging Face format, with weights rounded to bfloat16 to save space."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    small = LlamaForCausalLM(model.config).to(torch.bfloat16)
    small.load_state_dict(weights)
    small.tie_weights()
    small.generation_config.eos_token_id = tokenizer.eos_token_id
    small.generation_config.pad_token_id = tokenizer.pad_token_id
    small.generation_config.do_sample = False
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def evaluate_llm(folder: Path, n_questions: int = 500) -> float:
    """Returns the ratio of questions that the saved LLM answers exactly. Three of five ask for a form, if possible."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rng = random.Random("exam")
    n_correct = 0
    for _ in range(n_questions):
        exchange = rng.choice(world.SKILLS)(rng)
        kind = rng.choice([None, None, *world.INSTRUCTIONS])
        expected = (kind and exchange.answer_for(kind)) or exchange.answer
        question = exchange.question
        if kind and exchange.answer_for(kind):
            question += " " + world.INSTRUCTIONS[kind][0]
        ids, _ = _encode_conversation(tokenizer, [{"role": "user", "content": question}])
        ids = torch.tensor([[*ids, tokenizer.convert_tokens_to_ids("<|assistant|>")]])
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
        n_correct += answer == expected
        if answer != expected:
            print_progress(f"  {question!r}: {answer!r}, expected {expected!r}")
    return n_correct / n_questions
