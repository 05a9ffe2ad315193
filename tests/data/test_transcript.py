"""The rule that normalizes transcripts."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossicle.data.transcript import normalize_transcript, normalize_transcripts

TEXTS = st.text(
    st.one_of(
        st.sampled_from("aAbBİßΣςÅ\u0301\u200b\u200d\u00ad\ufeff\x00\x1f\t\n\u00a0\u2000 .!?'’iI1,-"),
        st.characters(exclude_categories=["Cs"]),
    )
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("  two\t\n words ", "two words"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("a\x00b \x07 c", "ab c"),
        ("no\u00a0break", "no break"),
        ("soft\u00adware", "software"),
        ("A\u030angstro\u0308m", "Ångström"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("HE SAID I'LL GO AND I THINK SO", "He said I'll go and I think so"),
        ('WHY. BECAUSE! "WELL"', 'Why. Because! "Well"'),
        ("GRÜSSE AUS ÖSTERREICH", "Grüsse aus österreich"),
        ("IBM", "IBM"),
        ("NASA 1969", "NASA 1969"),
        ("The BBC NEWS", "The BBC NEWS"),
        ("ДВА СЛОВА", "Два слова"),
        ("i think I do", "i think I do"),
        ("\u200b\x00 ", ""),
    ],
)
def test_transcripts_are_normalized_by_the_rule(given: str, expected: str) -> None:
    assert normalize_transcript(given) == expected


@given(text=TEXTS)
def test_a_normalized_transcript_stays_unchanged(text: str) -> None:
    normal = normalize_transcript(text)
    assert normalize_transcript(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == " ".join(normal.split())
    assert not any(unicodedata.category(character) == "Cc" for character in normal)


@given(
    texts=st.lists(
        st.one_of(st.none(), TEXTS, st.sampled_from(["plain words.", "A plain one", "a  b", "A B", "1 2 a"]))
    )
)
def test_a_column_is_normalized_like_its_rows(texts: list[str | None]) -> None:
    expected = [normalize_transcript(text) or None if text is not None else None for text in texts]
    for kind in (pa.string(), pa.large_string()):
        column = pa.chunked_array([pa.array(texts, kind), pa.array(texts[1:], kind)])
        assert normalize_transcripts(column).to_pylist() == expected + expected[1:]
        assert normalize_transcripts(column).type == pa.string()
