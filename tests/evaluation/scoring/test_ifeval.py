"""IFEval: every kind of instruction, strictly and loosely; words, sentences and languages; and the number of it all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.errors import DataError
from ossicle.evaluation.scoring import RULES
from ossicle.evaluation.scoring.ifeval import check_instruction, follows_instruction
from ossicle.evaluation.scoring.ifeval.counting import count_capital_words, count_sentences, count_words
from ossicle.evaluation.scoring.ifeval.instructions import INSTRUCTION_KINDS
from ossicle.evaluation.scoring.ifeval.language import LANGUAGES, is_in_language
from ossicle.evaluation.scoring.ifeval.rule import build_loose_variants
from ossicle.evaluation.statistics import bootstrap_score
from ossicle.evaluation.suite import Item

AT_LEAST, LESS_THAN = {"relation": "at least"}, {"relation": "less than"}

EXAMPLES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["hat", "C++"]},
        ["A HAT and c++ code.", "chatty c++"],
        ["A hat.", "c++"],
    ),
    ("keywords:frequency", {"keyword": "hat", "frequency": 2} | AT_LEAST, ["Hat, hat."], ["One hat."]),
    ("keywords:frequency", {"keyword": "hat", "frequency": 2} | LESS_THAN, ["One hat."], ["hat hat"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["hat", "cap"]},
        ["That is what."],
        ["My Hat!", "a cap"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        ["Eerie"],
        ["tree"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# one"],
        ["# ##"],
    ),
    ("language:response_language", {"language": "de"}, ["Das ist nicht so gut."], ["That is not so good."]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2} | AT_LEAST,
        ["It rains. I read."],
        ["It rains on Dr. Who."],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2} | LESS_THAN, ["It rains."], ["Oh! No."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a *** b", "***\na\n***\nb"],
        ["a", "a *** *** b"],
    ),
    ("length_constraints:number_words", {"num_words": 3} | AT_LEAST, ["well-known man"], ["two words"]),
    ("length_constraints:number_words", {"num_words": 3} | LESS_THAN, ["two words"], ["now three words"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Rain"},
        ["Sun.\n\n'Rain, again", "sun\n\nrain"],
        ["rain\n\nsun", "sun\n\nrainy", "sun\n\nrain\n\nsnow", "rain"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[name] at [place]"], ["[name]"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye. P. S. Me", "p.s.: x"],
        ["Bye. PS x"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye\nP.P.S. Me"], ["Bye. P.S. Me"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Two:\n- a\n  - b"],
        ["* a", "* a\n* b\n* c", "**a**\n**b**"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is maybe.", "Hm. My answer is no."],
        ["Maybe."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** *two*"],
        ["*one*", "* *", "*one\ntwo*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "Section one. Section two."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[]\n```"],
        ["{a: 1}", "Hi"],
    ),
    ("detectable_format:title", {}, ["<<Rain>>\nIt rains."], ["<Rain>", "<< >>", "<<Rain\n>>"]),
    ("combination:two_responses", {}, ["a ****** b"], ["a", "a ****** a", "a ****** b ****** c"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it. "},
        ["say it. It."],
        ["Sure! Say it.", "Say that."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The end."},
        ["So. the END.", '"So. The end."'],
        ["The end. Bye."],
    ),
    ("startend:quotation", {}, [' "It rains." '], ["It rains.", '"It rains.', '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I saw NASA.", "TOP-NOTCH, (YES)!"],
        ["NASA", "Nasa And Us"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS THE ANSWER."],
        ["This is the answer.", "DAS IST NICHT SO GUT."],
    ),
    ("change_case:english_lowercase", {}, ["this is the answer."], ["This is it.", "das ist nicht so gut."]),
    ("punctuation:no_comma", {}, ["Rain; sun."], ["Rain, sun."]),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), EXAMPLES)
def test_a_kind_of_instruction(name: str, arguments: dict[str, Any], good: list[str], bad: list[str]) -> None:
    check_instruction(name, arguments)
    assert [answer for answer in good if not follows_instruction(answer, name, arguments)] == []
    assert [answer for answer in [*bad, "", " \n"] if follows_instruction(answer, name, arguments)] == []


def test_every_kind_has_examples() -> None:
    assert {name for name, *_ in EXAMPLES} == set(INSTRUCTION_KINDS)
    assert len(INSTRUCTION_KINDS) == 25


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("keywords:key_sentences", {}, "none of IFEval's kinds"),
        ("keywords:existence", {}, "keywords is None, expected a list of words"),
        ("keywords:existence", {"keywords": "hat"}, "expected a list of words"),
        (
            "keywords:frequency",
            {"keyword": "hat", "frequency": 2, "relation": "most"},
            "'less than' or 'at least'",
        ),
        ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}, "expected a number"),
        ("language:response_language", {"language": "xx"}, "expected one of ar, bg"),
        ("startend:end_checker", {"end_phrase": " "}, "expected a text"),
    ],
)
def test_an_instruction_that_cannot_be_checked_is_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_instruction(name, arguments)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, ""),
        (1, "..."),
        (1, "no end"),
        (1, "It costs 3.50 dollars, Mr. Smith."),
        (1, "J. S. Bach lived, e.g. in Leipzig"),
        (2, "It rains. it pours"),
        (2, 'He said "Go!" Then he went.'),
        (1, "Well... maybe so."),
        (2, "Well... Maybe so."),
        (2, "We met at 5 p.m. They left."),
        (1, "We met at 5 p.m. on Monday."),
        (3, "One! Two? Three."),
        (2, "雨が降る。本を読む。"),
        (1, "a line\nand another"),
    ],
)
def test_sentences_are_counted(n: int, text: str) -> None:
    assert count_sentences(text) == n


def test_words_and_capitals_are_counted() -> None:
    assert count_words("It's a well-known snake_case, 3.5!") == 8
    assert count_capital_words("I'm at NASA, in the U.S. (YES) — not Here, TOP-TEN!") == 5


SPOKEN = {
    "ar": "البيت على التل وهناك أشجار كثيرة في الحديقة. الطقس جميل اليوم.",
    "bg": "Къщата е на хълма и там има много дървета. Времето днес е хубаво.",
    "bn": "বাড়িটি পাহাড়ের উপরে এবং সেখানে অনেক গাছ আছে।",
    "de": "Das Haus steht auf dem Hügel, und dort sind viele Bäume. Heute scheint die Sonne.",
    "en": "The house is on the hill, and there are many trees. It is sunny today.",
    "es": "La casa está en la colina y hay muchos árboles. Hoy hace sol.",
    "fa": "خانه روی تپه است و درخت‌های زیادی آنجا هست. امروز هوا خوب است و گرم.",
    "fi": "Talo on mäellä, ja siellä on paljon puita. Tänään paistaa aurinko, mutta on kylmä.",
    "fr": "La maison est sur la colline et il y a beaucoup d'arbres. Il fait beau aujourd'hui.",
    "gu": "ઘર ટેકરી પર છે અને ત્યાં ઘણાં વૃક્ષો છે.",
    "he": "הבית נמצא על הגבעה ויש שם הרבה עצים.",
    "hi": "घर पहाड़ी पर है और वहाँ बहुत सारे पेड़ हैं। आज मौसम अच्छा है।",
    "it": "La casa è sulla collina e ci sono molti alberi. Oggi c'è il sole.",
    "ja": "家は丘の上にあり、木がたくさんあります。",
    "kn": "ಮನೆ ಬೆಟ್ಟದ ಮೇಲೆ ಇದೆ ಮತ್ತು ಅಲ್ಲಿ ಅನೇಕ ಮರಗಳಿವೆ.",
    "ko": "집은 언덕 위에 있고 나무가 많이 있습니다.",
    "ml": "വീട് കുന്നിൻ മുകളിലാണ്, അവിടെ ധാരാളം മരങ്ങളുണ്ട്.",
    "mr": "घर टेकडीवर आहे आणि तिथे खूप झाडे आहेत. आज हवा छान आहे.",
    "ne": "घर पहाडमा छ र त्यहाँ धेरै रूखहरू छन्। आज मौसम राम्रो छ।",
    "pa": "ਘਰ ਪਹਾੜੀ ਉੱਤੇ ਹੈ ਅਤੇ ਉੱਥੇ ਬਹੁਤ ਸਾਰੇ ਰੁੱਖ ਹਨ।",
    "pl": "Dom stoi na wzgórzu i jest tam wiele drzew. Dzisiaj świeci słońce.",
    "pt": "A casa fica na colina e há muitas árvores ali. Hoje faz sol.",
    "ru": "Дом стоит на холме, и там растёт много деревьев. Сегодня хорошая погода, но холодно.",
    "sw": "Nyumba iko juu ya kilima na kuna miti mingi katika eneo hilo. Leo kuna jua.",
    "ta": "வீடு மலையின் மேல் உள்ளது, அங்கு பல மரங்கள் உள்ளன.",
    "te": "ఇల్లు కొండపై ఉంది మరియు అక్కడ చాలా చెట్లు ఉన్నాయి.",
    "th": "บ้านอยู่บนเนินเขาและมีต้นไม้มากมาย",
    "uk": "Будинок стоїть на пагорбі, і там багато дерев. Сьогодні гарна погода.",
    "ur": "گھر پہاڑی پر ہے اور وہاں بہت سے درخت ہیں۔ آج موسم اچھا ہے۔",
    "vi": "Ngôi nhà nằm trên đồi và có nhiều cây. Hôm nay trời nắng.",
}
"""Sentences of the same meaning in every language that IFEval asks for."""


def test_each_language_is_distinguished_from_all_others() -> None:
    assert set(SPOKEN) == set(LANGUAGES)
    assert {
        code: [other for other in LANGUAGES if is_in_language(text, other)] for code, text in SPOKEN.items()
    } == {code: [code] for code in LANGUAGES}


def test_an_undetermined_language_counts_unless_the_script_differs() -> None:
    assert is_in_language("12:30!", "sw")
    assert is_in_language("BRR", "en")
    assert not is_in_language("Brr grum plotz harf", "en")
    assert not is_in_language("BRR", "hi")
    assert not is_in_language("这座房子在山上。", "ja")
    assert not is_in_language("Het huis is van de buren en de tuin ook.", "de"), (
        "Dutch and Swedish are known as alternatives"
    )


def test_loose_variants_leave_out_lines_and_asterisks() -> None:
    assert build_loose_variants("Sure:\n**my, answer**\nBye, bye") == (
        "Sure:\n**my, answer**\nBye, bye",
        "**my, answer**\nBye, bye",
        "Sure:\n**my, answer**",
        "**my, answer**",
        "Sure:\nmy, answer\nBye, bye",
        "my, answer\nBye, bye",
        "Sure:\nmy, answer",
        "my, answer",
    )


def item(*instructions: tuple[str, dict[str, Any]], number: int = 0) -> Item:
    rubric = [{"id": name, "arguments": arguments} for name, arguments in instructions]
    return Item(
        id=str(number),
        audio=b"",
        text="Say it.",
        rule="ifeval",
        rubric={"instructions": rubric},
        answer="said",
    )


def test_the_number_is_the_mean_of_four_ratios() -> None:
    no_comma, quoted = ("punctuation:no_comma", {}), ("startend:quotation", {})
    items = [item(no_comma, quoted, number=0), item(no_comma, number=1), item(quoted, number=2)]
    answers = ['Sure, here:\n"it"', "no", "no"]
    scores = RULES["ifeval"].score(items, answers, None)
    assert scores == [(0, 1, 0, 2, 2), (1, 1, 1, 1, 1), (0, 0, 0, 0, 1)]
    expected = (1 / 3 + 2 / 3 + 1 / 4 + 3 / 4) / 4
    metric = RULES["ifeval"].metric
    assert metric.compute(scores) == pytest.approx(expected)
    low, high = bootstrap_score(metric, scores).ci95
    assert low < expected < high
    assert [metric.is_correct(each) for each in scores] == [True, True, False]


@given(st.text(alphabet='ab,"*\n .', max_size=60))
def test_what_is_followed_strictly_is_followed_loosely(answer: str) -> None:
    tested = item(("punctuation:no_comma", {}), ("startend:quotation", {}))
    (strict_prompt, loose_prompt, strict, loose, n) = RULES["ifeval"].score([tested], [answer], None)[0]
    assert strict_prompt <= loose_prompt
    assert strict <= loose <= n == 2


@given(st.text(max_size=80))
def test_any_text_can_be_checked(answer: str) -> None:
    for name, arguments, *_ in EXAMPLES:
        assert follows_instruction(answer, name, arguments) in (True, False)
    for code in ("ja", "hi", "fa", "ru", "en"):
        assert is_in_language(answer, code) in (True, False)
