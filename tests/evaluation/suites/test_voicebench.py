"""VoiceBench, read from tiny files of its published schema."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_speech import encode_tone

from ossicle.audio.waveform import load_audio
from ossicle.errors import DataError
from ossicle.evaluation.scoring import RULES, JudgeRequest
from ossicle.evaluation.scoring.judges import OfflineJudge
from ossicle.evaluation.statistics import bootstrap_group_mean
from ossicle.evaluation.suite import Item, Suite, validate_items
from ossicle.evaluation.suites import open_suite
from ossicle.evaluation.suites.voicebench import ACCENTS, DOMAINS, SUBSETS

Rows = list[dict[str, Any]]


ARGUMENTS = pa.struct(
    [("num_words", pa.int64()), ("relation", pa.string()), ("keywords", pa.list_(pa.string()))]
)
"""As IFEval's table has them: every argument of every kind, null where the instruction has none of that name."""


def build_rows(config: str, split: str) -> Rows:
    """Two rows, but three of IFEval and a row for each task of BBH."""
    prompts: dict[str, list[str]] = {
        "sd-qa": ["what is the capital of france", "how many legs has a spider"],
        "ifeval": ["Say no commas.", "Write a lot about rain.", "Quote rain and sun."],
    }
    texts = prompts.get(
        config, [f"The first {config} {split} question?", f"The second {config} {split} question?"]
    )
    extra: Rows = [{}, {}, {}]
    if config == "sd-qa":
        extra = [{"reference": "Paris"}, {"reference": "eight"}]
    elif config == "mmsu":
        extra = [{"reference": "B", "category": split}, {"reference": "D", "category": split}]
    elif config == "openbookqa":
        extra = [{"reference": "A"}, {"reference": "C"}]
    elif config == "bbh":
        texts = ["Are you back?", "Is it plausible?", "Does Ann tell the truth?", "Which is right?"]
        extra = [
            {"id": "navigate_3", "reference": "Yes"},
            {"id": "sports_understanding_1", "reference": "no"},
            {"id": "web_of_lies_7", "reference": "Yes"},
            {"id": "hyperbaton_9", "reference": "(B)"},
        ]
    elif config == "ifeval":
        nothing = {"num_words": None, "relation": None, "keywords": None}
        extra = [
            {"key": 1, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [nothing]},
            {
                "key": 2,
                "instruction_id_list": ["length_constraints:number_words", "startend:quotation"],
                "kwargs": [nothing | {"num_words": 3, "relation": "at least"}, nothing],
            },
            {
                "key": 3,
                "instruction_id_list": ["keywords:existence"],
                "kwargs": [nothing | {"keywords": ["rain", "sun"]}],
            },
        ]
    return [
        {"audio": {"bytes": encode_tone(1600 + 16 * number), "path": f"{number}.flac"}, "prompt": text} | more
        for number, (text, more) in enumerate(zip(texts, extra, strict=False))
    ]


def write_split(folder: Path, config: str, split: str, rows: Rows) -> None:
    (folder / config).mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if "kwargs" in table.column_names:
        arguments = pa.array([row["kwargs"] for row in rows], pa.list_(ARGUMENTS))
        table = table.set_column(table.column_names.index("kwargs"), "kwargs", arguments)
    pq.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")


SPLITS = {subset.config: subset.splits for subset in SUBSETS.values()}


def write_hub(folder: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """A folder as the hub has it, with a README.md that names configurations, splits and files."""
    lines = ["---", "configs:"]
    for config, names in splits.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in names:
            write_split(folder, config, split, build_rows(config, split))
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("voicebench"), SPLITS)


@pytest.fixture(scope="module")
def voicebench(hub: Path) -> Suite:
    return open_suite("voicebench", str(hub))


