"""Spoken sentences to be translated as a written instruction asks: CoVoST 2."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.scoring.translation import DEFAULT_TOKENIZER, load_sacrebleu
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

COVOST = "fixie-ai/covost2"
"""CoVoST 2 with its sound; facebook/covost2 names files of Common Voice that have to be had elsewhere."""
LANGUAGES = {
    "en": "English",
    "ar": "Arabic",
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "lv": "Latvian",
    "mn": "Mongolian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv-SE": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
    "zh-CN": "Simplified Chinese",
}
TOKENIZERS = {"zh-CN": "zh", "ja": "char"}
"""For languages that part no words; Japanese by characters, since sacreBLEU's ja-mecab needs a dictionary of its own."""
MAX_NEW_TOKENS = 256
"""Tamil and Mongolian take many tokens a word."""


def open_covost(part: str, data: str | None) -> Suite:
    """CoVoST 2's test split of a pair such as en_de: what is said is to be translated, beside a written instruction.

    DiVA's evaluation asked for the same in other words and reports the mean of single sentences' BLEU; this is the
    BLEU of the corpus, as in the paper.

    Raises:
        DataError: no such pair, data that is not as published, or sacreBLEU is not installed

    Source: Wang et al., CoVoST 2, arXiv 2007.10310; SALT-NLP/DiVA-Eval.
    """
    source, _, target = part.partition("_")
    if source not in LANGUAGES or target not in LANGUAGES or (source == "en") == (target == "en"):
        raise DataError(
            f"covost2 has no pair {part!r}; expected en and another language, such as covost2/en_de or covost2/fr_en, of"
            f" {', '.join(LANGUAGES)}"
        )
    tokenizer = TOKENIZERS.get(target, DEFAULT_TOKENIZER)
    load_sacrebleu(tokenizer)  # what is missing is better known before hours of answers than behind them
    return Suite(
        name=f"covost2/{part}",
        items=tuple(_items(data or COVOST, part, tokenizer)),
        description=f"CoVoST 2: speech in {LANGUAGES[source]} to be translated into {LANGUAGES[target]} (Wang et al."
        f" 2020, arXiv 2007.10310); corpus BLEU with sacreBLEU's tokenizer {tokenizer}.",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _items(place: str, pair: str, tokenizer: str) -> Iterator[Item]:
    source, target = map(LANGUAGES.__getitem__, pair.split("_"))
    where = format_table_name(place, pair, "test")
    columns = ("id", "audio", "sentence", "translation")
    for number, row in enumerate(
        read_published_rows(place, config=pair, split="test", columns=columns), start=1
    ):
        name = f"{where}, row {number}"
        yield Item(
            id=read_text(row, "id", name),
            audio=read_audio(row, "audio", name, place),
            text=read_text(row, "sentence", name),
            instruction=f"Translate what I said from {source} into {target}. Answer with the translation only.",
            answer=read_text(row, "translation", name),
            rule="bleu",
            rubric={"tokenize": tokenizer},
        )
