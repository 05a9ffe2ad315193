"""CoVoST 2: spoken sentences, to be translated by a written instruction."""

from collections.abc import Iterator

from ossicle.errors import DataError
from ossicle.evaluation.scoring.translation import DEFAULT_TOKENIZER, load_sacrebleu
from ossicle.evaluation.suite import Item, Suite
from ossicle.evaluation.suites.hub_tables import format_table_name, read_audio, read_published_rows, read_text

COVOST = "fixie-ai/covost2"
"""CoVoST 2 with its sound; facebook/covost2 only names files of Common Voice."""
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
"""For languages without spaces. Japanese is split into characters, as sacreBLEU's ja-mecab needs a dictionary."""
MAX_NEW_TOKENS = 256
"""Tamil and Mongolian take many tokens per word."""


def open_covost(part: str, data: str | None) -> Suite:
    """Returns CoVoST 2's test split of a pair such as en_de: speech, and a written instruction to translate it.

    DiVA's evaluation words the instruction differently and reports the mean BLEU of single sentences; this is corpus
    BLEU, as in the paper.

    Raises:
        DataError: no such pair, data that differs from the published form, or sacreBLEU is not installed

    Source: Wang et al., CoVoST 2, arXiv 2007.10310; SALT-NLP/DiVA-Eval.
    """
    source_code, _, target_code = part.partition("_")
    is_known = source_code in LANGUAGES and target_code in LANGUAGES
    if not is_known or (source_code == "en") == (target_code == "en"):
        raise DataError(
            f"covost2 has no pair {part!r}; expected en and another language, such as covost2/en_de or covost2/fr_en,"
            f" of {', '.join(LANGUAGES)}"
        )
    tokenizer = TOKENIZERS.get(target_code, DEFAULT_TOKENIZER)
    load_sacrebleu(tokenizer)  # fails here rather than after hours of answers
    return Suite(
        name=f"covost2/{part}",
        items=tuple(_read_items(data or COVOST, part, tokenizer)),
        description=f"CoVoST 2: speech in {LANGUAGES[source_code]} to be translated into {LANGUAGES[target_code]}"
        f" (Wang et al. 2020, arXiv 2007.10310); corpus BLEU with sacreBLEU's tokenizer {tokenizer}.",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _read_items(source: str, pair: str, tokenizer: str) -> Iterator[Item]:
    spoken, target = map(LANGUAGES.__getitem__, pair.split("_"))
    instruction = f"Translate what I said from {spoken} into {target}. Answer with the translation only."
    table = format_table_name(source, pair, "test")
    columns = ("id", "audio", "sentence", "translation")
    for number, row in enumerate(
        read_published_rows(source, config=pair, split="test", columns=columns), start=1
    ):
        row_name = f"{table}, row {number}"
        yield Item(
            id=read_text(row, "id", row_name),
            audio=read_audio(row, "audio", row_name, source),
            text=read_text(row, "sentence", row_name),
            instruction=instruction,
            answer=read_text(row, "translation", row_name),
            rule="bleu",
            rubric={"tokenize": tokenizer},
        )