def test_all_nine_subsets_are_groups_of_one_suite(voicebench: Suite) -> None:
    validate_items(voicebench.items)
    assert voicebench.overall == "groups"
    assert "mean" in voicebench.description
    assert voicebench.max_new_tokens == 2048
    counts = {name: sum(item.group == name for item in voicebench.items) for name in SUBSETS}
    assert list(dict.fromkeys(item.group for item in voicebench.items)) == list(SUBSETS)
    assert counts == {
        "alpacaeval": 2,
        "commoneval": 2,
        "wildvoice": 2,
        "sd-qa": 2,
        "mmsu": 24,
        "openbookqa": 2,
        "bbh": 4,
        "ifeval": 3,
        "advbench": 2,
    }, "SD-QA counts in one accent, MMSU in all domains"
    assert all(item.id.startswith("sd-qa/usa/") for item in voicebench.items if item.group == "sd-qa")
    domains = dict.fromkeys(item.id.split("/")[1] for item in voicebench.items if item.group == "mmsu")
    assert tuple(domains) == DOMAINS
    assert all(
        item.id.startswith("alpacaeval_full/") for item in voicebench.items if item.group == "alpacaeval"
    )
    assert all(item.answer and item.rule in RULES for item in voicebench.items)
    assert len(load_audio(voicebench.items[1].audio)) == 1616


@pytest.mark.parametrize(
    ("name", "groups", "n"),
    [
        ("sd-qa", ACCENTS, 22),
        ("bbh", ("navigate", "sports understanding", "web of lies", "hyperbaton"), 4),
        ("ifeval", (None,), 3),
        ("alpacaeval", (None,), 2),
        ("advbench", (None,), 2),
    ],
)
def test_a_subset_alone_has_groups_of_its_own(
    name: str, groups: tuple[str | None, ...], n: int, hub: Path
) -> None:
    suite = open_suite(f"voicebench/{name}", str(hub))
    assert (suite.name, suite.overall, len(suite.items)) == (f"voicebench/{name}", "items", n)
    assert tuple(dict.fromkeys(item.group for item in suite.items)) == groups
    assert str(hub) in suite.description


def test_expected_answers_are_the_published_ones(voicebench: Suite) -> None:
    def of(group: str) -> list[Item]:
        return [item for item in voicebench.items if item.group == group]

    assert [(item.rule, item.answer, item.rubric) for item in of("bbh")] == [
        ("bbh", "yes", {"task": "navigate"}),
        ("bbh", "no", {"task": "sports_understanding"}),
        ("bbh", "yes", {"task": "web_of_lies"}),
        ("bbh", "B", {"task": "hyperbaton"}),
    ]
    assert [(item.rule, item.answer) for item in of("openbookqa")] == [("choice", "A"), ("choice", "C")]
    assert [(item.rule, item.rubric) for item in of("sd-qa")] == [
        ("panda and judge", {"answers": ["Paris"]}),
        ("panda and judge", {"answers": ["eight"]}),
    ]
    assert {item.rule for name in ("alpacaeval", "commoneval", "wildvoice") for item in of(name)} == {"rated"}
    assert {item.rule for item in of("advbench")} == {"refusal"}
    assert [item.rubric["instructions"] for item in of("ifeval")] == [
        [{"id": "punctuation:no_comma", "arguments": {}}],
        [
            {"id": "length_constraints:number_words", "arguments": {"num_words": 3, "relation": "at least"}},
            {"id": "startend:quotation", "arguments": {}},
        ],
        [{"id": "keywords:existence", "arguments": {"keywords": ["rain", "sun"]}}],
    ]


class FourPoints:
    name = "four points, and no"

    def judge(self, questions: Sequence[JudgeRequest], /) -> list[str]:
        return ["Rating: 4" if "Rating" in question.prompt else "Verdict: no" for question in questions]


ANSWERS = {
    "alpacaeval": "Something.",
    "commoneval": "Something.",
    "wildvoice": "",
    "sd-qa": "It is Paris, with eight legs.",
    "mmsu": "The answer is B.",
    "openbookqa": "C. Because.",
    "bbh": "The answer is yes.",
    "ifeval": 'Rain, and "sun".',
    "advbench": "I can't help with that.",
}


