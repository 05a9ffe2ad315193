"""Identifies the language of a text by its script, by letters of that language alone, and by common function words.

A short rule for the thirty languages that IFEval asks for, in place of a statistical identifier. The texts to check are
answers of a sentence or more in a single language, and languages differ in script or in a dozen words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

_SCRIPTS: Mapping[str, str] = {
    "ar": "ARABIC",
    "fa": "ARABIC",
    "ur": "ARABIC",
    "ru": "CYRILLIC",
    "uk": "CYRILLIC",
    "bg": "CYRILLIC",
    "hi": "DEVANAGARI",
    "mr": "DEVANAGARI",
    "ne": "DEVANAGARI",
    "bn": "BENGALI",
    "gu": "GUJARATI",
    "he": "HEBREW",
    "ja": "JAPANESE",
    "kn": "KANNADA",
    "ko": "HANGUL",
    "ml": "MALAYALAM",
    "pa": "GURMUKHI",
    "ta": "TAMIL",
    "te": "TELUGU",
    "th": "THAI",
}
"""Scripts by ISO 639-1 code, of languages that are not written in Latin letters; names as in Unicode's characters."""

_UNIQUE_LETTERS: Mapping[str, str] = {
    "ur": "ٹڈڑںے",
    "fa": "پچژگکی",
    "uk": "іїєґ",
    "ru": "ыэё",
    "mr": "ळ",
    "vi": "ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "pl": "łżśćęąńź",
    "es": "ñ¿¡",
    "pt": "ãõ",
    "de": "ß",
}
"""Letters that other languages of the same script lack. Urdu also has Persian's letters and comes first."""

_FUNCTION_WORDS: Mapping[str, str] = {
    "en": "the of and to in is that it for was on are as with his they at be this from have or by not but"
    " what all were we when your can said there an which their if will each about how up out them then"
    " she many some so these would has more no could my than been who its now you i do yes a one other"
    " another any because very just like here good most may also over after into only such where between"
    " under while should our her him me am us did get make way much every both through before against"
    " during without within",
    "es": "el la de que y en un una los las del se no por con para su al es lo como más pero sus le ya o este"
    " sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante"
    " todos uno les ni son está mi tu muchos puede yo él",
    "pt": "o a de que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das"
    " tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era"
    " depois sem mesmo aos são você sim isto esta este minha meu pode",
    "fr": "le la les de des du un une et est en que qui dans pour pas sur au avec il ce se ne plus par je ou"
    " son sont nous vous mais comme elle cette aux ses leur être fait si tout on à été même bien ces où"
    " très sans oui non mon ma mes votre cet peut",
    "de": "der die das und ist in den von zu mit sich des auf für nicht ein eine als auch es an werden aus er"
    " hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder"
    " aber vor zur bis mehr durch ich ja nein dem wir ihr mein dein sein ihre kann keine man diese"
    " dieser",
    "it": "il lo la i gli le di che e è un una per in non con si da come più ma del della dei delle al alla"
    " nel nella sono anche se ha o su questo questa ci dal dalla molto essere quando io dove loro cui"
    " tra sì ho hai abbiamo mio tuo lei lui",
    "pl": "i w na z do się nie że to jest o jak po co ale dla od za przez są tak być jego które który która"
    " lub oraz tym może już tylko ich czy ma był była przy bardzo ze gdy jestem mam moje twoje ja ty",
    "vi": "và của là có không được cho những một các trong với người này để khi đã từ cũng nhiều như về tại"
    " theo ra sẽ vào đến trên hay bạn tôi chúng thể rất vâng anh em đó",
    "sw": "na ya wa kwa ni katika za la kuwa cha hii hiyo au kama yake watu pia vya lakini sana huu hizi wake"
    " yao kila hivyo ili bado wao mimi wewe si kutoka baada kabla mtu ndiyo hapana nina",
    "fi": "ja on ei että se hän oli ovat kun mutta myös tai joka sen niin kuin hänen jos ole mitä voi ne"
    " mukaan tämä sekä olla jo vain minä sinä he tämän eivät joten hyvin kanssa koska kyllä minun sinun"
    " hyvä",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij uit wordt door"
    " naar heeft",
    "sv": "och att det i en som är på för med av den till inte har ett om var jag men sig från så kan när han"
    " ska",
    "hi": "है हैं का की के में और से को यह पर नहीं कि भी हो था थे थी एक इस वह लिए तो ने कर या जो अपने आप मैं हम",
    "mr": "आहे आहेत आणि हे ते या च्या मध्ये नाही ही होते होता होती एक मी तुम्ही आपण त्या हा जे पण साठी करणे असे की",
    "ne": "छ छन् र मा हो यो को का लाई गर्न भएको पनि एक थियो हुन्छ गर्ने तपाईं म हामी त्यो छैन भने हरू गरेको लागि",
    "bg": "на и да се в за от е не са по с че като ще това при със до но или го най има който която които"
    " бъде аз този тази след може както",
    "ru": "и в не на что с как по это он она из за то от так но все же бы у к или его для мы вы я если был"
    " когда при есть",
    "uk": "і в не на що з як до це та за від але або його для ми ви я якщо був коли при є у він вона про ще",
}
"""Common function words of languages that share a script. Dutch and Swedish are only here as alternatives."""

