"""One item as it was answered: what was said, heard and answered three ways, and the marks that it got."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossicle.audio.waveform import AudioSource
from ossicle.evaluation.fidelity import Fidelity
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.statistics import Marks, Metric

WAYS = ("text", "cascade", "ear")
"""The three ways in which the LLM is asked: it reads, it reads a transcript, it hears."""


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
    rule: str = "exact"
    rubric: Mapping[str, Any] = field(default_factory=dict)
    text_answer: str
    transcript: str
    """What the cascade's speech recogniser wrote."""
    cascade_answer: str
    ear_answer: str
    marks: Mapping[str, Marks]
    """What each of the three `WAYS` adds to the suite's numbers."""
    fidelity: Mapping[str, Fidelity | None] | None = None
    """How near "ear" and "cascade" came to reading the text, where that was measured; None for a transcript without
    words."""
    n_audio_tokens: int
    duration_s: float
    audio: AudioSource | None = field(default=None, compare=False, repr=False)

    @property
    def metric(self) -> Metric:
        """What is made of the marks."""
        return RULES[self.rule].metric

    def is_right(self, way: str) -> bool:
        """Whether one of the three `WAYS` got it right, where only right and wrong are told apart."""
        return self.metric.is_right(self.marks[way])

    @property
    def text_correct(self) -> bool:
        """Whether the LLM was right when it read the text."""
        return self.is_right("text")

    @property
    def cascade_correct(self) -> bool:
        """Whether the LLM was right when it read the transcript."""
        return self.is_right("cascade")

    @property
    def ear_correct(self) -> bool:
        """Whether the LLM was right when it heard the sound."""
        return self.is_right("ear")

    def to_json(self) -> dict[str, Any]:
        """The item as `report.json` has it; sound that is not a file stays out."""
        stored = {name: getattr(self, name) for name in STORED}
        if self.fidelity is not None:
            stored["fidelity"] = {way: found and found.to_json() for way, found in self.fidelity.items()}
        flags = {name: getattr(self, name) for name in ("text_correct", "cascade_correct", "ear_correct")}
        return stored | flags | {"audio": str(self.audio) if isinstance(self.audio, str | Path) else None}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Answered":
        """The item that `to_json` wrote.

        Raises:
            KeyError: something is missing, or a rule that this ossicle does not have
            TypeError: something is of another kind
            ValueError: marks that are none
        """
        fields = {name: stored[name] for name in STORED}
        for name, kinds in STORED.items():
            if not isinstance(fields[name], kinds):
                raise TypeError(f"{name} of an item is {fields[name]!r}")
        fields["marks"] = read_marks(fields["marks"], WAYS, RULES[fields["rule"]].metric)
        if (near := stored.get("fidelity")) is not None:
            fields["fidelity"] = {way: found and Fidelity.from_json(found) for way, found in near.items()}
        return cls(**fields, audio=stored.get("audio"))


def read_marks(stored: Mapping[str, Any], ways: Sequence[str], metric: Metric) -> dict[str, Marks]:
    """The marks of some of the `WAYS` as they are stored.

    Raises:
        KeyError: a way is missing
        ValueError: not as many numbers as the metric is made of
    """
    marks = {way: tuple(map(float, stored[way])) for way in ways}
    if any(len(own) != metric.n_marks for own in marks.values()):
        raise ValueError(f"marks are {stored!r}, expected {metric.n_marks} for {metric.name}")
    return marks


STORED: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "text": (str,),
    "instruction": (str, type(None)),
    "group": (str, type(None)),
    "expected": (str,),
    "is_own_target": (bool,),
    "rule": (str,),
    "rubric": (dict,),
    "text_answer": (str,),
    "transcript": (str,),
    "cascade_answer": (str,),
    "ear_answer": (str,),
    "marks": (dict,),
    "n_audio_tokens": (int,),
    "duration_s": (int, float),
}
"""What a report keeps of an item as it is, and of what kinds."""