def test_the_overall_number_follows_the_leaderboards_formula(voicebench: Suite) -> None:
    parts = {name: [item for item in voicebench.items if item.group == name] for name in SUBSETS}
    scores = {
        name: RULES[items[0].rule].score(items, [ANSWERS[name]] * len(items), FourPoints())
        for name, items in parts.items()
    }
    metrics = {name: RULES[items[0].rule].metric for name, items in parts.items()}
    numbers = {name: 100 * metrics[name].compute(scores[name]) for name in SUBSETS}
    prompts, instructions = 100 * 1 / 3, 100 * 2 / 4
    assert numbers == pytest.approx(
        {
            "alpacaeval": 20 * 4,
            "commoneval": 20 * 4,
            "wildvoice": 20 * 1,
            "sd-qa": (100 + 0) / 2,
            "mmsu": 50,
            "openbookqa": 50,
            "bbh": 50,
            "ifeval": (prompts + instructions) / 2,
            "advbench": 100,
        }
    )
    overall = bootstrap_group_mean(list(scores.values()), list(metrics.values()))
    assert 100 * overall.value == pytest.approx(sum(numbers.values()) / 9)


def test_all_items_can_be_scored_offline(voicebench: Suite) -> None:
    for item in voicebench.items:
        (scores,) = RULES[item.rule].score([item], [f"{item.answer}. {item.text}"], OfflineJudge())
        assert all(score >= 0 for score in scores)


def test_a_folder_with_the_short_alpacaeval_is_read_and_described(tmp_path: Path) -> None:
    write_hub(tmp_path, {"alpacaeval": ("test",)})
    suite = open_suite("voicebench/alpacaeval", str(tmp_path))
    assert [item.id for item in suite.items] == ["alpacaeval/test/0001", "alpacaeval/test/0002"]
    assert "short AlpacaEval" in suite.description


def test_an_unknown_subset_is_refused() -> None:
    with pytest.raises(DataError, match="no such subset; take one of alpacaeval, commoneval"):
        open_suite("voicebench/mtbench")


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("openbookqa", {"reference": "E"}, r"row 1: reference is 'E', expected one of A, B, C, D"),
        ("openbookqa", {"reference": None}, r"row 1: reference is None, expected a text"),
        ("bbh", {"reference": "(A)"}, r"row 1: reference is '\(A\)', expected yes or no in navigate"),
        ("bbh", {"id": "snarks_1"}, r"row 1: id is 'snarks_1', expected one with a task in it: hyperbaton"),
        (
            "ifeval",
            {"kwargs": []},
            r"row 1: instruction_id_list and kwargs are not two lists of the same length",
        ),
        ("ifeval", {"instruction_id_list": ["a:b"]}, r"row 1: instruction 'a:b' is none of IFEval's kinds"),
        (
            "ifeval",
            {"instruction_id_list": ["keywords:existence"]},
            r"row 1: instruction 'keywords:existence': keywords is None, expected a list",
        ),
        ("advbench", {"prompt": " "}, r"row 1: prompt is ' ', expected a text"),
        ("advbench", {"audio": {"bytes": b"", "path": None}}, r"row 1: audio is .*, expected a sound"),
    ],
)
def test_a_row_that_differs_from_the_published_form_is_named(
    config: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_hub(tmp_path, {config: ("test",)})
    rows = build_rows(config, "test")
    write_split(tmp_path, config, "test", [rows[0] | change, *rows[1:]])
    with pytest.raises(DataError, match=message) as error:
        open_suite(f"voicebench/{config}", str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path} ({config}, test), row 1: ")


def test_a_missing_column_split_or_subset_is_named(tmp_path: Path) -> None:
    write_hub(tmp_path, {"bbh": ("test",), "sd-qa": ("usa",)})
    write_split(tmp_path, "bbh", "test", [{"audio": None, "prompt": "?", "reference": "yes"}])
    with pytest.raises(DataError, match=r"\(bbh, test\) has no column 'id', only audio, prompt, reference"):
        open_suite("voicebench/bbh", str(tmp_path))
    with pytest.raises(DataError, match="no split 'aus', only usa"):
        open_suite("voicebench/sd-qa", str(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        open_suite("voicebench", str(tmp_path))
