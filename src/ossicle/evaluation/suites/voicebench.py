"""VoiceBench: nine sets of spoken requests to an assistant, from questions to orders that it should refuse.

The sets, their splits, what each is marked by and how the overall number is made follow VoiceBench (Chen et al., arXiv
2410.17196; github.com/MatthewCYM/VoiceBench), its leaderboard's form: AlpacaEval in full, SD-QA in the accent of the
USA, and overall = the mean of the nine, where a mean rating of up to 5 points counts 20 times itself, SD-QA is the mean
of PANDA and a judge's verdicts, and IFEval that of four shares. The data is hlt-lab/voicebench on the hub.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossicle.errors import DataError
from ossicle.evaluation.scoring.ifeval import check_instruction
from ossicle.evaluation.scoring.multiple_choice import DEFAULT_LETTERS
from ossicle.evaluation.scoring.reasoning import BBH_LETTERS, BBH_TASKS
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

HUB_ID = "hlt-lab/voicebench"
MAX_NEW_TOKENS = 2048
"""Longest answer, as VoiceBench's own runs of LLMs have it."""
FULL_ALPACAEVAL, SHORT_ALPACAEVAL = "alpacaeval_full", "alpacaeval"
"""All 636 requests, which the leaderboard takes, and 199 of them."""

Row = dict[str, Any]
Expectation = dict[str, Any]
"""Those fields of an item that say what is expected: answer, rule, rubric, and the group within its subset."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One of the nine sets: its place in the published data, and what makes an item of a row."""

    config: str
    splits: tuple[str, ...] = ("test",)
    leaderboard_splits: tuple[str, ...] | None = None
    """Those that count in the overall number, if not all."""
    columns: tuple[str, ...] = ()
    """What a row has beside its sound and its prompt."""
    expect: Callable[[Row, str], Expectation]
    """From a row, and what it is called in messages."""
    about: str
    """What is asked, and what the number is, for the report."""


def _rated(row: Row, where: str) -> Expectation:
    return {"answer": "a good answer, by a judge", "rule": "rated"}


def _refused(row: Row, where: str) -> Expectation:
    return {"answer": "a refusal", "rule": "refusal"}


def _referenced(row: Row, where: str) -> Expectation:
    reference = read_text(row, "reference", where)
    return {"answer": reference, "rule": "panda and judge", "rubric": {"answers": [reference]}}


def _chosen(row: Row, where: str) -> Expectation:
    letter = read_text(row, "reference", where).upper().strip("(). ")
    if letter not in tuple(DEFAULT_LETTERS):
        raise DataError(
            f"{where}: reference is {letter!r}, expected one of {', '.join(DEFAULT_LETTERS)}; download the data again"
        )
    return {"answer": letter, "rule": "choice", "rubric": {"letters": DEFAULT_LETTERS}}


def _concluded(row: Row, where: str) -> Expectation:
    """The task is part of the row's id, such as "navigate_12"."""
    name, reference = read_text(row, "id", where), read_text(row, "reference", where)
    task = next((task for task in BBH_TASKS if task in name), None)
    if task is None:
        raise DataError(f"{where}: id is {name!r}, expected one with a task in it: {', '.join(BBH_TASKS)}")
    answer = reference.strip("() ").upper() if task in BBH_LETTERS else reference.lower()
    possible = tuple(BBH_LETTERS[task]) if task in BBH_LETTERS else ("yes", "no")
    if answer not in possible:
        raise DataError(f"{where}: reference is {reference!r}, expected {' or '.join(possible)} in {task}")
    return {"answer": answer, "rule": "bbh", "rubric": {"task": task}, "group": task.replace("_", " ")}


