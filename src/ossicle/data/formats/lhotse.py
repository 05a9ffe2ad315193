"""Lhotse's manifests: cuts with their supervisions, or supervisions beside the recordings that they are stretches of."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ossicle.data.formats.listed import ListedRow
from ossicle.errors import DataError
from ossicle.text_encoding import check_encoding, count_mark_bytes, decode_text

CUTS, SUPERVISIONS, SHAR = "Lhotse cuts", "Lhotse supervisions and recordings", "Lhotse Shar"
MANIFEST_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_RECORDINGS_PART, _SUPERVISIONS_PART, _CUTS_PART = "recordings", "supervisions", "cuts"
_SHAR_NAME = re.compile(r"cuts\.(?P<shard>\d+)\.jsonl(\.gz)?")
_COMPOSED_CUTS = ("MixedCut", "PaddingCut")
_SHAR = "shar"
"""Type of a source whose sound is in a tar beside the cuts."""
_HARMLESS_TRANSFORMS = ("Resample",)
_START_BYTES = 200
_BLANK = b"\xef\xbb\xbf \t\r\n"


def find_manifests(folder: Path) -> dict[str, Path]:
    """Returns the manifests in a folder that have words, by the part of their name that tells them apart."""
    found: dict[str, Path] = {}
    for part in (_SUPERVISIONS_PART, _CUTS_PART):
        for path in sorted(folder.iterdir()):
            if _is_manifest(path, part):
                name = path.name.partition(".json")[0].partition(part)[2].strip("_-.")
                found.setdefault(name or "train", path)
    return found


def _is_manifest(path: Path, part: str) -> bool:
    return path.name.endswith(MANIFEST_ENDINGS) and part in re.split(r"[_.-]", path.name) and path.is_file()


def find_shards(folder: Path) -> list[Path]:
    """Returns the cuts of a folder of Lhotse's Shar, one file for each tar of recordings."""
    return [path for path in sorted(folder.iterdir()) if _SHAR_NAME.fullmatch(path.name)]


def find_shard_tar(manifest: Path) -> Path | None:
    """Returns the tar that has the recordings of a shard's cuts."""
    match = _SHAR_NAME.fullmatch(manifest.name)
    tar = manifest.with_name(f"recording.{match['shard']}.tar") if match else None
    return tar if tar is not None and tar.is_file() else None


def find_lhotse_difference(folder: Path) -> str | None:
    """Returns what a folder with recordings lacks; None for other folders."""
    for path in folder.iterdir():
        if _is_manifest(path, _RECORDINGS_PART):
            expected = path.name.replace(_RECORDINGS_PART, _SUPERVISIONS_PART)
            return f"it has Lhotse's recordings {path.name}, and no {expected} with the words"
    return None


def detect_manifest(path: Path) -> str | None:
    """Returns which manifest of Lhotse's a file is by its first value; None where it is another file.

    Raises:
        DataError: it lists recordings, which have no words
    """
    try:
        value = next((value for _, value in read_values(path)), None)
    except DataError:  # reading all of it reports what is wrong
        return None
    if not isinstance(value, Mapping):
        return None
    if "supervisions" in value or value.get("type") in ("MonoCut", "MultiCut", *_COMPOSED_CUTS):
        return CUTS
    if {"recording_id", "start", "duration"} <= value.keys():
        return SUPERVISIONS
    if {"id", "sources", "sampling_rate"} <= value.keys():
        raise DataError(
            f"{path} has Lhotse's recordings, which have no words; give the supervisions or cuts beside it"
        )
    return None


