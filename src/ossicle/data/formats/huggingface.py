"""Speech in Hugging Face data sets, by hub id or local folder, through `datasets`; no code of theirs is ever run."""

import importlib.util
import os
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from ossicle.data.columns import Columns, find_columns
from ossicle.data.formats.hf_datasets import explained, first_line, imported
from ossicle.data.formats.parquet import arrow_kind, seconds
from ossicle.data.source import Rows, Utterance, checked, estimated_lengths
from ossicle.data.source_spec import Spelling
from ossicle.data.transcript import normalised
from ossicle.errors import ConfigError, DataError

_BUFFERED_ROWS, _BUFFERED_BYTES = 4_096, 128 * 2**20
"""Rows of a stream that can be asked for again without starting anew."""


def open_data_set(spelling: Spelling, n_clips: int | None) -> Rows:
    """The rows of a data set on the hub, or in a folder in any form that `datasets` reads or has saved.

    Raises:
        ConfigError: it has several configurations or splits and none is named, or a stream of unknown length
        DataError: no such data set, it cannot be read, or `datasets` is not installed
    """
    with _imported(spelling) as datasets, _explained(spelling):
        read = _saved if _is_saved(Path(spelling.name)) else _loaded
        data_set = read(datasets, spelling)
        if data_set.features is None:  # a stream that has to be looked into
            data_set = data_set._resolve_features()
        columns = find_columns(f"data set {spelling.name!r}", _kinds(datasets, data_set.features), spelling)
        if isinstance(data_set.features[columns.audio], datasets.Audio):
            data_set = data_set.cast_column(columns.audio, datasets.Audio(decode=False))
    if spelling.streaming:
        return StreamRows(spelling, data_set, columns, n_clips)
    return DataSetRows(spelling, data_set, columns)


