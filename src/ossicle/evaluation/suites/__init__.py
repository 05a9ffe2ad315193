"""The suites that can be evaluated, by name: the embedded ones, files of one's own, and the public benchmarks."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ossicle.errors import DataError
from ossicle.evaluation.suite import EMBEDDED_SUITES, Suite, load_suite
from ossicle.evaluation.suites.bigbench import open_bigbench
from ossicle.evaluation.suites.covost import open_covost
from ossicle.evaluation.suites.emotion import open_iemocap, open_meld
from ossicle.evaluation.suites.librispeech import open_librispeech
from ossicle.evaluation.suites.spoken_qa import open_heysquad, open_sdqa
from ossicle.evaluation.suites.voicebench import open_voicebench

__all__ = ["SUITES", "open_suite"]

Opener = Callable[[str, str | None], Suite]
"""Makes a suite of the part of its name behind a slash ("" for none) and of the place of its data, if one was named."""

SUITES: Mapping[str, Opener] = {
    "voicebench": open_voicebench,
    "sd-qa": open_sdqa,
    "heysquad": open_heysquad,
    "covost2": open_covost,
    "bigbenchaudio": open_bigbench,
    "librispeech": open_librispeech,
    "iemocap": open_iemocap,
    "meld": open_meld,
}
"""The public benchmarks."""


def open_suite(name: str, data: str | None = None) -> Suite:
    """A suite by its name, such as "pocket", "voicebench", "covost2/en_de", or a JSONL or parquet file.

    Args:
        data: where the data of a public benchmark lies, if not under its own hub id: another hub id, or a local
            folder in the published layout

    Raises:
        DataError: no such suite, or data that is not as published
    """
    family, _, part = name.partition("/")
    if family in SUITES:
        return SUITES[family](part, data)
    if not Path(name).suffix and name not in EMBEDDED_SUITES:
        known = ", ".join([*EMBEDDED_SUITES, *SUITES])
        raise DataError(f"no suite {name!r}; expected one of {known}, or a JSONL or parquet file")
    return Suite(name=name, items=load_suite(name))