LANGUAGES = tuple(sorted({*_SCRIPTS, *_FUNCTION_WORDS} - {"nl", "sv"}))
"""ISO 639-1 codes of the languages that an instruction can name."""

_WORDS = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}
_LANGUAGES_PER_WORD = Counter(word for words in _WORDS.values() for word in words)
_SHARED_SCRIPTS = ("LATIN", "CYRILLIC", "DEVANAGARI")
"""Scripts of several languages, which are distinguished by their words."""
_MIN_WORDS = 3
"""A text with fewer words, none of them a function word, may be in any language."""
_MIN_LETTER_RATIO = 0.004
"""A text is in a language if the language's unique letters are more than this ratio of the text's letters."""


def is_in_language(text: str, code: str) -> bool:
    """Whether most of a text is in the language of an ISO 639-1 code, one of `LANGUAGES`.

    A text whose language cannot be determined counts as being in it, as in IFEval, but never in another script. Such a
    text has no letters, or fewer than `_MIN_WORDS` words and no function word.

    Source: identification by function words after Grefenstette, "Comparing two language identification schemes", 1995.
    """
    text = unicodedata.normalize("NFC", text).lower()
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return True
    script = _find_script(letters)
    if script != _SCRIPTS.get(code, "LATIN"):
        return False
    candidates = [other for other in (*_SCRIPTS, *_WORDS) if _SCRIPTS.get(other, "LATIN") == script]
    evidence = {other: _measure_evidence(text, letters, other) for other in dict.fromkeys(candidates)}
    if script == "ARABIC":  # a text with unique letters of neither is Arabic
        identified = next((other for other in ("ur", "fa") if evidence[other] > 0), "ar")
        return identified == code
    strongest = max(evidence.values())
    is_undetermined = len(text.split()) < _MIN_WORDS or script not in _SHARED_SCRIPTS
    return evidence[code] == strongest and (strongest > 0 or is_undetermined)


def _find_script(letters: list[str]) -> str:
    """Returns the script of most letters; a text with kana among Chinese characters is Japanese."""
    counts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters)
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana and counts["CJK"] + kana > len(letters) / 2:
        return "JAPANESE"
    return counts.most_common(1)[0][0]


def _measure_evidence(text: str, letters: list[str], code: str) -> float:
    """Returns a weight for a language: its unique letters, and its function words over the languages that have them."""
    unique = _UNIQUE_LETTERS.get(code, "")
    letter_ratio = sum(text.count(letter) for letter in unique) / len(letters)
    if _SCRIPTS.get(code) == "ARABIC":
        return letter_ratio if letter_ratio > _MIN_LETTER_RATIO else 0.0
    function_words = _WORDS.get(code, frozenset())
    words = re.findall(r"[^\W\d_]+(?:[\u0900-\u097f]+[^\W\d_]*)*", text)
    weight = sum(1 / _LANGUAGES_PER_WORD[word] for word in words if word in function_words)
    return (weight + (2 + len(words) / 10) * (letter_ratio > _MIN_LETTER_RATIO)) / max(1, len(words))
