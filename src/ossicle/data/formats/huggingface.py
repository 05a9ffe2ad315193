"""Speech in Hugging Face datasets, by hub id or local folder, through `datasets`; code in a dataset is never run."""

import importlib.util
import os
import weakref
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from ossicle.data.columns import ColumnRole, Columns, find_columns
from ossicle.data.formats.parquet import arrow_type_roles, read_durations
from ossicle.data.source import Source, Utterance, build_utterance, estimate_durations
from ossicle.data.source_spec import SourceSpec
from ossicle.data.stretches import read_stretch
from ossicle.data.transcript import normalize_transcripts
from ossicle.errors import ConfigError, DataError, OssicleError
from ossicle.hub_download import describe_refusal, iterate_causes

_MAX_BUFFERED_ROWS, _MAX_BUFFERED_BYTES = 4_096, 128 * 2**20
"""Rows of a stream that can be read again without restarting it."""
_GATED = "is a gated dataset"
"""In the message of datasets, which drops the hub's own error."""
_DISABLE_TORCHCODEC = "HF_DATASETS_DISABLE_TORCHCODEC"


def open_huggingface(spec: SourceSpec, n_clips: int | None) -> Source:
    """Opens a dataset of the hub, or of a folder in any form that `datasets` reads or has saved.

    Raises:
        ConfigError: it has several configurations or splits and none is named, or a stream of unknown length
        DataError: there is no such dataset, it cannot be read, or `datasets` is not installed
    """
    missing = (
        f"source {spec.name!r} is not a local file, and Hugging Face datasets need the datasets library:"
        " pip install 'ossicle[hub]'"
    )
    with import_datasets(missing) as datasets, _explain_errors_of(spec):
        load = _load_saved if _is_saved(Path(spec.name)) else _load_published
        dataset = load(datasets, spec)
        if dataset.features is None:  # a stream whose columns are known only after its first rows
            dataset = dataset._resolve_features()
        columns = find_columns(f"dataset {spec.name!r}", _column_roles(datasets, dataset.features), spec)
        if isinstance(dataset.features[columns.audio], datasets.Audio):
            dataset = dataset.cast_column(columns.audio, datasets.Audio(decode=False))
    if spec.streaming:
        return HuggingFaceStream(spec, dataset, columns, n_clips)
    return HuggingFaceSource(spec, dataset, columns)


class HuggingFaceSource(Source):
    """The rows of a dataset on this machine's disk, which `datasets` maps into memory."""

    def __init__(self, spec: SourceSpec, dataset: Any, columns: Columns) -> None:
        self._label, self._folder = _label(spec), Path(spec.name)
        self._columns, self.label = columns, f"Hugging Face dataset, {columns}"
        self._dataset = dataset.select_columns(columns.of_row)
        with _explain_errors_of(spec):
            table = dataset.select_columns([columns.text, *columns.numbers]).with_format("arrow")[:]
            self.texts = normalize_transcripts(table[columns.text])
            self.durations_s = estimate_durations(self.texts, read_durations(table, columns))
        # Stored fingerprints contain this text: it must not change.
        self.content_id = f"data set of {len(dataset)}"

    def row_name(self, row: int) -> str:
        """Returns dataset, split and row number, counted from 1."""
        return f"{self._label}, row {row + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row."""
        name = self.row_name(row)
        try:
            values = self._dataset[row]
        except Exception as error:  # each file format's library raises its own
            raise DataError(f"{name}: the row cannot be read: {summarize_error(error)}") from error
        return _build_utterance(name, self._folder, values, self._columns)


