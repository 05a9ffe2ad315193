"""The result of an evaluation: the results of all items, and the three numbers that follow from them.

A `Report` stores only texts, answers, and the score of each answer. Every rate and interval is computed from the items
each time it is needed, so a number in `report.json` cannot contradict the items next to it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ossicle.errors import DataError, OssicleError
from ossicle.evaluation.corruptions import Corruption
from ossicle.evaluation.fidelity import FidelitySummary, summarize_fidelity
from ossicle.evaluation.item_result import ItemResult, read_scores
from ossicle.evaluation.score_table import ScoreTable, build_group_mean_table, build_score_table
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.statistics import ItemScore
from ossicle.text_encoding import read_text_file

REPORT_FORMAT = 2
"""The format of report.json. Format 1 had no number."""
EAR = "ear"
"""The key in `about` that names the ear, with the fingerprint of its connector."""
SUITE_DATA = "data of the suite"
"""The key in `about` that names it, if it is not the public benchmark's own hub id."""
ASR_MODEL = "ASR model of the cascade"
"""The key in `about` that names it, if it is not the encoder's own decoder."""
OTHER_GROUP = "other"
"""The group of items without one, in a suite where other items have groups."""


@dataclass(frozen=True, kw_only=True)
class CorruptedItemResult:
    """The results of cascade and ear for one item whose sound was corrupted."""

    transcript: str
    cascade_answer: str
    ear_answer: str
    scores: Mapping[str, ItemScore]
    """The scores of "cascade" and "ear"."""


