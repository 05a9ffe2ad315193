"""What an evaluation found: the items as they were answered, and the three numbers that follow from them.

A `Report` stores only what was said, heard and answered, and how each answer was marked. Every rate and interval is
computed from its items each time it is asked for, so a number in `report.json` can never disagree with the items
beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ossicle.errors import DataError, OssicleError
from ossicle.evaluation.corruptions import Condition
from ossicle.evaluation.fidelity import Summary, summarise
from ossicle.evaluation.item_result import Answered, read_marks
from ossicle.evaluation.score_table import Table, tabulate, tabulate_groups
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.statistics import Marks

RECOGNISER = "cascade's speech recogniser"
"""What `about` calls it, if it is not the encoder's own."""
OTHER = "other"
"""The group of items that name none, in a suite where others do."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """What cascade and ear made of an item whose sound was changed."""

    transcript: str
    cascade_answer: str
    ear_answer: str
    marks: Mapping[str, Marks]
    """Of "cascade" and "ear"."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """All items once more, in noise or otherwise changed."""

    condition: Condition
    answers: tuple[Again, ...]
    """Of the report's items, in their order."""

    def of(self, items: tuple[Answered, ...]) -> tuple[Answered, ...]:
        """The report's items as they were answered under this condition; what was read stays as it is."""
        return tuple(
            replace(
                item,
                transcript=again.transcript,
                cascade_answer=again.cascade_answer,
                ear_answer=again.ear_answer,
                marks={"text": item.marks["text"], **again.marks},
            )
            for item, again in zip(items, self.answers, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """The condition with its answers as `report.json` has them."""
        return {
            "kind": self.condition.kind,
            "level": self.condition.level,
            "answers": [vars(again) for again in self.answers],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], items: Sequence[Answered]) -> "Changed":
        """What `to_json` wrote, of these items; for what it raises see `Answered.from_json`."""
        answers = []
        for again, item in zip(stored["answers"], items, strict=True):
            said = {name: again[name] for name in ("transcript", "cascade_answer", "ear_answer")}
            if not all(isinstance(text, str) for text in said.values()):
                raise TypeError(f"an answer under {stored['kind']} is {again!r}")
            marks = read_marks(again["marks"], ("cascade", "ear"), item.metric)
            answers.append(Again(**said, marks=marks))
        condition = Condition(kind=stored["kind"], level=stored["level"])
        return cls(condition=condition, answers=tuple(answers))


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
    """What was evaluated: such as {"ear": ..., "encoder": ..., "LLM": ..., "judge": ...}."""
    overall_of: Literal["items", "groups"] = "items"
    """Whether the suite's number is that of all items or the mean of the groups'."""
    changed: tuple[Changed, ...] = ()
    """The same items in noise, at other speeds, ..., where that was asked for."""

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
        return self._table(self.items)

    @cached_property
    def groups(self) -> dict[str, Table]:
        """The three numbers by group, in the suite's order; empty where no item names one."""
        if all(item.group is None for item in self.items):
            return {}
        return {name: tabulate(items) for name, items in _members(self.items).items()}

    @cached_property
    def instructions(self) -> Table | None:
        """The three numbers of the items with a text instruction beside the sound; None where none or all have one."""
        instructed = [item for item in self.items if item.instruction is not None]
        is_part = 0 < len(instructed) < len(self.items)
        return tabulate(instructed) if is_part and self.overall_of == "items" else None

    @cached_property
    def robustness(self) -> tuple[tuple[Condition, Table], ...]:
        """The three numbers under each condition; reading is the same under all of them."""
        return tuple((changed.condition, self._table(changed.of(self.items))) for changed in self.changed)

    @cached_property
    def fidelity(self) -> dict[str, Summary]:
        """How near "ear" and "cascade" come to reading, where that was measured; transcripts without words left out."""
        found: dict[str, Summary] = {}
        for way in ("ear", "cascade"):
            pairs = [
                (near, (item.text_answer, item.ear_answer if way == "ear" else item.cascade_answer))
                for item in self.items
                if item.fidelity is not None and (near := item.fidelity[way]) is not None
            ]
            if pairs:
                found[way] = summarise([near for near, _ in pairs], [said for _, said in pairs])
        return found

    def _table(self, items: tuple[Answered, ...]) -> Table:
        if self.overall_of == "items":
            return tabulate(items)
        return tabulate_groups(list(_members(items).values()))

    @property
    def rules(self) -> tuple[str, ...]:
        """What counts as right, a sentence for each kind of answer."""
        return tuple(dict.fromkeys(RULES[item.rule].about for item in self.items))

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
            "overall_of": self.overall_of,
            **self.overall.to_json(),
            "groups": {name: table.to_json() for name, table in self.groups.items()},
            "instructions": self.instructions.to_json() if self.instructions else None,
            "fidelity": {way: summary.to_json() for way, summary in self.fidelity.items()},
            "n_own_targets": self.n_own_targets,
            "audio_tokens": self.audio_tokens,
            "about": self.about,
            "command": self.command,
            "versions": self.versions,
            "created": self.created,
            "items": [item.to_json() for item in self.items],
            "robustness": [
                {"condition": condition.name, **table.to_json()} for condition, table in self.robustness
            ],
            "changed": [changed.to_json() for changed in self.changed],
        }

    @classmethod
    def from_json(cls, stored: Any) -> "Report":
        """The report that `to_json` wrote; its numbers are computed anew from the items.

        Raises:
            DataError: an object that is no such report.
        """
        try:
            items = tuple(Answered.from_json(item) for item in stored["items"])
            changed = tuple(Changed.from_json(again, items) for again in stored["changed"])
            named = {name: stored[name] for name in _NAMED}
            for name, kind in _NAMED.items():
                if not isinstance(named[name], kind):
                    raise TypeError(f"{name} is {named[name]!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not an evaluation report ({error!r}); expected what ossicle eval writes"
            ) from None
        return cls(items=items, changed=changed, **named)


_NAMED = {"suite": str, "overall_of": str, "command": str, "versions": dict, "created": str, "about": dict}


def _members(items: tuple[Answered, ...]) -> dict[str, list[Answered]]:
    members: dict[str, list[Answered]] = {}
    for item in items:
        members.setdefault(item.group or OTHER, []).append(item)
    return members


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
    try:
        return Report.from_json(stored)
    except OssicleError as error:
        raise DataError(f"{path}: {error}") from None
