"""The result of one item: the answers of the three systems, and how each of them was scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ossicle.audio.waveform import AudioSource
from ossicle.evaluation.fidelity import Fidelity
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.statistics import ItemScore, Metric

SYSTEMS = ("text", "cascade", "ear")
"""The systems that are compared: the LLM reads the text, it reads a transcript of the sound, or it hears the sound."""


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """One item with the answers of the three systems and their scores."""

    id: str
    text: str
    instruction: str | None
    group: str | None
    expected: str
    is_own_target: bool
    """Whether `expected` is the LLM's own answer to the text, because the suite has no expected answer."""
    rule: str = "exact"
    rubric: Mapping[str, Any] = field(default_factory=dict)
    text_answer: str
    transcript: str
    """The output of the cascade's ASR model."""
    cascade_answer: str
    ear_answer: str
    scores: Mapping[str, ItemScore]
    """The score of each of the three `SYSTEMS`."""
    fidelity: Mapping[str, Fidelity | None] | None = None
    """How close "ear" and "cascade" come to reading the text, where that was measured; None for a transcript without
    words."""
    n_audio_tokens: int
    duration_s: float
    audio: AudioSource | None = field(default=None, compare=False, repr=False)

    @property
    def metric(self) -> Metric:
        """The metric that the scores belong to."""
        return RULES[self.rule].metric

    def is_correct(self, system: str) -> bool:
        """Whether the answer of one of the `SYSTEMS` is correct, where answers are only correct or wrong."""
        return self.metric.is_correct(self.scores[system])

    @property
    def text_correct(self) -> bool:
        """Whether the LLM's answer to the text is correct."""
        return self.is_correct("text")

    @property
    def cascade_correct(self) -> bool:
        """Whether the LLM's answer to the transcript is correct."""
        return self.is_correct("cascade")

    @property
    def ear_correct(self) -> bool:
        """Whether the LLM's answer to the sound is correct."""
        return self.is_correct("ear")

    def to_json(self) -> dict[str, Any]:
        """Returns the item as `report.json` stores it; sound that is not a file is left out."""
        stored = {name: getattr(self, name) for name in STORED_FIELDS}
        if self.fidelity is not None:
            stored["fidelity"] = {
                system: found and found.to_json() for system, found in self.fidelity.items()
            }
        flags = {name: getattr(self, name) for name in ("text_correct", "cascade_correct", "ear_correct")}
        return stored | flags | {"audio": str(self.audio) if isinstance(self.audio, str | Path) else None}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "ItemResult":
        """Returns the item that `to_json` stored.

        Raises:
            KeyError: a field is missing, or the rule does not exist in this version
            TypeError: a field has another type
            ValueError: a score does not fit its metric
        """
        fields = {name: stored[name] for name in STORED_FIELDS}
        for name, types in STORED_FIELDS.items():
            if not isinstance(fields[name], types):
                raise TypeError(f"{name} of an item is {fields[name]!r}")
        fields["scores"] = read_scores(fields["scores"], SYSTEMS, RULES[fields["rule"]].metric)
        if (fidelity := stored.get("fidelity")) is not None:
            fields["fidelity"] = {
                system: found and Fidelity.from_json(found) for system, found in fidelity.items()
            }
        return cls(**fields, audio=stored.get("audio"))


def read_scores(stored: Mapping[str, Any], systems: Sequence[str], metric: Metric) -> dict[str, ItemScore]:
    """Returns the stored scores of some of the `SYSTEMS`.

    Raises:
        KeyError: a system is missing
        ValueError: a score has another number of addends than the metric
    """
    scores = {system: tuple(map(float, stored[system])) for system in systems}
    if any(len(score) != metric.n_addends for score in scores.values()):
        raise ValueError(
            f"scores are {stored!r}, expected {metric.n_addends} number(s) each for {metric.name}"
        )
    return scores


STORED_FIELDS: Mapping[str, tuple[type, ...]] = {
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
    "scores": (dict,),
    "n_audio_tokens": (int,),
    "duration_s": (int, float),
}
"""The fields of an item that a report stores unchanged, and their types."""
