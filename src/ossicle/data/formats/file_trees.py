"""Trees of audio files with words beside them: LibriSpeech and Libri-Light, Multilingual LibriSpeech, VCTK, pairs."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ossicle.data.formats.listed import ListedRow
from ossicle.data.formats.webdataset import BYTES_PER_SECOND
from ossicle.errors import DataError
from ossicle.text_encoding import read_text_file

LIBRISPEECH, MLS, VCTK, PAIRS = (
    "LibriSpeech tree",
    "Multilingual LibriSpeech folder",
    "VCTK folder",
    "folder of pairs, an audio file and a text of the same name",
)
_TRANS = ".trans.txt"
_TEXT_ENDINGS = (".normalized.txt", ".original.txt", ".txt", ".lab")
"""In order of precedence; LibriTTS has the first two."""
_AUDIO_ENDINGS = tuple(f".{extension}" for extension in BYTES_PER_SECOND)
_VCTK_AUDIO = ("wav48_silence_trimmed", "wav48", "wav16")
_VCTK_MICROPHONES = ("_mic1", "", "_mic2")
_MLS_FILES = ("transcripts.txt", "audio")
_IN_ARCHIVE = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".7z")


@dataclass
class FileTree:
    """The files under a folder, by what they are for."""

    folder: Path
    transcripts: list[str] = field(default_factory=list)
    """Files that list the words of a chapter, as LibriSpeech has them."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """Endings of text files by path without ending."""
    audio: dict[str, list[str]] = field(default_factory=dict)
    """Endings of audio files, the same."""
    archives: list[str] = field(default_factory=list)

    @property
    def has_pairs(self) -> bool:
        """Whether an audio file has a text of its name beside it."""
        return any(stem in self.texts for stem in self.audio)


def walk(folder: Path) -> FileTree:
    """Returns the files under a folder, in the order of their paths."""
    tree = FileTree(folder)
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = Path(parent).relative_to(folder).as_posix()
        for name in sorted(names):
            if not name.startswith("."):
                _add(tree, name if prefix == "." else f"{prefix}/{name}")
    return tree


def _add(tree: FileTree, path: str) -> None:
    lowercase = path.lower()
    if lowercase.endswith(_TRANS):
        tree.transcripts.append(path)
    elif lowercase.endswith(_IN_ARCHIVE):
        tree.archives.append(path)
    elif ending := next((ending for ending in _TEXT_ENDINGS if lowercase.endswith(ending)), None):
        tree.texts.setdefault(path[: -len(ending)], []).append(path[-len(ending) :])
    elif lowercase.endswith(_AUDIO_ENDINGS):
        stem, dot, ending = path.rpartition(".")
        tree.audio.setdefault(stem, []).append(dot + ending)


def read_librispeech(tree: FileTree) -> Iterator[ListedRow]:
    """Yields the lines "ID WORDS" of every .trans.txt; the audio lies beside it."""
    for listing in tree.transcripts:
        parent = PurePosixPath(listing).parent
        for name, text in _read_lines(tree.folder / listing, None):
            stem = str(parent / name)
            problem = (
                None
                if stem in tree.audio
                else f"{listing} has its words, and there is no audio file beside it"
            )
            audio = None if problem else stem + tree.audio[stem][0]
            yield ListedRow(name=stem, audio=audio, text=text, problem=problem)


def is_mls(folder: Path) -> bool:
    """Whether a folder is a split of Multilingual LibriSpeech: transcripts.txt beside audio/."""
    return (folder / _MLS_FILES[0]).is_file() and (folder / _MLS_FILES[1]).is_dir()


def read_mls(folder: Path) -> Iterator[ListedRow]:
    """Yields the lines "SPEAKER_BOOK_NUMBER<tab>WORDS"; the audio lies in audio/SPEAKER/BOOK/."""
    audio = walk(folder / _MLS_FILES[1]).audio
    for name, text in _read_lines(folder / _MLS_FILES[0], "\t"):
        stem = "/".join([*name.split("_")[:2], name])
        problem = None if stem in audio else f"audio/{stem} does not exist"
        path = None if problem else f"audio/{stem}{audio[stem][0]}"
        yield ListedRow(name=name, audio=path, text=text, problem=problem)


def is_vctk(folder: Path) -> bool:
    """Whether a folder has VCTK's txt/ and its sound."""
    return (folder / "txt").is_dir() and any((folder / name).is_dir() for name in _VCTK_AUDIO)


