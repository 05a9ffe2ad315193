"""VoiceBench: nine sets of spoken requests to an assistant, from questions to orders that it should refuse.

The sets, their splits, their scoring and the overall number follow VoiceBench (Chen et al., arXiv 2410.17196;
github.com/MatthewCYM/VoiceBench) in the form of its leaderboard: AlpacaEval in full, SD-QA in the accent of the USA,
and the mean of the nine sets as the overall number. A mean rating of up to 5 points is multiplied by 20, SD-QA is the
mean of PANDA's and a judge's verdicts, and IFEval the mean of four ratios. The data is hlt-lab/voicebench on the hub.
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
"""Longest answer, in tokens, as in VoiceBench's own runs of LLMs."""
FULL_ALPACAEVAL, SHORT_ALPACAEVAL = "alpacaeval_full", "alpacaeval"
"""All 636 requests, as on the leaderboard, and 199 of them."""

Row = dict[str, Any]
Expectation = dict[str, Any]
"""The fields of an item that say what is expected: answer, rule, rubric, and the group within its subset."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One of the nine sets: its configuration in the published data, and how a row becomes an item."""

    config: str
    splits: tuple[str, ...] = ("test",)
    leaderboard_splits: tuple[str, ...] | None = None
    """The splits that count in the overall number, if not all."""
    columns: tuple[str, ...] = ()
    """The columns in addition to sound and prompt."""
    build_expectation: Callable[[Row, str], Expectation]
    """Takes a row, and its name in error messages."""
    description: str
    """The requests and their number, for the report."""


def _expect_rating(row: Row, row_name: str) -> Expectation:
    return {"answer": "a good answer, by a judge", "rule": "rated"}


def _expect_refusal(row: Row, row_name: str) -> Expectation:
    return {"answer": "a refusal", "rule": "refusal"}


def _expect_reference(row: Row, row_name: str) -> Expectation:
    reference = read_text(row, "reference", row_name)
    return {"answer": reference, "rule": "panda and judge", "rubric": {"answers": [reference]}}


def _expect_choice(row: Row, row_name: str) -> Expectation:
    letter = read_text(row, "reference", row_name).upper().strip("(). ")
    if letter not in tuple(DEFAULT_LETTERS):
        raise DataError(
            f"{row_name}: reference is {letter!r}, expected one of {', '.join(DEFAULT_LETTERS)};"
            " download the data again"
        )
    return {"answer": letter, "rule": "choice", "rubric": {"letters": DEFAULT_LETTERS}}


def _expect_conclusion(row: Row, row_name: str) -> Expectation:
    """Returns what a row of BBH expects; its task is part of the row's id, such as "navigate_12"."""
    name, reference = read_text(row, "id", row_name), read_text(row, "reference", row_name)
    task = next((task for task in BBH_TASKS if task in name), None)
    if task is None:
        raise DataError(f"{row_name}: id is {name!r}, expected one with a task in it: {', '.join(BBH_TASKS)}")
    answer = reference.strip("() ").upper() if task in BBH_LETTERS else reference.lower()
    possible = tuple(BBH_LETTERS[task]) if task in BBH_LETTERS else ("yes", "no")
    if answer not in possible:
        raise DataError(f"{row_name}: reference is {reference!r}, expected {' or '.join(possible)} in {task}")
    return {"answer": answer, "rule": "bbh", "rubric": {"task": task}, "group": task.replace("_", " ")}


def _expect_instructions(row: Row, row_name: str) -> Expectation:
    """Returns what a row of IFEval expects: instructions by name, each with its arguments that are not null."""
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not (
        isinstance(names, list) and isinstance(arguments, list) and names and len(names) == len(arguments)
    ):
        raise DataError(
            f"{row_name}: instruction_id_list and kwargs are not two lists of the same length, with an entry for"
            " each instruction; download the data again"
        )
    instructions = []
    for name, struct in zip(names, arguments, strict=True):
        given = {key: value for key, value in (struct or {}).items() if value is not None}
        try:
            check_instruction(name, given)
        except DataError as error:
            raise DataError(f"{row_name}: {error}; download the data again") from None
        instructions.append({"id": name, "arguments": given})
    return {"answer": ", ".join(names), "rule": "ifeval", "rubric": {"instructions": instructions}}


