"""Hugging Face datasets: splits, saved folders, streams, and one line for every error."""

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from support.source_checks import read_audio, read_errors
from support.tiny_speech import (
    NORMALIZED_TEXTS,
    encode_tone,
    make_clips,
    write_huggingface,
)

from ossicle.data.dataset import open_speech
from ossicle.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_one_of_several_splits_must_be_named(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path, make_clips(3))
    shutil.copy(
        tmp_path / "data" / "train-00000-of-00001.parquet", tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    (tmp_path / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"has several splits; name one: \?split=\.\.\. of train, test"):
        open_speech([source])
    with pytest.raises(ConfigError, match="has no split 'dev'; name one"):
        open_speech([f"{source}?split=dev"])
    with pytest.raises(ConfigError, match="has no config 'en'; name one"):
        open_speech([f"{source}?split=test&config=en"])
    dataset = open_speech([f"{source}?split=test"])
    assert dataset.row_name(2) == f"{tmp_path} (test), row 3"
    assert dataset.texts.to_pylist() == list(NORMALIZED_TEXTS[:3])


def test_a_folder_written_by_save_to_disk_is_a_source(tmp_path: Path) -> None:
    import datasets

    rows = {
        "audio": [{"bytes": c.audio, "path": None} for c in make_clips(3)],
        "text": [c.text for c in make_clips(3)],
    }
    dataset = datasets.Dataset.from_dict(rows)
    dataset.save_to_disk(str(tmp_path / "one"))
    assert read_audio(open_speech([str(tmp_path / "one")])[1]) == make_clips(3)[1].audio
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "two"))
    assert len(open_speech([f"{tmp_path / 'two'}?split=test"])) == 3
    with pytest.raises(ConfigError, match="several splits"):
        open_speech([str(tmp_path / "two")])
    with pytest.raises(ConfigError, match="has no splits; leave split=test out"):
        open_speech([f"{tmp_path / 'one'}?split=test"])


def test_a_stream_of_unknown_length_needs_n_clips(tmp_path: Path) -> None:
    source = write_huggingface(tmp_path, make_clips(5)) + "?streaming=true"
    (tmp_path / "README.md").unlink()
    with pytest.raises(ConfigError, match=r"set data\.n_clips to the number of rows"):
        open_speech([source])
    assert len(open_speech([source], n_clips=4)) == 4
    found = read_errors(open_speech([source], n_clips=6))
    assert list(found) == [5]
    assert "the stream ends before this row" in found[5]


def test_a_folder_of_loose_audio_files_is_read_by_its_jsonl_file(tmp_path: Path) -> None:
    for number, clip in enumerate(make_clips(3)):
        (tmp_path / f"{number}.flac").write_bytes(clip.audio)
    lines = [
        json.dumps({"file_name": f"{n}.flac", "text": clip.text}) for n, clip in enumerate(make_clips(3))
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert read_audio(open_speech([str(tmp_path / "metadata.jsonl")])[2]) == make_clips(3)[2].audio
    assert read_audio(open_speech([str(tmp_path)])[2]) == make_clips(3)[2].audio


@pytest.mark.skipif(importlib.util.find_spec("torchcodec") is not None, reason="torchcodec reads them")
def test_loose_audio_files_without_transcripts_are_rejected_in_one_line(tmp_path: Path) -> None:
    for name in ("yes", "no"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.flac").write_bytes(encode_tone())
    with pytest.raises(
        DataError, match=r"no words: expected 0\.txt beside 0\.flac, or a metadata\.csv"
    ) as caught:
        open_speech([str(tmp_path)])
    assert "torchcodec" not in str(caught.value)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_folder_with_a_jsonl_file_is_a_hugging_face_dataset(tmp_path: Path, is_streamed: bool) -> None:
    (tmp_path / "a.flac").write_bytes(encode_tone())
    (tmp_path / "train.jsonl").write_text('{"audio": "a.flac", "text": "one"}\n' * 3)
    source = f"{tmp_path}?streaming={str(is_streamed).lower()}"
    dataset = open_speech([source], n_clips=3)
    assert read_audio(dataset[2]) == encode_tone()


def test_a_folder_without_data_is_rejected_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("hello")
    with pytest.raises(DataError, match="cannot be read as a dataset") as error:
        open_speech([str(tmp_path)])
    assert "\n" not in str(error.value)


def test_the_code_of_a_dataset_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        open_speech([str(folder)])
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_without_a_network_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'nobody/nothing' cannot be loaded from the hub") as error:
        open_speech(["nobody/nothing?split=train"])
    assert "\n" not in str(error.value)


def test_a_gated_hub_id_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        try:
            raise GatedRepoError(
                "403 Client Error", response=httpx2.Response(403, request=httpx2.Request("GET", "x:"))
            )
        except GatedRepoError as error:
            raise datasets.exceptions.DatasetNotFoundError("gated") from error

    def forget(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'user/gated' is a gated dataset on the Hub.")

    for answer in (refuse, forget):
        monkeypatch.setattr(datasets, "get_dataset_config_names", answer)
        with pytest.raises(
            DataError, match=r"'user/gated' is gated: accept its terms at .*/datasets/user/gated, and log in"
        ):
            open_speech(["user/gated"])


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "log in again with"), (429, "wait"), (503, "try again later")]
)
def test_what_the_hub_answers_is_said(monkeypatch: pytest.MonkeyPatch, status: int, advice: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        response = httpx2.Response(status, request=httpx2.Request("GET", "x:"))
        try:
            raise HfHubHTTPError("refused", response=response)
        except HfHubHTTPError:
            raise FileNotFoundError("no file at /some/where")  # noqa: B904, as datasets does it

    monkeypatch.setattr(datasets, "get_dataset_config_names", refuse)
    with pytest.raises(
        DataError, match=rf"'user/speech' cannot be loaded from the hub: .* {status}: .*{advice}"
    ):
        open_speech(["user/speech"])


def test_hugging_face_sources_need_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ossicle\[hub\]'"):
        open_speech(["nobody/nothing"])
    assert "HF_DATASETS_DISABLE_TORCHCODEC" not in os.environ
