"""An ear's config names its bases so that it can be moved with them, and be given away."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.tiny_models import save_tiny_backbones, tiny_ear

import ossicle
from ossicle import checkpoint
from ossicle.base_paths import from_portable, name_base, to_portable
from ossicle.errors import CheckpointError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with bases in models/, and ears beside them."""
    place = tmp_path / "a" / "b" / "place"
    base = save_tiny_backbones(place / "models")
    ear = tiny_ear("query", base=base)
    checkpoint.save(ear, place / "mine")
    checkpoint.save(ear, place / "runs" / "one" / "ear")
    return place


def read_base(ear: Path) -> dict[str, str]:
    return json.loads((ear / "config.json").read_text())["base"]


def test_bases_beside_an_ear_are_named_relative_to_it(place: Path) -> None:
    assert read_base(place / "mine")["llm"] == "../models/llm"
    assert read_base(place / "runs/one/ear")["encoder"] == "../../../models/whisper"
    for file in ("config.json", "README.md"):
        assert str(place) not in (place / "mine" / file).read_text()


def test_an_ear_that_is_moved_with_its_bases_finds_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(place, moved)
    monkeypatch.chdir(tmp_path)
    for ear in (moved / "mine", moved / "runs/one", Path("elsewhere/mine")):
        loaded = ossicle.load(ear, device="cpu")
        assert loaded.settings.base.llm == str(moved / "models/llm")
    checkpoint.save(ossicle.load("elsewhere/mine", device="cpu"), moved / "again")
    assert read_base(moved / "again")["llm"] == "../models/llm"


@pytest.mark.parametrize("is_absolute", [True, False])
def test_an_older_ear_finds_its_bases_where_they_were_and_beside_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_absolute: bool
) -> None:
    monkeypatch.chdir(place.parent)
    for ear in ("mine", "runs/one/ear"):
        path = place / ear / "config.json"
        config = json.loads(path.read_text())
        start = str(place) if is_absolute else "place"
        config["base"] |= {"encoder": f"{start}/models/whisper", "llm": f"{start}/models/llm"}
        path.write_text(json.dumps(config))
        ossicle.load(place / ear, device="cpu")
    moved = tmp_path / "other" / "place"
    shutil.move(place, moved)
    monkeypatch.chdir(tmp_path)
    for ear in ("mine", "runs/one"):
        assert ossicle.load(moved / ear, device="cpu").settings.base.llm == str(moved / "models/llm")


def test_an_ear_without_its_bases_says_which_it_needs(place: Path, tmp_path: Path) -> None:
    alone = tmp_path / "x" / "y" / "z" / "alone"
    shutil.copytree(place / "mine", alone)
    encoder, llm = str(place / "models/whisper"), str(place / "models/llm")
    with pytest.raises(CheckpointError, match=r"encoder '\.\./models/whisper': .* name it with --encoder"):
        ossicle.load(alone, device="cpu")
    for with_llm in (True, False):
        with pytest.raises(CheckpointError, match=r"LLM '\.\./models/llm': .* name it with --llm"):
            ossicle.load(alone, encoder=encoder, device="cpu", with_llm=with_llm)
    with pytest.raises(CheckpointError, match=r"'nowhere/': there is no such folder, .*hub id$"):
        ossicle.load(alone, encoder=encoder, llm="nowhere/", device="cpu")
    assert ossicle.load(alone, encoder=encoder, llm=llm, device="cpu").settings.base.llm == llm


def test_a_base_with_a_path_or_id_that_leads_nowhere_can_be_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    alone = tmp_path / "x" / "y" / "z" / "alone"
    shutil.copytree(place / "mine", alone)
    path = alone / "config.json"
    config = json.loads(path.read_text())
    for name in ("/gone/llm", "a/gone-llm", "gone-llm"):
        config["base"] |= {"encoder": str(place / "models/whisper"), "llm": name}
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"LLM '{name}': .* name it with --llm"):
            ossicle.load(alone, device="cpu")
        ossicle.load(alone, llm=str(place / "models/llm"), device="cpu")


def test_hub_ids_and_embedded_bases_keep_their_names(tmp_path: Path) -> None:
    for name in ("pocket/llm", "openai/whisper-small", "gpt2"):
        assert to_portable(name, "main", tmp_path / "ear") == (name, "main")
        assert from_portable(name, tmp_path / "ear") == name == name_base(name)


def test_a_folder_of_the_hubs_cache_is_named_by_its_hub_id(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--openai--whisper-small" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    assert to_portable(str(snapshot), None, tmp_path / "ear") == ("openai/whisper-small", commit)


def test_bases_far_from_an_ear_keep_their_path_but_not_in_the_card(place: Path, tmp_path: Path) -> None:
    ear = ossicle.load(place / "mine", device="cpu")
    far = tmp_path / "x" / "y" / "z" / "far"
    checkpoint.save(ear, far)
    assert read_base(far)["llm"] == str(place / "models/llm")
    assert str(place) not in (far / "README.md").read_text()
    ossicle.load(far, device="cpu")
    assert name_base(str(place / "models/llm")) == "llm"