@dataclass(frozen=True, kw_only=True)
class CorruptionResult:
    """The results of all items under one corruption."""

    corruption: Corruption
    items: tuple[CorruptedItemResult, ...]
    """One for each item of the report, in the same order."""

    def apply_to(self, clean_items: tuple[ItemResult, ...]) -> tuple[ItemResult, ...]:
        """Returns the report's items with the results under this corruption; the answers to texts are unchanged."""
        return tuple(
            replace(
                clean,
                transcript=corrupted.transcript,
                cascade_answer=corrupted.cascade_answer,
                ear_answer=corrupted.ear_answer,
                scores={"text": clean.scores["text"], **corrupted.scores},
            )
            for clean, corrupted in zip(clean_items, self.items, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the corruption and its results as `report.json` stores them."""
        return {
            "kind": self.corruption.kind,
            "level": self.corruption.level,
            "items": [vars(item) for item in self.items],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], clean_items: Sequence[ItemResult]) -> "CorruptionResult":
        """Returns what `to_json` stored, for these items; for what it raises see `ItemResult.from_json`."""
        items = []
        for corrupted, clean in zip(stored["items"], clean_items, strict=True):
            texts = {name: corrupted[name] for name in ("transcript", "cascade_answer", "ear_answer")}
            if not all(isinstance(text, str) for text in texts.values()):
                raise TypeError(f"an item under {stored['kind']} is {corrupted!r}")
            scores = read_scores(corrupted["scores"], ("cascade", "ear"), clean.metric)
            items.append(CorruptedItemResult(**texts, scores=scores))
        corruption = Corruption(kind=stored["kind"], level=stored["level"])
        return cls(corruption=corruption, items=tuple(items))


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an evaluation: its items, and how they were obtained."""

    suite: str
    items: tuple[ItemResult, ...]
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    about: dict[str, str] = field(default_factory=dict)
    """What was evaluated: such as {"ear": ..., "encoder": ..., "LLM": ..., "judge": ...}."""
    overall_of: Literal["items", "groups"] = "items"
    """Whether the suite's number is computed over all items, or is the mean of the groups' numbers."""
    corruption_results: tuple[CorruptionResult, ...] = ()
    """The same items in noise, at other speeds, ..., if that was requested."""

    def __post_init__(self) -> None:
        """Check that there are items.

        Raises:
            DataError: no items.
        """
        if not self.items:
            raise DataError(f"suite {self.suite!r}: no items were evaluated, so there is nothing to report")

    @cached_property
    def overall(self) -> ScoreTable:
        """The three numbers of all items."""
        return self._build_table(self.items)

    @cached_property
    def groups(self) -> dict[str, ScoreTable]:
        """The three numbers by group, in the suite's order; empty if no item has a group."""
        if all(item.group is None for item in self.items):
            return {}
        return {name: build_score_table(items) for name, items in _group_items(self.items).items()}

    @cached_property
    def instructions(self) -> ScoreTable | None:
        """The three numbers of the items with a text instruction next to the sound; None if no or every item has one."""
        instructed = [item for item in self.items if item.instruction is not None]
        is_part = 0 < len(instructed) < len(self.items)
        return build_score_table(instructed) if is_part and self.overall_of == "items" else None

    @property
    def tables(self) -> list[tuple[str, ScoreTable]]:
        """The tables of the clean items with their names: all items, each group, those with a text instruction."""
        groups = self.groups if len(self.groups) > 1 else {}
        tables = [("All items", self.overall), *groups.items()]
        if self.instructions:
            tables.append(("With a text instruction", self.instructions))
        return tables

    @cached_property
    def robustness(self) -> tuple[tuple[Corruption, ScoreTable], ...]:
        """The three numbers under each corruption; the text ceiling is the same under all of them."""
        return tuple(
            (result.corruption, self._build_table(result.apply_to(self.items)))
            for result in self.corruption_results
        )

    @cached_property
    def fidelity(self) -> dict[str, FidelitySummary]:
        """How close "ear" and "cascade" come to reading, where that was measured, without transcripts of no words."""
        summaries: dict[str, FidelitySummary] = {}
        for system in ("ear", "cascade"):
            pairs = [
                (fidelity, (item.text_answer, item.ear_answer if system == "ear" else item.cascade_answer))
                for item in self.items
                if item.fidelity is not None and (fidelity := item.fidelity[system]) is not None
            ]
            if pairs:
                summaries[system] = summarize_fidelity(
                    [fidelity for fidelity, _ in pairs], [answers for _, answers in pairs]
                )
        return summaries

    def _build_table(self, items: tuple[ItemResult, ...]) -> ScoreTable:
        if self.overall_of == "items":
            return build_score_table(items)
        return build_group_mean_table(list(_group_items(items).values()))

    @property
    def rules(self) -> tuple[str, ...]:
        """One sentence for each scoring rule in use: which answers are correct."""
        return tuple(dict.fromkeys(RULES[item.rule].description for item in self.items))

    @property
    def n_own_targets(self) -> int:
        """The number of items whose expected answer is the LLM's own answer to the text."""
        return sum(item.is_own_target for item in self.items)

    @property
    def audio_tokens(self) -> dict[str, float]:
        """The mean number of audio tokens per item, and per second of sound."""
        n_audio_tokens = sum(item.n_audio_tokens for item in self.items)
        duration_s = sum(item.duration_s for item in self.items)
        return {
            "per_item": n_audio_tokens / len(self.items),
            "per_second": n_audio_tokens / duration_s if duration_s else 0.0,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `report.json`."""
        return {
            "format": REPORT_FORMAT,
            "suite": self.suite,
            "overall_of": self.overall_of,
            **self.overall.to_json(),
            "groups": {name: table.to_json() for name, table in self.groups.items()},
            "instructions": self.instructions.to_json() if self.instructions else None,
            "fidelity": {system: summary.to_json() for system, summary in self.fidelity.items()},
            "n_own_targets": self.n_own_targets,
            "audio_tokens": self.audio_tokens,
            "about": self.about,
            "command": self.command,
            "versions": self.versions,
            "created": self.created,
            "items": [item.to_json() for item in self.items],
            "robustness": [
                {"corruption": corruption.name, **table.to_json()} for corruption, table in self.robustness
            ],
            "corruption_results": [result.to_json() for result in self.corruption_results],
        }

    @classmethod
    def from_json(cls, stored: Any) -> "Report":
        """Returns the report that `to_json` stored; its numbers are computed again from the items.

        Raises:
            DataError: the object is not such a report.
        """
        try:
            if "items" in stored and stored.get("format") != REPORT_FORMAT:
                raise DataError(
                    f"a report of format {stored.get('format', 1)!r}, expected format {REPORT_FORMAT}; run ossicle"
                    " eval again"
                )
            items = tuple(ItemResult.from_json(item) for item in stored["items"])
            results = tuple(CorruptionResult.from_json(r, items) for r in stored["corruption_results"])
            fields = {name: stored[name] for name in _STORED_FIELDS}
            for name, type_ in _STORED_FIELDS.items():
                if not isinstance(fields[name], type_):
                    raise TypeError(f"{name} is {fields[name]!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not an evaluation report ({error!r}); expected a report.json that ossicle eval wrote"
            ) from None
        return cls(items=items, corruption_results=results, **fields)


_STORED_FIELDS = {
    "suite": str,
    "overall_of": str,
    "command": str,
    "versions": dict,
    "created": str,
    "about": dict,
}


def _group_items(items: tuple[ItemResult, ...]) -> dict[str, list[ItemResult]]:
    groups: dict[str, list[ItemResult]] = {}
    for item in items:
        groups.setdefault(item.group or OTHER_GROUP, []).append(item)
    return groups


def read_report(path: str | Path) -> Report:
    """Returns the report that a `report.json` holds.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        stored = json.loads(read_text_file(Path(path)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a report.json") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give a report.json") from None
    try:
        return Report.from_json(stored)
    except OssicleError as error:
        raise DataError(f"{path}: {error}") from None
