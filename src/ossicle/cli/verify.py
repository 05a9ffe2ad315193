"""ossicle verify."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ossicle.atomic_io import write_text
from ossicle.cli.terminal import EarName
from ossicle.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ossicle.evaluation.verify import VerificationReport

CountOption = Annotated[int | None, arg(metavar="N")]
FileOption = Annotated[Path | None, arg(metavar="FILE")]
_N_HASH_DIGITS = 16
"""Hexadecimal digits of a hash that are shown; the JSON has all."""
_DEFAULT_N_PROMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Prove that the LLM within an ear is untouched: all weights hashed, its answers to texts token for token."""

    ear: Positional[EarName]
    """An ear's folder or a run's, or pocket/ear for the embedded one."""
    n_prompts: CountOption = None
    """How many prompts; without it 20 that come with ossicle, or all of the file."""
    prompts: FileOption = None
    """Texts to ask, one a line, in place of those that come with ossicle."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 64
    """Longest answer, in tokens."""
    json: FileOption = None
    """File to write all of it to, every answer included."""

    def run(self, command_line: str) -> int:
        """Prints what was compared; an LLM that is not the stock one is an error."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        asked = self._select_prompts()
        from ossicle.console_progress import ConsoleProgress
        from ossicle.evaluation.verify import verify

        with ConsoleProgress(Console(stderr=True)) as progress:
            verdict = verify(self.ear, asked, max_new_tokens=self.max_new_tokens, progress=progress)
        if self.json is not None:
            write_text(self.json, json.dumps(verdict.to_json(), indent=1, ensure_ascii=False) + "\n")
        _print_report(verdict, Console())
        if verdict.differences:
            raise CheckpointError(
                f"the LLM within {self.ear} is not {verdict.in_ear.settings.base.llm} as transformers loads it; other"
                f" are: {'; '.join(verdict.differences)}; copy or download both again, or report it"
            )
        return 0

    def _select_prompts(self) -> tuple[str, ...]:
        if self.prompts is None:
            from ossicle.evaluation.verify import PROMPTS

            given, default, where = PROMPTS, _DEFAULT_N_PROMPTS, "that come with ossicle"
        else:
            given = _read_prompts(self.prompts)
            default, where = len(given), f"in {self.prompts}"
        n = default if self.n_prompts is None else self.n_prompts
        if not 1 <= n <= len(given):
            raise ConfigError(
                f"--n-prompts is {n}, expected 1 to {len(given)}, which are the prompts {where}"
            )
        return given[:n]


def _read_prompts(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {path} is not UTF-8: give a text file, one prompt a line") from error
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise ConfigError(f"--prompts {path} has no prompts: write one a line")
    return lines


def _print_report(verdict: "VerificationReport", console: Console) -> None:
    stock, within = verdict.reference, verdict.in_ear
    n = len(verdict.prompts)
    size = f"{len(stock.weights.digests)} tensors, {stock.weights.n_values:,} values, {within.dtype}"
    rows = [
        ("weights, SHA-256", stock.weights.sha256, within.weights.sha256),
        ("tokenizer", stock.tokenizer, within.tokenizer),
        ("fingerprint in the ear", within.recorded_fingerprint, within.fingerprint),
        (f"prompts, of {n}", *_count_same(stock.prompts, within.prompts)),
        (f"answers before hearing, of {n}", *_count_same(stock.answers, within.answers_before)),
        (f"answers after hearing, of {n}", *_count_same(stock.answers, within.answers_after)),
    ]
    table = Table(box=None, pad_edge=False)
    for column in ("", "stock", "within the ear", ""):
        table.add_column(column)
    for name, one, other in rows:
        table.add_row(
            name, one[:_N_HASH_DIGITS], other[:_N_HASH_DIGITS], "same" if one == other else "[bold]differs"
        )
    console.out(f"{within.settings.base.llm}: {size}", highlight=False)
    console.print(table, highlight=False)
    console.out(f"It answered a sound in between: {within.answer_to_sound}", highlight=False)
    if not verdict.differences:
        console.out("The LLM is untouched.", highlight=False)


def _count_same(one: tuple[tuple[int, ...], ...], other: tuple[tuple[int, ...], ...]) -> tuple[str, str]:
    """How many there are, and how many of them are the same, token for token."""
    return str(len(one)), str(sum(a == b for a, b in zip(one, other, strict=True)))