def _instructed(row: Row, where: str) -> Expectation:
    """Instructions by name, and for each a struct of arguments, those of other kinds being null."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not (
        isinstance(names, list) and isinstance(arguments, list) and names and len(names) == len(arguments)
    ):
        raise DataError(
            f"{where}: instruction_id_list and kwargs are no two lists of one length, with an entry for each"
            " instruction; download the data again"
        )
    instructions = []
    for name, given in zip(names, arguments, strict=True):
        named = {key: value for key, value in (given or {}).items() if value is not None}
        try:
            check_instruction(name, named)
        except DataError as error:
            raise DataError(f"{where}: {error}; download the data again") from None
        instructions.append({"id": name, "arguments": named})
    return {"answer": ", ".join(names), "rule": "ifeval", "rubric": {"instructions": instructions}}


ACCENTS = ("aus", "gbr", "ind_n", "ind_s", "irl", "kenya", "nga", "nzl", "phl", "usa", "zaf")
DOMAINS = tuple(
    "law engineering other biology business economics health philosophy psychology history chemistry physics".split()
)
SUBSETS: Mapping[str, Subset] = {
    "alpacaeval": Subset(config=FULL_ALPACAEVAL, expect=_rated, about="requests of AlpacaEval, rated 1 to 5"),
    "commoneval": Subset(config="commoneval", expect=_rated, about="questions of Common Voice, rated 1 to 5"),
    "wildvoice": Subset(config="wildvoice", expect=_rated, about="requests by many speakers, rated 1 to 5"),
    "sd-qa": Subset(
        config="sd-qa",
        splits=ACCENTS,
        leaderboard_splits=("usa",),
        columns=("reference",),
        expect=_referenced,
        about="questions of fact in eleven accents",
    ),
    "mmsu": Subset(
        config="mmsu",
        splits=DOMAINS,
        columns=("reference",),
        expect=_chosen,
        about="exam questions, four options",
    ),
    "openbookqa": Subset(
        config="openbookqa", columns=("reference",), expect=_chosen, about="school science, four options"
    ),
    "bbh": Subset(
        config="bbh",
        columns=("id", "reference"),
        expect=_concluded,
        about="reasoning, yes or no or two options",
    ),
    "ifeval": Subset(
        config="ifeval",
        columns=("instruction_id_list", "kwargs"),
        expect=_instructed,
        about="instructions that a program can check",
    ),
    "advbench": Subset(config="advbench", expect=_refused, about="harmful orders, to be refused"),
}
"""The nine, in the leaderboard's order."""


def open_voicebench(part: str, data: str | None) -> Suite:
    """All nine subsets, each a group, or one of them by name, by accent, domain or task where it has several.

    Args:
        part: a subset's name, "" for all nine
        data: another hub id than `HUB_ID`, or a local folder in its layout

    Raises:
        DataError: no such subset, or data that is not there or not as published; the message names place, row and column
    """
    if part and part not in SUBSETS:
        raise DataError(
            f'suite "voicebench/{part}": no such subset; take one of {", ".join(SUBSETS)}, or "voicebench" for all'
        )
    place = data or HUB_ID
    if part:
        items = tuple(_items(part, place, is_alone=True))
        about = f"VoiceBench's {part}: {SUBSETS[part].about}; {_origin(place, [part])}."
        return Suite(name=f"voicebench/{part}", items=items, description=about, max_new_tokens=MAX_NEW_TOKENS)
    items = tuple(item for name in SUBSETS for item in _items(name, place, is_alone=False))
    about = f"VoiceBench, nine sets of spoken requests; the number is the mean of theirs; {_origin(place, SUBSETS)}."
    return Suite(
        name="voicebench", items=items, overall="groups", description=about, max_new_tokens=MAX_NEW_TOKENS
    )


def _items(name: str, place: str, *, is_alone: bool) -> Iterator[Item]:
    """A subset's items: all splits of one that stands alone, the leaderboard's of one among others."""
    subset, config = SUBSETS[name], _config(name, place)
    splits = subset.splits if is_alone else subset.leaderboard_splits or subset.splits
    for split in splits:
        columns = ("audio", "prompt", *subset.columns)
        rows = read_published_rows(place, config=config, split=split, columns=columns)
        for number, row in enumerate(rows, start=1):
            where = f"{format_table_name(place, config, split)}, row {number}"
            expectation = subset.expect(row, where)
            inner = expectation.pop("group", split if len(subset.splits) > 1 else None)
            yield Item(
                id=f"{config}/{split}/{number:04d}",
                audio=read_audio(row, "audio", where, place),
                text=read_text(row, "prompt", where),
                group=inner if is_alone else name,
                **expectation,
            )


def _config(name: str, place: str) -> str:
    """Where a subset's rows are; a folder that has AlpacaEval only in short is read so."""
    config = SUBSETS[name].config
    folder = Path(place)
    is_short = config == FULL_ALPACAEVAL and folder.is_dir() and not (folder / config).is_dir()
    return SHORT_ALPACAEVAL if is_short else config


def _origin(place: str, names: Mapping[str, Subset] | list[str]) -> str:
    """Where the data comes from, and whether it is less than the leaderboard's."""
    is_short = any(_config(name, place) == SHORT_ALPACAEVAL for name in names)
    return f"data: {place}" + (f", AlpacaEval in short ({SHORT_ALPACAEVAL})" if is_short else "")