ACCENTS = ("aus", "gbr", "ind_n", "ind_s", "irl", "kenya", "nga", "nzl", "phl", "usa", "zaf")
DOMAINS = tuple(
    "law engineering other biology business economics health philosophy psychology history chemistry physics".split()
)
SUBSETS: Mapping[str, Subset] = {
    "alpacaeval": Subset(
        config=FULL_ALPACAEVAL,
        build_expectation=_expect_rating,
        description="requests of AlpacaEval, rated 1 to 5",
    ),
    "commoneval": Subset(
        config="commoneval",
        build_expectation=_expect_rating,
        description="questions of Common Voice, rated 1 to 5",
    ),
    "wildvoice": Subset(
        config="wildvoice",
        build_expectation=_expect_rating,
        description="requests by many speakers, rated 1 to 5",
    ),
    "sd-qa": Subset(
        config="sd-qa",
        splits=ACCENTS,
        leaderboard_splits=("usa",),
        columns=("reference",),
        build_expectation=_expect_reference,
        description="questions of fact in eleven accents",
    ),
    "mmsu": Subset(
        config="mmsu",
        splits=DOMAINS,
        columns=("reference",),
        build_expectation=_expect_choice,
        description="exam questions, four options",
    ),
    "openbookqa": Subset(
        config="openbookqa",
        columns=("reference",),
        build_expectation=_expect_choice,
        description="school science, four options",
    ),
    "bbh": Subset(
        config="bbh",
        columns=("id", "reference"),
        build_expectation=_expect_conclusion,
        description="reasoning, yes or no or two options",
    ),
    "ifeval": Subset(
        config="ifeval",
        columns=("instruction_id_list", "kwargs"),
        build_expectation=_expect_instructions,
        description="instructions that a program can check",
    ),
    "advbench": Subset(
        config="advbench", build_expectation=_expect_refusal, description="harmful orders, to be refused"
    ),
}
"""The nine sets, in the leaderboard's order."""


def open_voicebench(part: str, data: str | None) -> Suite:
    """Returns all nine subsets, each as a group, or one of them, grouped by accent, domain or task if it has several.

    Args:
        part: a subset's name, "" for all nine
        data: a hub id in place of `HUB_ID`, or a local folder in its layout

    Raises:
        DataError: no such subset, or data that is missing or differs from the published form; the message names source,
            row and column
    """
    if part and part not in SUBSETS:
        raise DataError(
            f'suite "voicebench/{part}": no such subset; take one of {", ".join(SUBSETS)}, or "voicebench" for all'
        )
    source = data or HUB_ID
    if part:
        items = tuple(_read_items(part, source, is_alone=True))
        description = f"VoiceBench's {part}: {SUBSETS[part].description}; {_describe_source(source, [part])}."
        return Suite(
            name=f"voicebench/{part}", items=items, description=description, max_new_tokens=MAX_NEW_TOKENS
        )
    items = tuple(item for name in SUBSETS for item in _read_items(name, source, is_alone=False))
    origin = _describe_source(source, SUBSETS)
    description = f"VoiceBench, nine sets of spoken requests, and the mean of their numbers; {origin}."
    return Suite(
        name="voicebench",
        items=items,
        overall="groups",
        description=description,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_items(name: str, source: str, *, is_alone: bool) -> Iterator[Item]:
    """Yields a subset's items: of all splits if it is evaluated alone, else of the leaderboard's splits."""
    subset, config = SUBSETS[name], _find_config(name, source)
    splits = subset.splits if is_alone else subset.leaderboard_splits or subset.splits
    for split in splits:
        columns = ("audio", "prompt", *subset.columns)
        rows = read_published_rows(source, config=config, split=split, columns=columns)
        for number, row in enumerate(rows, start=1):
            row_name = f"{format_table_name(source, config, split)}, row {number}"
            expectation = subset.build_expectation(row, row_name)
            own_group = expectation.pop("group", split if len(subset.splits) > 1 else None)
            yield Item(
                id=f"{config}/{split}/{number:04d}",
                audio=read_audio(row, "audio", row_name, source),
                text=read_text(row, "prompt", row_name),
                group=own_group if is_alone else name,
                **expectation,
            )


def _find_config(name: str, source: str) -> str:
    """Returns the configuration of a subset; in a folder with only the short AlpacaEval, that one."""
    config = SUBSETS[name].config
    folder = Path(source)
    is_short = config == FULL_ALPACAEVAL and folder.is_dir() and not (folder / config).is_dir()
    return SHORT_ALPACAEVAL if is_short else config


def _describe_source(source: str, names: Mapping[str, Subset] | list[str]) -> str:
    """Returns the source of the data in words, and whether it has less than the leaderboard's data."""
    is_short = any(_find_config(name, source) == SHORT_ALPACAEVAL for name in names)
    return f"data: {source}" + (f", short AlpacaEval ({SHORT_ALPACAEVAL})" if is_short else "")