def read_vctk(folder: Path) -> Iterator[ListedRow]:
    """Yields the texts of txt/SPEAKER/ with the first microphone's sound; a speaker without texts is left out."""
    sound = next(name for name in _VCTK_AUDIO if (folder / name).is_dir())
    audio, texts = walk(folder / sound).audio, walk(folder / "txt").texts
    for stem, endings in texts.items():
        found = next(
            (stem + microphone for microphone in _VCTK_MICROPHONES if stem + microphone in audio), None
        )
        path = f"{sound}/{found}{audio[found][0]}" if found else None
        problem = None if found else f"{sound}/{stem} does not exist, with or without _mic1"
        yield _read_pair(folder, f"txt/{stem}{endings[0]}", stem, path, problem)


def read_pairs(tree: FileTree) -> Iterator[ListedRow]:
    """Yields every audio file with the text of its name, and as invalid rows those of one without the other."""
    for stem, audio in tree.audio.items():
        endings = tree.texts.get(stem, [])
        ending = next((known for known in _TEXT_ENDINGS for found in endings if found.lower() == known), None)
        problem = None
        if ending is None:
            problem = f"the audio file {stem}{audio[0]} has no text {stem}.txt beside it"
        elif len(audio) > 1:
            problem = f"{stem} has {' and '.join(audio)}, expected one audio file of this name"
        found = next((found for found in endings if found.lower() == ending), "")
        yield _read_pair(tree.folder, stem + found, stem, stem + audio[0], problem)
    for stem, endings in tree.texts.items():
        if stem not in tree.audio:
            yield ListedRow(
                name=stem, problem=f"the text {stem}{endings[0]} has no audio file of its name beside it"
            )


def find_tree_difference(tree: FileTree) -> str | None:
    """Returns in one line what a folder without a known layout holds instead; None where it has no sound at all."""
    folder = tree.folder
    if not tree.audio and tree.archives:
        return f"it holds the archive {tree.archives[0]}: unpack it, and give the folder that comes of it"
    if (folder / "txt").is_dir() and tree.texts and not tree.audio:
        return f"it has VCTK's txt, and no {' or '.join(_VCTK_AUDIO)} with the sound"
    if (folder / "wavs").is_dir() and tree.audio:
        return "it has LJSpeech's wavs, and no metadata.csv with a line NAME|WORDS for each"
    if tree.audio:
        stem, endings = next(iter(tree.audio.items()))
        name = PurePosixPath(stem).name
        return (
            f"it holds audio ({len(tree.audio):,} in all) and {_describe_words(tree)}: expected {name}.txt beside"
            f" {name}{endings[0]}, or a metadata.csv with the columns file_name and text"
        )
    return None


def _describe_words(tree: FileTree) -> str:
    """Returns where the words of an audio file may be, in place of beside it."""
    sounds = {PurePosixPath(stem).name: stem + endings[0] for stem, endings in tree.audio.items()}
    for stem, endings in tree.texts.items():
        name = PurePosixPath(stem).name
        sound = sounds.get(name) or sounds.get(PurePosixPath(name).stem)
        if sound:
            return f"the words of {sound} are in {stem}{endings[0]}, which is not beside it under its name"
    return "no words"


def _read_pair(folder: Path, text_path: str, name: str, audio: str | None, problem: str | None) -> ListedRow:
    text = None
    try:
        text = None if problem else read_text_file(folder / text_path)
    except (OSError, ValueError) as error:
        problem = f"its text {text_path} cannot be read: {getattr(error, 'strerror', None) or error}"
    return ListedRow(name=name, audio=audio, text=text, problem=problem)


def _read_lines(path: Path, separator: str | None) -> Iterator[tuple[str, str]]:
    """Yields the first word of each line that is not empty, and the rest.

    Raises:
        DataError: the file cannot be read
    """
    try:
        lines = read_text_file(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    for line in filter(str.strip, lines):
        name, *text = re.split(r"\s+" if separator is None else separator, line.strip(), maxsplit=1)
        yield name, text[0] if text else ""
