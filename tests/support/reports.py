"""Reports made of invented answers, and the pages that are rendered from them."""

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from ossicle.evaluation import (
    ItemResult,
    Report,
)
from ossicle.evaluation.corruptions import CORRUPTIONS
from ossicle.evaluation.report_data import CorruptedItemResult, CorruptionResult

HALF_SECOND_TONE = (0.1 * np.sin(np.arange(8000) / 5)).astype(np.float32)


def build_item_result(
    number: int = 0, *, ear: bool = True, cascade: bool = True, read: bool = True, **fields: Any
) -> ItemResult:
    """Returns an item that the ear, the cascade and the reading LLM answer correctly or not; other fields as given."""

    def choose_answer(is_right: bool) -> str:
        return "Right." if is_right else "Wrong."

    defaults: dict[str, Any] = {
        "id": f"{number:04d}",
        "text": "say it",
        "instruction": None,
        "group": None,
        "expected": "Right.",
        "is_own_target": False,
        "text_answer": choose_answer(read),
        "transcript": "say it" if cascade else "say that",
        "cascade_answer": choose_answer(cascade),
        "ear_answer": choose_answer(ear),
        "scores": {"text": (float(read),), "cascade": (float(cascade),), "ear": (float(ear),)},
        "n_audio_tokens": 3,
        "duration_s": 0.5,
        "audio": HALF_SECOND_TONE,
    }
    return ItemResult(**(defaults | fields))


def build_mixed_report(n: int = 40) -> Report:
    """Returns a report with two groups, with instructions, and with right and wrong answers of each system."""
    items = tuple(
        build_item_result(
            i,
            ear=i % 8 != 0,
            cascade=i % 5 != 0,
            read=i % 20 != 0,
            group=["seen voices", "unseen voices"][i % 2],
            instruction="Answer in Spanish." if i % 4 == 0 else None,
        )
        for i in range(n)
    )
    return Report(
        suite="pocket",
        items=items,
        command="ossicle eval runs/pocket --suite pocket",
        versions={"ossicle": "0.1.0"},
        created="2026-11-05T09:07:00+00:00",
        about={"LLM": "pocket"},
    )


def add_noise_results(report: Report, *, is_right: bool) -> Report:
    """Returns the report with two levels of noise, under which all answers are right, or none is."""
    scores = {system: (float(is_right),) for system in ("cascade", "ear")}
    item = CorruptedItemResult(transcript="say it", cascade_answer="a", ear_answer="b", scores=scores)
    noises = [corruption for corruption in CORRUPTIONS if corruption.kind == "white noise"][:2]
    results = tuple(CorruptionResult(corruption=c, items=(item,) * len(report.items)) for c in noises)
    return replace(report, corruption_results=results)


class ParsedPage(HTMLParser):
    """The elements and the text of a page; checks that every element is closed in order."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        is_self_closed = (self.get_starttag_text() or "").endswith("/>")
        if tag not in self.VOID and not is_self_closed:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
