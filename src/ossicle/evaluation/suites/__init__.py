"""The suites that can be evaluated, by name: the embedded ones, the user's files and speech, and public benchmarks."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ossicle.data.formats import is_local_source
from ossicle.errors import DataError
from ossicle.evaluation.suite import EMBEDDED_SUITES, Suite, load_suite
from ossicle.evaluation.suites.bigbench import BIG_BENCH_AUDIO, open_bigbench
from ossicle.evaluation.suites.covost import COVOST, open_covost
from ossicle.evaluation.suites.emotion import IEMOCAP, MELD, open_iemocap, open_meld
from ossicle.evaluation.suites.librispeech import LIBRISPEECH, open_librispeech
from ossicle.evaluation.suites.speech_source import open_speech_suite
from ossicle.evaluation.suites.spoken_qa import HEYSQUAD, SDQA, open_heysquad, open_sdqa
from ossicle.evaluation.suites.voicebench import HUB_ID as VOICEBENCH
from ossicle.evaluation.suites.voicebench import open_voicebench

__all__ = ["SUITES", "find_hub_dataset", "open_suite"]

_SUITE_SUFFIXES = (".jsonl", ".parquet")
"""Files whose lines or rows are items, with instructions and answers."""
SuiteOpener = Callable[[str, str | None], Suite]
"""Returns a suite, given the part of its name after a slash ("" for none) and the source of its data, if named."""

SUITES: Mapping[str, SuiteOpener] = {
    "voicebench": open_voicebench,
    "sd-qa": open_sdqa,
    "heysquad": open_heysquad,
    "covost2": open_covost,
    "bigbenchaudio": open_bigbench,
    "librispeech": open_librispeech,
    "iemocap": open_iemocap,
    "meld": open_meld,
}
"""The public benchmarks, by the part of their name before a slash."""

_HUB_DATASETS = {
    "voicebench": VOICEBENCH,
    "sd-qa": SDQA,
    "heysquad": HEYSQUAD,
    "covost2": COVOST,
    "bigbenchaudio": BIG_BENCH_AUDIO,
    "librispeech": LIBRISPEECH,
    "iemocap": IEMOCAP.hub_id,
    "meld": MELD.hub_id,
}


def find_hub_dataset(name: str) -> str | None:
    """Returns the hub id of a public benchmark's data by the suite's name; None for other suites."""
    return _HUB_DATASETS.get(name.partition("/")[0])


def open_suite(name: str, data: str | None = None) -> Suite:
    """Returns a suite by its name, such as "pocket" or "covost2/en_de", or of a JSONL or parquet file or a local source.

    Args:
        data: the source of a public benchmark's data, if not its own hub id: another hub id, or a local folder in the
            published layout

    Raises:
        DataError: no such suite, data that differs from the published form, or data for another suite
    """
    family, _, part = name.partition("/")
    if family in SUITES:
        return SUITES[family](part, data)
    if data is not None:
        raise DataError(
            f"data is {data!r}, but the suite {name!r} has its own: leave it out, or name a public benchmark"
            f" ({', '.join(SUITES)})"
        )
    if is_local_source(name) and not name.endswith(_SUITE_SUFFIXES):
        return open_speech_suite(name)
    if not Path(name).suffix and name not in EMBEDDED_SUITES:
        known = ", ".join([*EMBEDDED_SUITES, *SUITES])
        raise DataError(
            f"no suite {name!r}; expected one of {known}, a JSONL or parquet file, or a local source of speech"
        )
    return Suite(name=name, items=load_suite(name))