def read_values(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the JSON values of a file with their numbers from 1: one a line, or those of one array; gzip or not.

    Raises:
        DataError: the file cannot be read, or is not JSON
    """
    open_file: Any = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with open_file(path, "rb") as file:
            start = file.read(_START_BYTES)
            check_encoding(start)
            file.seek(count_mark_bytes(start))
            if start.lstrip(_BLANK).startswith(b"["):
                yield from enumerate(json.load(file), 1)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, json.loads(decode_text(line))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zlib.error, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; expected one JSON object a line, or an array"
        ) from error


def read_cuts(path: Path) -> Iterator[ListedRow]:
    """Yields a row for each supervision of each cut, as Lhotse itself trims cuts to supervisions.

    The audio of a shard's cut is named TAR/CUT.
    """
    tar = find_shard_tar(path)
    for number, cut in read_values(path):
        name = _name(path, number, cut)
        supervisions = cut.get("supervisions") if isinstance(cut, Mapping) else None
        if not isinstance(supervisions, list) or not supervisions:
            kind = cut.get("type") if isinstance(cut, Mapping) else None
            is_composed = kind in _COMPOSED_CUTS
            problem = (
                f"a {kind} is not one stretch of a recording" if is_composed else "the cut has no supervision"
            )
            yield ListedRow(name=name, problem=problem)
            continue
        for supervision in supervisions:
            yield _build_row(
                _name(path, number, supervision),
                cut.get("recording"),
                supervision,
                _number(cut, "start", 0.0),
                f"{tar.name}/{cut.get('id')}" if tar else None,
            )


def read_supervisions(path: Path) -> Iterator[ListedRow]:
    """Yields a row for each supervision, with the recording of the manifest that lies beside it.

    Raises:
        DataError: that manifest does not exist
    """
    listing = path.with_name(path.name.replace(_SUPERVISIONS_PART, _RECORDINGS_PART))
    if listing == path or not listing.is_file():
        expected = (
            listing.name if listing != path else "..._recordings_....jsonl.gz beside ..._supervisions_..."
        )
        raise DataError(
            f"{path} holds Lhotse's supervisions, and there are no recordings beside it: expected {expected}"
        )
    recordings = {value.get("id"): value for _, value in read_values(listing) if isinstance(value, Mapping)}
    for number, supervision in read_values(path):
        recording = (
            recordings.get(supervision.get("recording_id")) if isinstance(supervision, Mapping) else None
        )
        yield _build_row(_name(path, number, supervision), recording, supervision, 0.0)


def _build_row(
    name: str, recording: Any, supervision: Any, origin_s: float, member: str | None = None
) -> ListedRow:
    """Returns one supervision.

    Args:
        origin_s: the second of the recording that its start counts from
        member: where a recording of a shard is
    """
    if not isinstance(supervision, Mapping):
        return ListedRow(name=name, problem=f"its supervision is {supervision!r:.60}, expected a JSON object")
    start_s, duration_s = _number(supervision, "start"), _number(supervision, "duration")
    start_s = origin_s + start_s
    if not (start_s > -0.1 and duration_s > 0):
        return ListedRow(name=name, problem="its start and duration are no seconds of the recording")
    start_s = max(0.0, start_s)
    audio, problem = _find_file(recording, supervision.get("channel", 0), member)
    text = supervision.get("text")
    is_whole = (
        start_s == 0
        and isinstance(recording, Mapping)
        and _number(recording, "duration") <= duration_s + 1e-3
    )
    return ListedRow(
        name=name,
        audio=audio,
        text=text if isinstance(text, str) else None,
        start_s=math.nan if is_whole else start_s,
        end_s=math.nan if is_whole else start_s + duration_s,
        duration_s=duration_s,
        problem=problem,
    )


def _find_file(recording: Any, channel: Any, member: str | None) -> tuple[str | None, str | None]:
    """Returns the path of the file that has one channel of a recording alone, or why there is none."""
    sources = recording.get("sources") if isinstance(recording, Mapping) else None
    if not isinstance(sources, list) or not all(isinstance(source, Mapping) for source in sources):
        return None, "there is no recording for it, only features at most; expected one with a file"
    transforms = [item.get("name") for item in recording.get("transforms") or () if isinstance(item, Mapping)]
    if changed := [name for name in transforms if name not in _HARMLESS_TRANSFORMS]:
        return (
            None,
            f"its recording is changed when it is read ({', '.join(map(str, changed))}); save it as a file",
        )
    channels = channel if isinstance(channel, list) else [channel]
    fitting = [source for source in sources if set(channels) & set(source.get("channels") or [0])]
    if len(fitting) != 1 or set(fitting[0].get("channels") or [0]) - set(channels):
        return (
            None,
            f"it is channel {channel} of a recording with others, which would be mixed; expected a file a channel",
        )
    if fitting[0].get("type") == _SHAR:
        problem = "its sound is in a tar of Lhotse's Shar, expected recording.NNNNNN.tar beside cuts.NNNNNN.jsonl.gz"
        return member, None if member else problem
    if fitting[0].get("type") != "file" or not isinstance(fitting[0].get("source"), str):
        return (
            None,
            f"its sound is of type {fitting[0].get('type')!r:.20}, expected a file; nothing else is opened or run",
        )
    return fitting[0]["source"], None


def _number(values: Mapping[str, Any], key: str, default: float = math.nan) -> float:
    value = values.get(key, default)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _name(path: Path, number: int, value: Any) -> str:
    identifier = value.get("id") if isinstance(value, Mapping) else None
    return f"{path.name}, {identifier if isinstance(identifier, str) else f'line {number}'}"
