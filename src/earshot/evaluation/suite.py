"""The items of an evaluation and the file they come from; it knows where the sound is, not what is in it."""

import difflib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from earshot.audio import AudioSource
from earshot.errors import DataError
from earshot.evaluation.metrics import normalise

KEYS = ("audio", "text", "instruction", "answer", "id", "group")
"""The keys of a suite's line; the first two are required."""


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

    def __post_init__(self) -> None:
        """Refuse an item that could not be scored.

        Raises:
            DataError: a text without a single word, another text that is given but empty, or an open file,
                which could be read only once.
        """
        if isinstance(self.audio, io.IOBase):
            raise DataError(f"item {self.id!r}: audio is an open file; give its path or its bytes")
        if not normalise(self.text):
            raise DataError(f"item {self.id!r}: text is {self.text!r}; give the words that are spoken")
        for name in ("id", "instruction", "answer", "group"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise DataError(f"item {self.id!r}: {name} is empty; give it a text or leave it out")


def load_suite(path: str | Path) -> tuple[Item, ...]:
    """The items of a JSONL file: a line for each, {"audio", "text"} and optionally the other `KEYS`.

    Audio paths are relative to the file. Blank lines are skipped, and keys that mean nothing here are left
    alone unless they look like one of `KEYS` misspelt: an "anwser" that is passed over would change what is
    measured.

    Raises:
        DataError: a file that cannot be read or has no items; a line that is not such an object, names sound
            that is not there, or repeats an id. The message says which line.
    """
    path = Path(path)
    items: dict[str, Item] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = _item(line, default_id=f"{number:04d}", folder=path.parent)
            if item.id in items:
                raise DataError(f"item {item.id!r} was there before; give every item an id of its own")
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        items[item.id] = item
    if not items:
        raise DataError(
            f'{path}: no items; write one JSON object a line, such as {{"audio": "a.wav", "text": "..."}}'
        )
    return tuple(items.values())


def check_items(items: tuple[Item, ...]) -> None:
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
    if not path.is_file():
        raise DataError(f"{path}: no such suite file; give the path of a JSONL file")
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
    if not audio.is_file():
        raise DataError(f"no audio file {audio}; paths are relative to the suite's own folder")
    given = {key: fields[key] for key in KEYS if key != "audio" and fields.get(key) is not None}
    return Item(**({"id": default_id} | given), audio=audio)


def _check_fields(fields: dict[str, object]) -> None:
    for key in fields:
        meant = difflib.get_close_matches(key.lower(), KEYS, n=1, cutoff=0.81)
        if key not in KEYS and meant:
            raise DataError(f"unknown key {key!r}; did you mean {meant[0]!r}?")
    for key in ("audio", "text"):
        if fields.get(key) is None:
            raise DataError(f'no {key!r}; every line needs "audio" and "text"')
    for key in KEYS:
        value = fields.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{key} is {json.dumps(value)[:40]}, {_kind(value)}; write it as a string")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
