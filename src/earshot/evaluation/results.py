"""What an evaluation found: the items as they were answered, and the three numbers that follow from them.

A `Report` stores only what was said, heard and answered. Every rate and interval is computed from its items
each time it is asked for, so a number in `report.json` can never disagree with the items beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from earshot.audio import AudioSource
from earshot.errors import DataError
from earshot.evaluation.marks import bootstrap_ci95
from earshot.evaluation.metrics import is_correct, word_error_rate

OTHER = "other"
"""The group of items that name none, in a suite where others do."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One item with what each of the three made of it."""

    id: str
    text: str
    instruction: str | None
    group: str | None
    expected: str
    is_own_target: bool
    """Whether `expected` is the LLM's own answer to the text, for want of one in the suite."""
    text_answer: str
    transcript: str
    """What the encoder's own ASR decoder wrote."""
    cascade_answer: str
    ear_answer: str
    n_audio_tokens: int
    duration_s: float
    audio: AudioSource | None = field(default=None, compare=False, repr=False)

    @cached_property
    def text_correct(self) -> bool:
        """Whether the LLM was right when it read the text."""
        return is_correct(self.text_answer, self.expected)

    @cached_property
    def cascade_correct(self) -> bool:
        """Whether the LLM was right when it read the transcript."""
        return is_correct(self.cascade_answer, self.expected)

    @cached_property
    def ear_correct(self) -> bool:
        """Whether the LLM was right when it heard the sound."""
        return is_correct(self.ear_answer, self.expected)

    def to_json(self) -> dict[str, Any]:
        """The item as `report.json` has it; sound that is not a file stays out."""
        stored = {name: getattr(self, name) for name in _STORED}
        flags = {name: getattr(self, name) for name in ("text_correct", "cascade_correct", "ear_correct")}
        return stored | flags | {"audio": str(self.audio) if isinstance(self.audio, str | Path) else None}


_STORED = (
    "id",
    "text",
    "instruction",
    "group",
    "expected",
    "is_own_target",
    "text_answer",
    "transcript",
    "cascade_answer",
    "ear_answer",
    "n_audio_tokens",
    "duration_s",
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The share of items answered right, from 0 to 1."""

    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The three numbers of some items, and how they differ."""

    n: int
    text_ceiling: Score
    cascade: Score
    ear: Score
    wer: float
    """Word error rate of the cascade's transcripts."""
    ear_minus_cascade: float
    difference_ci95: tuple[float, float]
    """Paired: an item that both answer alike adds nothing to its width."""
    kept: float | None
    """Share of the items answered right in text that the ear answers right too; None if there are none."""

    @property
    def of_ceiling(self) -> float | None:
        """The ear's accuracy per accuracy of the text ceiling; None if the ceiling is 0."""
        return self.ear.accuracy / self.text_ceiling.accuracy if self.text_ceiling.accuracy else None

    def to_json(self) -> dict[str, Any]:
        """The table as `report.json` has it."""
        ear = asdict(self.ear) | {"of_ceiling": self.of_ceiling, "kept": self.kept}
        difference = {"ear_minus_cascade": self.ear_minus_cascade, "ci95": self.difference_ci95}
        return {
            "n": self.n,
            "text_ceiling": asdict(self.text_ceiling),
            "cascade": asdict(self.cascade) | {"wer": self.wer},
            "ear": ear,
            "difference": difference,
        }


def tabulate(items: Sequence[Answered]) -> Table:
    """The three numbers of at least one item.

    A text ceiling whose every target is the LLM's own answer is 1 by definition, not by measurement, and has
    no interval to speak of.
    """
    text, cascade, ear = (
        [getattr(item, flag) for item in items] for flag in ("text_correct", "cascade_correct", "ear_correct")
    )
    gains = [int(by_ear) - int(by_cascade) for by_ear, by_cascade in zip(ear, cascade, strict=True)]
    right_in_text = [by_ear for by_ear, by_text in zip(ear, text, strict=True) if by_text]
    is_defined = all(item.is_own_target for item in items)
    return Table(
        n=len(items),
        text_ceiling=Score(accuracy=1.0, ci95=(1.0, 1.0)) if is_defined else _score(text),
        cascade=_score(cascade),
        ear=_score(ear),
        wer=word_error_rate([item.text for item in items], [item.transcript for item in items]),
        ear_minus_cascade=sum(gains) / len(gains),
        difference_ci95=bootstrap_ci95(gains, least=-1.0),
        kept=sum(right_in_text) / len(right_in_text) if right_in_text else None,
    )


def _score(flags: Sequence[bool]) -> Score:
    return Score(accuracy=sum(flags) / len(flags), ci95=bootstrap_ci95(flags))


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation: its items, and where they come from."""

    suite: str
    items: tuple[Answered, ...]
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    about: dict[str, str] = field(default_factory=dict)
    """What was evaluated: such as {"ear": ..., "encoder": ..., "LLM": ...}."""

    def __post_init__(self) -> None:
        """Refuse a report of nothing.

        Raises:
            DataError: no items.
        """
        if not self.items:
            raise DataError(f"suite {self.suite!r}: no items were evaluated, there is nothing to report")

    @cached_property
    def overall(self) -> Table:
        """The three numbers of all items."""
        return tabulate(self.items)

    @cached_property
    def groups(self) -> dict[str, Table]:
        """The three numbers by group, in the suite's order; empty where no item names one."""
        if all(item.group is None for item in self.items):
            return {}
        members: dict[str, list[Answered]] = {}
        for item in self.items:
            members.setdefault(item.group or OTHER, []).append(item)
        return {name: tabulate(items) for name, items in members.items()}

    @cached_property
    def instructions(self) -> Table | None:
        """The three numbers of the items with a text instruction beside the sound; None without any."""
        instructed = [item for item in self.items if item.instruction is not None]
        return tabulate(instructed) if instructed else None

    @property
    def n_own_targets(self) -> int:
        """How many items expect the LLM's own answer to the text."""
        return sum(item.is_own_target for item in self.items)

    @property
    def audio_tokens(self) -> dict[str, float]:
        """How many rows the ear handed to the LLM: a mean over items, and over their seconds."""
        n_rows = sum(item.n_audio_tokens for item in self.items)
        duration_s = sum(item.duration_s for item in self.items)
        return {
            "per_item": n_rows / len(self.items),
            "per_second": n_rows / duration_s if duration_s else 0.0,
        }

    def to_json(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return {
            "suite": self.suite,
            **self.overall.to_json(),
            "groups": {name: table.to_json() for name, table in self.groups.items()},
            "instructions": self.instructions.to_json() if self.instructions else None,
            "n_own_targets": self.n_own_targets,
            "audio_tokens": self.audio_tokens,
            "about": self.about,
            "command": self.command,
            "versions": self.versions,
            "created": self.created,
            "items": [item.to_json() for item in self.items],
        }

    @classmethod
    def from_json(cls, stored: Any) -> "Report":
        """The report that `to_json` wrote; its numbers are computed anew from the items.

        Raises:
            DataError: an object that is no such report.
        """
        try:
            items = tuple(
                Answered(**{name: item[name] for name in _STORED}, audio=item.get("audio"))
                for item in stored["items"]
            )
            named = {name: stored[name] for name in ("suite", "command", "versions", "created", "about")}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not an evaluation report ({error}); expected what earshot eval writes"
            ) from None
        return cls(items=items, **named)


def read_report(path: str | Path) -> Report:
    """The report in a `report.json`.

    Raises:
        DataError: a file that cannot be read, or holds something else.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a report.json") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give a report.json") from None
    return Report.from_json(stored)
