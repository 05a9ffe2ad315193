"""The items of an evaluation and the file they come from; it knows where the sound is, not what is in it."""

import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ossicle.audio.waveform import AudioSource
from ossicle.backbones.model_files import resolve_model_path
from ossicle.errors import DataError
from ossicle.evaluation.text_normalization import normalize_text

ITEM_KEYS = ("audio", "text", "instruction", "answer", "id", "group")
"""The keys of a suite's line; the first two are required."""
MAX_SHOWN = 300
"""Characters of a path that a message shows: what is no path may be as long as a sound."""
POCKET_SUITE = "pocket"
"""The embedded suite's name: spoken questions, by voices that the embedded speech does not have."""
EMBEDDED_SUITES = {POCKET_SUITE: "pocket/suite", "pocket-manner": "pocket/manner"}
"""The tables that the package carries, by their suites' names; in the second one the manner of speaking asks too."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One spoken turn and what is known about it."""

    id: str
    """Names the item in reports and errors; unique in its suite."""
    audio: AudioSource = field(repr=False)
    """The sound that is spoken."""
    text: str
    """What is said in it, the true transcript."""
    instruction: str | None = None
    """Text that accompanies the sound, such as "Answer in Spanish."."""
    answer: str | None = None
    """The expected answer; without one, the LLM's own answer to the text is expected."""
    group: str | None = None
    """The row of the report that the item counts in, such as "unseen voices"."""
    rule: str = "exact"
    """How its answers are marked: the name of one of `ossicle.evaluation.scoring.RULES`."""
    rubric: Mapping[str, Any] = field(default_factory=dict)
    """What that rule has to know beside the expected answer, as JSON has it; the report keeps it."""
    choices: tuple[str, ...] = ()
    """Words among which the LLM's likeliest is its answer, where it is not asked to answer freely."""

    def __post_init__(self) -> None:
        """Refuse an item that could not be scored.

        Raises:
            DataError: a text without a single word, another text that is given but empty, or an open file,
                which could be read only once.
        """
        if isinstance(self.audio, io.IOBase):
            raise DataError(f"item {self.id!r}: audio is an open file; give its path or its bytes")
        if not normalize_text(self.text):
            raise DataError(f"item {self.id!r}: text is {self.text!r}; give the words that are spoken")
        for name in ("id", "instruction", "answer", "group"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise DataError(f"item {self.id!r}: {name} is empty; give it a text or leave it out")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Items that are evaluated together, and how their number is made."""

    name: str
    """What the report calls it."""
    items: tuple[Item, ...]
    overall: Literal["items", "groups"] = "items"
    """Whether the suite's number is that of all items, or the mean of its groups' numbers."""
    description: str = ""
    """What it is and where it comes from, in a sentence for the report."""
    max_new_tokens: int | None = None
    """Longest answer, where the suite says so."""


def load_suite(name: str | Path) -> tuple[Item, ...]:
    """The items of a suite: "pocket" or "pocket-manner" for the embedded ones, or a file with an item to a line or row.

    A JSONL file has {"audio", "text"} and optionally the other `KEYS` on each line, audio paths relative to
    the file; blank lines are skipped. A parquet file has columns of these names, audio as a struct
    {bytes, path} or as bytes. What means nothing here is left alone unless it looks like one of `KEYS`
    misspelt: an "anwser" that is passed over would change what is measured.

    Raises:
        DataError: a file that cannot be read or has no items; a line or row that is not such an item, names
            sound that is not there, or repeats an id. The message says which.
    """
    path = Path(
        resolve_model_path(EMBEDDED_SUITES[name]) + ".parquet"
        if isinstance(name, str) and name in EMBEDDED_SUITES
        else name
    )
    if not _is_file(path):
        raise DataError(
            f"{path}: no such suite file; give the path of a JSONL or parquet file, or {' or '.join(EMBEDDED_SUITES)}"
        )
    items: dict[str, Item] = {}
    for place, read in _parquet_items(path) if path.suffix == ".parquet" else _jsonl_items(path):
        try:
            item = read()
            if item.id in items:
                raise DataError(f"item {item.id!r} was there before; give every item an id of its own")
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        items[item.id] = item
    if not items:
        raise DataError(
            f'{path}: no items; write one JSON object a line, such as {{"audio": "a.wav", "text": "..."}}'
        )
    return tuple(items.values())


def _jsonl_items(path: Path) -> Iterator[tuple[str, Callable[[], Item]]]:
    """Each line that is not blank: where it is, and how it is read."""
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", partial(_item, line, default_id=f"{number:04d}", folder=path.parent)


def _parquet_items(path: Path) -> Iterator[tuple[str, Callable[[], Item]]]:
    """Each row: where it is, and how it is read."""
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _check_keys(names)
        if missing := [key for key in ("audio", "text") if key not in names]:
            raise DataError(f"no column {missing[0]!r}; every suite needs audio and text")
        rows = file.read(columns=[key for key in ITEM_KEYS if key in names]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", partial(_row, row, default_id=f"{number:04d}")


def _row(fields: dict[str, Any], *, default_id: str) -> Item:
    """The item of a row.

    Raises:
        DataError: without the place, which the caller knows.
    """
    audio = fields["audio"]
    encoded = audio.get("bytes") if isinstance(audio, dict) else audio
    if not isinstance(encoded, bytes):
        raise DataError("audio holds no bytes; store the sound itself in the table")
    given = _given(fields, default_id)
    _check_texts(given, required=("text",))
    return Item(**given, audio=encoded)


def validate_items(items: tuple[Item, ...]) -> None:
    """Refuse items that no report could be made of.

    Raises:
        DataError: no items, or two of the same id.
    """
    if not items:
        raise DataError("no items to evaluate; give at least one")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"item {item.id!r} is there twice; give every item an id of its own")
        seen.add(item.id)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; a suite is a JSONL file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _item(line: str, *, default_id: str, folder: Path) -> Item:
    """The item on one line.

    Raises:
        DataError: without the place, which the caller knows.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON at column {error.colno} ({error.msg}); write one JSON object a line"
        ) from None
    if not isinstance(fields, dict):
        raise DataError(f'a JSON object with "audio" and "text" is expected, this is {_kind(fields)}')
    _check_fields(fields)
    audio = folder / fields["audio"]
    if not _is_file(audio):
        raise DataError(
            f"no audio file {str(audio)[:MAX_SHOWN]}; paths are relative to the suite's own folder"
        )
    return Item(**_given(fields, default_id), audio=audio)


def _given(fields: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    """What a line or row says beside its sound."""
    said = {key: fields[key] for key in ITEM_KEYS if key != "audio" and fields.get(key) is not None}
    return {"id": default_id} | said


def _is_file(path: Path) -> bool:
    """False as well for what cannot be a path: a name that is too long, or one with a zero in it."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_fields(fields: dict[str, object]) -> None:
    _check_keys(fields)
    _check_texts(fields, required=("audio", "text"))


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        meant = difflib.get_close_matches(key.lower(), ITEM_KEYS, n=1, cutoff=0.81)
        if key not in ITEM_KEYS and meant:
            raise DataError(f"unknown key {key!r}; did you mean {meant[0]!r}?")


def _check_texts(fields: dict[str, object], *, required: Sequence[str]) -> None:
    for key in required:
        if fields.get(key) is None:
            raise DataError(f'no {key!r}; every item needs "audio" and "text"')
    for key in ITEM_KEYS:
        value = fields.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key} is {json.dumps(value)[:40]}, {_kind(value)}; write it as a string")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
