"""ossicle verify."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ossicle.atomic_io import write_text
from ossicle.cli.terminal import BaseName, EarName
from ossicle.errors import CheckpointError, ConfigError
from ossicle.text_encoding import read_text_file

if TYPE_CHECKING:
    from ossicle.evaluation.verify import VerificationReport

CountOption = Annotated[int | None, arg(metavar="N")]
FileOption = Annotated[Path | None, arg(metavar="FILE")]
_N_HASH_DIGITS = 16
"""Hexadecimal digits of a hash that the table shows; the JSON has all of them."""
_DEFAULT_N_PROMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Verify that the LLM in an ear is unchanged: hash all weights, and compare its answers to texts token by token."""

    ear: Positional[EarName]
    """Folder of an ear or of a run, hub id of an ear, or pocket/ear for the embedded one."""
    encoder: BaseName = None
    """Where the ear's encoder lies, if the ear was moved or given away without it: a local folder or a hub id."""
    llm: BaseName = None
    """Where the ear's LLM lies: a local folder, a GGUF file or a hub id."""
    n_prompts: CountOption = None
    """Number of prompts. Without it, 20 of those that come with ossicle, or all of --prompts."""
    prompts: FileOption = None
    """Text file with prompts, one per line, in place of those that come with ossicle."""
    max_new_tokens: Annotated[int, arg(metavar="N")] = 64
    """Longest answer, in tokens."""
    json: FileOption = None
    """JSON file to write everything to, with every answer."""

    def run(self, command_line: str) -> int:
        """Prints the comparison. An LLM that differs from the reference is an error."""
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        prompts = self._select_prompts()
        from ossicle.console_progress import ConsoleProgress
        from ossicle.evaluation.verify import verify

        with ConsoleProgress(Console(stderr=True)) as progress:
            report = verify(
                self.ear,
                prompts,
                encoder=self.encoder,
                llm=self.llm,
                max_new_tokens=self.max_new_tokens,
                progress=progress,
            )
        if self.json is not None:
            write_text(self.json, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
        _print_report(report, Console())
        if report.differences:
            raise CheckpointError(
                f"the LLM in {self.ear} is not {report.in_ear.settings.base.llm} as transformers loads it. These"
                f" differ: {'; '.join(report.differences)}. Download or copy both"
                " again; if that does not help, report a bug"
            )
        return 0

    def _select_prompts(self) -> tuple[str, ...]:
        if self.prompts is None:
            from ossicle.evaluation.verify import PROMPTS

            prompts, default, source = PROMPTS, _DEFAULT_N_PROMPTS, "that come with ossicle"
        else:
            prompts = _read_prompts(self.prompts)
            default, source = len(prompts), f"in {self.prompts}"
        n = default if self.n_prompts is None else self.n_prompts
        if not 1 <= n <= len(prompts):
            raise ConfigError(
                f"--n-prompts is {n}, expected 1 to {len(prompts)}, the number of prompts {source}"
            )
        return prompts[:n]


def _read_prompts(path: Path) -> tuple[str, ...]:
    try:
        text = read_text_file(path)
    except OSError as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error.strerror}; give a text file") from error
    except ValueError as error:
        raise ConfigError(f"--prompts {path} cannot be read: {error}") from error
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise ConfigError(f"--prompts {path} has no prompts: write one per line")
    return lines


def _print_report(report: "VerificationReport", console: Console) -> None:
    reference, in_ear = report.reference, report.in_ear
    n = len(report.prompts)
    size = f"{len(reference.weights.digests)} tensors, {reference.weights.n_values:,} values, {in_ear.dtype}"
    rows = [
        ("weights, SHA-256", reference.weights.sha256, in_ear.weights.sha256),
        ("tokenizer", reference.tokenizer, in_ear.tokenizer),
        ("fingerprint stored in the ear", in_ear.recorded_fingerprint, in_ear.fingerprint),
        (f"prompts, of {n}", *_count_same(reference.prompts, in_ear.prompts)),
        (f"answers before audio, of {n}", *_count_same(reference.answers, in_ear.answers_before)),
        (f"answers after audio, of {n}", *_count_same(reference.answers, in_ear.answers_after)),
    ]
    table = Table(box=None, pad_edge=False)
    for column in ("", "reference", "in the ear", ""):
        table.add_column(column)
    for name, one, other in rows:
        table.add_row(
            name, one[:_N_HASH_DIGITS], other[:_N_HASH_DIGITS], "same" if one == other else "[bold]differs"
        )
    console.out(f"{in_ear.settings.base.llm}: {size}", highlight=False)
    console.print(table, highlight=False)
    console.out(f"Its answer to audio in between: {in_ear.answer_to_sound}", highlight=False)
    if not report.differences:
        console.out("The LLM is unchanged.", highlight=False)


def _count_same(one: tuple[tuple[int, ...], ...], other: tuple[tuple[int, ...], ...]) -> tuple[str, str]:
    """Returns the number of sequences, and the number that are equal token by token, as texts."""
    return str(len(one)), str(sum(a == b for a, b in zip(one, other, strict=True)))