class HuggingFaceStream(Source):
    """The rows of a dataset as they arrive from the hub: cheap in ascending order; going back restarts the stream."""

    is_sequential = True

    def __init__(self, spec: SourceSpec, dataset: Any, columns: Columns, n_clips: int | None) -> None:
        self._label, self._folder, self._columns = _label(spec), Path(spec.name), columns
        self.label = f"stream of a Hugging Face dataset, {columns}"
        self._dataset = dataset.select_columns(columns.of_row)
        splits = dataset.info.splits or {}
        n_known = splits[str(dataset.split)].num_examples if str(dataset.split) in splits else None
        n_rows = min(filter(None, (n_known, n_clips)), default=None)
        if n_rows is None:
            raise ConfigError(
                f"source {spec.name!r} does not say how many rows its stream has; set data.n_clips to the number of"
                " rows to use, or leave streaming out"
            )
        self.texts = pa.chunked_array([pa.nulls(n_rows, pa.string())])
        self.durations_s = np.zeros(n_rows, np.float32)
        self.content_id = f"stream of {spec.name} {spec.config} {dataset.split} {spec.revision}"
        self._init_stream()

    def row_name(self, row: int) -> str:
        """Returns dataset, split and row number, counted from 1."""
        return f"{self._label}, row {row + 1}"

    def __getitem__(self, row: int) -> Utterance:
        """Reads one row; rows of the stream before it are skipped."""
        name = self.row_name(row)
        if self._pid != os.getpid():  # a connection cannot be shared with a fork
            self._init_stream()
        if row not in self._buffer and row < self._next_row:
            self._reset_stream()
        try:
            if not self._streams:
                self._streams.append(iter(self._dataset.skip(row) if row else self._dataset))
                self._next_row = row
            while self._next_row <= row:
                self._buffer_row(next(self._streams[0]))
        except StopIteration as error:
            self._reset_stream()
            raise DataError(
                f"{name}: the stream ends before this row; set data.n_clips to the stream's length"
            ) from error
        except Exception as error:  # each network library raises its own
            self._reset_stream()
            raise DataError(f"{name}: the row cannot be read: {summarize_error(error)}") from error
        values = self._buffer[row]
        return _build_utterance(name, self._folder, values, self._columns)

    def _buffer_row(self, values: dict[str, Any]) -> None:
        self._buffer[self._next_row] = values
        self._n_bytes += _count_audio_bytes(values)
        self._next_row += 1
        while len(self._buffer) > 1 and (
            len(self._buffer) > _MAX_BUFFERED_ROWS or self._n_bytes > _MAX_BUFFERED_BYTES
        ):
            self._n_bytes -= _count_audio_bytes(self._buffer.popitem(last=False)[1])

    def _init_stream(self) -> None:
        self._pid = os.getpid()
        self._streams: list[Iterator[dict[str, Any]]] = []  # the open stream, or empty
        self._buffer: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._next_row, self._n_bytes = 0, 0
        # A stream must close before the interpreter unloads the libraries that it reads with.
        weakref.finalize(self, _close_all, self._streams)

    def _reset_stream(self) -> None:
        _close_all(self._streams)
        self._buffer.clear()
        self._next_row, self._n_bytes = 0, 0

    def __getstate__(self) -> dict[str, Any]:
        names = ("_label", "label", "_folder", "_columns", "_dataset", "texts", "durations_s", "content_id")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._init_stream()


def _build_utterance(name: str, folder: Path, values: dict[str, Any], columns: Columns) -> Utterance:
    stretch = read_stretch(name, values, columns.times, columns.duration)
    return build_utterance(name, folder, values[columns.audio], values[columns.text], stretch)


@contextmanager
def import_datasets(missing: str) -> Generator[ModuleType]:
    """Imports `datasets`, with its own audio decoding disabled while the block runs.

    Args:
        missing: error message where it is not installed

    Raises:
        DataError: it is not installed
    """
    previous = os.environ.get(_DISABLE_TORCHCODEC)
    os.environ[_DISABLE_TORCHCODEC] = "1"
    try:
        import datasets
    except ImportError as error:
        raise DataError(missing) from error
    else:
        yield datasets
    finally:
        if previous is None:
            del os.environ[_DISABLE_TORCHCODEC]
        else:
            os.environ[_DISABLE_TORCHCODEC] = previous


@contextmanager
def explain_errors(label: str, name: str, *, local_hint: str = "", hub_hint: str = "") -> Generator[None]:
    """Turns any error of a dataset's libraries into a DataError of one line.

    Args:
        label: what was being read, for the message
        name: hub id or folder
        local_hint: what to do about a folder that cannot be read
        hub_hint: what to do about a dataset that does not exist

    Raises:
        DataError: in place of any error that is not one of ours
    """
    try:
        yield
    except OssicleError:
        raise
    except Exception as error:  # from datasets, the network, arrow or the file format's library
        if any(isinstance(cause, GatedRepoError) or _GATED in str(cause) for cause in iterate_causes(error)):
            raise DataError(
                f"{label} is gated: accept its terms at {constants.ENDPOINT}/datasets/{name}, and log in with"
                " `hf auth login`"
            ) from error
        if (refusal := describe_refusal(error)) is not None:
            raise DataError(f"{label} cannot be loaded from the hub: {refusal}") from error
        problem = (
            f"cannot be read as a dataset{local_hint}"
            if Path(name).exists()
            else f"cannot be loaded from the hub, and there is no local folder of that name{hub_hint}"
        )
        raise DataError(f"{label} {problem}: {summarize_error(error)}") from error


