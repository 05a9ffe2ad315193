"""Scores of translations equal those of sacreBLEU."""

import sys

import numpy as np
import pytest
import sacrebleu
from support.scoring import aggregate, build_item, draw_corpus

from ossicle.errors import DataError
from ossicle.evaluation.scoring import RULES, translation
from ossicle.evaluation.scoring.translation import count_ngrams
from ossicle.evaluation.statistics import bootstrap_score

WORDS = "the a cat dog sat ran on under mat house , . ! small old very and never it".split()


HANZI = list("你好世界我们在这里，。是不人大中")


@pytest.mark.parametrize(
    ("tokenizer", "words", "separator"), [("13a", WORDS, " "), ("zh", HANZI, ""), ("char", HANZI, "")]
)
@pytest.mark.parametrize("seed", range(4))
def test_summed_ngram_counts_give_sacrebleus_corpus_score(
    tokenizer: str, words: list[str], separator: str, seed: int
) -> None:
    answers, references = draw_corpus(seed, words, separator)
    scores = [count_ngrams(a, r, tokenizer) for a, r in zip(answers, references, strict=True)]
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize=tokenizer)
    assert aggregate("bleu", scores) == pytest.approx(expected.score, abs=1e-9)
    assert expected.score > 5  # it compares more than zeros

    resamples = np.random.default_rng(seed).integers(0, len(answers), (5, len(answers)))
    for rows in resamples:
        resampled = sacrebleu.corpus_bleu(
            [answers[row] for row in rows], [[references[row] for row in rows]], tokenize=tokenizer
        )
        assert aggregate("bleu", [scores[row] for row in rows]) == pytest.approx(resampled.score, abs=1e-9)


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        (["a b"], ["a b"]),  # no four-gram in it
        (["x y z w"], ["a b c d"]),
        (["", "a b c d"], ["a b", "a b c d"]),
        (["a b c x y z"], ["a b c d e f"]),  # orders without a match
        (["a b c d"] * 3, ["a b c d e f g h"] * 3),  # too short
    ],
)
def test_edge_cases_of_bleu_match_sacrebleu(answers: list[str], references: list[str]) -> None:
    scores = [count_ngrams(a, r) for a, r in zip(answers, references, strict=True)]
    expected = sacrebleu.corpus_bleu(answers, [references])
    assert aggregate("bleu", scores) == pytest.approx(expected.score, abs=1e-9)


def test_the_bleu_rule_uses_the_tokenizer_of_the_rubric_and_its_interval_contains_the_score() -> None:
    answers, references = draw_corpus(0, HANZI, "")
    items = [build_item(reference, rubric={"tokenize": "zh"}) for reference in references]
    scores = RULES["bleu"].score(items, answers, None)
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    estimate = bootstrap_score(RULES["bleu"].metric, scores)
    assert estimate.value == pytest.approx(expected, abs=1e-9)
    assert estimate.ci95[0] < expected < estimate.ci95[1]


def test_without_sacrebleu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    translation.load_sacrebleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(DataError, match=r"pip install 'ossicle\[benchmarks\]'"):
        count_ngrams("a", "b")