class DataSetRows(Rows):
    """The rows of a data set on this machine's disk, which `datasets` maps into memory."""

    def __init__(self, spelling: Spelling, data_set: Any, columns: Columns) -> None:
        self._where, self._folder = _where(spelling), Path(spelling.name)
        self._columns = columns
        self._data_set = data_set.select_columns([columns.audio, columns.text])
        with _explained(spelling):
            wanted = [columns.text, *filter(None, [columns.duration])]
            table = data_set.select_columns(wanted).with_format("arrow")[:]
            self.texts = normalised(table[columns.text])
            self.lengths = estimated_lengths(self.texts, seconds(table, columns.duration))
        self.mark = f"data set of {len(data_set)}"

    def name(self, row: int) -> str:
        """Data set, split and row, the first being row 1."""
        return f"{self._where}, row {row + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """One row."""
        name = self.name(row)
        try:
            values = self._data_set[row]
        except Exception as error:  # what the file format's library raises, whichever that is
            raise DataError(f"{name}: cannot be read: {first_line(error)}") from error
        return checked(name, self._folder, values[self._columns.audio], values[self._columns.text])


class StreamRows(Rows):
    """The rows of a data set as they come from the hub: cheap in rising order, from the start anew otherwise."""

    is_sequential = True

    def __init__(self, spelling: Spelling, data_set: Any, columns: Columns, n_clips: int | None) -> None:
        self._where, self._folder, self._columns = _where(spelling), Path(spelling.name), columns
        self._data_set = data_set.select_columns([columns.audio, columns.text])
        splits = data_set.info.splits or {}
        known = splits[str(data_set.split)].num_examples if str(data_set.split) in splits else None
        n_rows = min(filter(None, (known, n_clips)), default=None)
        if n_rows is None:
            raise ConfigError(
                f"source {spelling.name!r} does not tell how many rows its stream has; say how many to take:"
                " data.n_clips, or leave streaming out"
            )
        self.texts = pa.chunked_array([pa.nulls(n_rows, pa.string())])
        self.lengths = np.zeros(n_rows, np.float32)
        self.mark = f"stream of {spelling.name} {spelling.config} {data_set.split} {spelling.revision}"
        self._begin()

    def name(self, row: int) -> str:
        """Data set, split and row, the first being row 1."""
        return f"{self._where}, row {row + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """One row; those before it that were not asked for are passed over."""
        name = self.name(row)
        if self._pid != os.getpid():  # a connection cannot be shared with a fork
            self._begin()
        if row not in self._buffer and row < self._next:
            self._forget()
        try:
            if not self._streams:
                self._streams.append(iter(self._data_set.skip(row) if row else self._data_set))
                self._next = row
            while self._next <= row:
                self._keep(next(self._streams[0]))
        except StopIteration as error:
            self._forget()
            raise DataError(f"{name}: the stream ends before it; set data.n_clips to its length") from error
        except Exception as error:  # what the network's library raises, whichever that is
            self._forget()
            raise DataError(f"{name}: cannot be read: {first_line(error)}") from error
        values = self._buffer[row]
        return checked(name, self._folder, values[self._columns.audio], values[self._columns.text])

    def _keep(self, values: dict[str, Any]) -> None:
        self._buffer[self._next] = values
        self._n_bytes += _size(values)
        self._next += 1
        while len(self._buffer) > 1 and (
            len(self._buffer) > _BUFFERED_ROWS or self._n_bytes > _BUFFERED_BYTES
        ):
            self._n_bytes -= _size(self._buffer.popitem(last=False)[1])

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._streams: list[Iterator[dict[str, Any]]] = []  # one, or none yet
        self._buffer: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._next, self._n_bytes = 0, 0
        weakref.finalize(self, _close, self._streams)  # before the libraries that it reads with are gone

    def _forget(self) -> None:
        _close(self._streams)
        self._buffer.clear()
        self._next, self._n_bytes = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_where", "_folder", "_columns", "_data_set", "texts", "lengths", "mark")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._begin()


def _close(streams: list[Any]) -> None:
    while streams:
        if isinstance(stream := streams.pop(), Generator):
            stream.close()


def _imported(spelling: Spelling) -> AbstractContextManager[ModuleType]:
    return imported(
        f"source {spelling.name!r} is no file here, and Hugging Face data sets need the datasets library:"
        " pip install 'ossicle[hub]'"
    )


def _explained(spelling: Spelling) -> AbstractContextManager[None]:
    return explained(f"source {spelling.name!r}", spelling.name)


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved(datasets: ModuleType, spelling: Spelling) -> Any:
    """A data set that save_to_disk has written."""
    if spelling.streaming or spelling.config or spelling.revision:
        raise ConfigError(
            f"source {spelling.name!r} was saved on disk whole; leave config, revision and streaming out"
        )
    found = datasets.load_from_disk(spelling.name)
    if isinstance(found, datasets.DatasetDict):
        return found[_only(spelling, "split", list(found), spelling.split)]
    if spelling.split:
        raise ConfigError(f"source {spelling.name!r} has no splits; leave split={spelling.split} out")
    return found


def _loaded(datasets: ModuleType, spelling: Spelling) -> Any:
    """A data set by its published form; scripts of its own are refused by `datasets` itself."""
    about = {"revision": spelling.revision}
    configs = datasets.get_dataset_config_names(spelling.name, **about)
    config = _only(spelling, "config", configs, spelling.config)
    splits = datasets.get_dataset_split_names(spelling.name, config, **about)
    base = spelling.split.partition("[")[0] if spelling.split else None  # datasets knows train[:10%]
    split = _only(spelling, "split", splits, base)
    _check_encodable(spelling, datasets.load_dataset_builder(spelling.name, config, **about))
    return datasets.load_dataset(
        spelling.name,
        config,
        split=spelling.split or split,
        streaming=spelling.streaming,
        **about,
    )


def _check_encodable(spelling: Spelling, builder: Any) -> None:
    """Loose files and tars go through a codec of `datasets`' own, even where nothing is decoded."""
    form = type(builder).__module__.rpartition(".")[2]
    if form in ("audiofolder", "webdataset") and importlib.util.find_spec("torchcodec") is None:
        raise DataError(
            f"source {spelling.name!r} has its sound in {form} form, for which datasets needs torchcodec; give its"
            " metadata.jsonl or its .tar files themselves as the source, or install torchcodec"
        )


def _only(spelling: Spelling, key: str, known: list[str], wanted: str | None) -> str:
    if wanted is None and len(known) == 1:
        return known[0]
    if wanted in known:
        return str(wanted)
    given = f"no {key} {wanted!r}" if wanted else f"several {key}s"
    raise ConfigError(
        f"source {spelling.name!r} has {given}; name one: ?{key}=... of {', '.join(map(str, known))}"
    )


def _kinds(datasets: ModuleType, features: Any) -> dict[str, str]:
    """What each column can be; a data set says which are sound."""
    return {
        name: "aS" if isinstance(feature, datasets.Audio) else _kind(feature)
        for name, feature in features.items()
    }


def _kind(feature: Any) -> str:
    try:
        return arrow_kind(pa.struct({"it": feature.pa_type}).field(0).type)
    except (AttributeError, TypeError):
        is_sound = isinstance(feature, dict) and "bytes" in feature
        return "aS" if is_sound else ""


def _size(values: dict[str, Any]) -> int:
    audio = next(iter(values.values()))
    audio = audio.get("bytes") if isinstance(audio, dict) else audio
    return len(audio) if isinstance(audio, bytes) else 0


def _where(spelling: Spelling) -> str:
    about = [part for part in (spelling.config, spelling.split) if part]
    return spelling.name + (f" ({', '.join(about)})" if about else "")