def summarize_error(error: BaseException) -> str:
    """Returns the first line of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _explain_errors_of(spec: SourceSpec) -> AbstractContextManager[None]:
    return explain_errors(f"source {spec.name!r}", spec.name)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _load_saved(datasets: ModuleType, spec: SourceSpec) -> Any:
    """Loads a dataset that `save_to_disk` has written."""
    if spec.streaming or spec.config or spec.revision:
        raise ConfigError(
            f"source {spec.name!r} is a dataset saved to disk, which has no config and no revision and cannot be"
            " streamed; leave config, revision and streaming out"
        )
    dataset = datasets.load_from_disk(spec.name)
    if isinstance(dataset, datasets.DatasetDict):
        return dataset[_select(spec, "split", list(dataset), spec.split)]
    if spec.split:
        raise ConfigError(f"source {spec.name!r} has no splits; leave split={spec.split} out")
    return dataset


def _load_published(datasets: ModuleType, spec: SourceSpec) -> Any:
    """Loads a dataset in its published form; `datasets` itself refuses loading scripts."""
    revision = {"revision": spec.revision}
    configs = datasets.get_dataset_config_names(spec.name, **revision)
    config = _select(spec, "config", configs, spec.config)
    splits = datasets.get_dataset_split_names(spec.name, config, **revision)
    base_split = spec.split.partition("[")[0] if spec.split else None  # datasets accepts train[:10%]
    split = _select(spec, "split", splits, base_split)
    _check_encodable(spec, datasets.load_dataset_builder(spec.name, config, **revision))
    return datasets.load_dataset(
        spec.name, config, split=spec.split or split, streaming=spec.streaming, **revision
    )


def _check_encodable(spec: SourceSpec, builder: Any) -> None:
    """Rejects loose files and tars where `datasets` has no codec: it re-encodes them even where nothing is decoded."""
    form = type(builder).__module__.rpartition(".")[2]
    if form in ("audiofolder", "webdataset") and importlib.util.find_spec("torchcodec") is None:
        raise DataError(
            f"source {spec.name!r} has its audio in loose files or tars, which are read from a local folder only:"
            " download it and give its folder, with the transcripts in metadata.csv or .jsonl, or in the tars"
        )


def _select(spec: SourceSpec, key: str, available: list[str], requested: str | None) -> str:
    """Returns the requested configuration or split, or the only one."""
    if requested is None and len(available) == 1:
        return available[0]
    if requested in available:
        return str(requested)
    problem = f"no {key} {requested!r}" if requested else f"several {key}s"
    raise ConfigError(
        f"source {spec.name!r} has {problem}; name one: ?{key}=... of {', '.join(map(str, available))}"
    )


def _column_roles(datasets: ModuleType, features: Any) -> dict[str, ColumnRole]:
    return {
        name: ColumnRole.ONLY_AUDIO if isinstance(feature, datasets.Audio) else _feature_roles(feature)
        for name, feature in features.items()
    }


def _feature_roles(feature: Any) -> ColumnRole:
    try:
        return arrow_type_roles(pa.struct({"it": feature.pa_type}).field(0).type)
    except (AttributeError, TypeError):
        has_bytes = isinstance(feature, dict) and "bytes" in feature
        return ColumnRole.ONLY_AUDIO if has_bytes else ColumnRole(0)


def _count_audio_bytes(values: dict[str, Any]) -> int:
    audio = next(iter(values.values()))
    audio = audio.get("bytes") if isinstance(audio, dict) else audio
    return len(audio) if isinstance(audio, bytes) else 0


def _close_all(streams: list[Any]) -> None:
    while streams:
        if isinstance(stream := streams.pop(), Generator):
            stream.close()


def _label(spec: SourceSpec) -> str:
    details = [part for part in (spec.config, spec.split) if part]
    return spec.name + (f" ({', '.join(details)})" if details else "")
