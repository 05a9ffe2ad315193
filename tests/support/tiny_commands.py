"""What the tests of the command line share."""

from pathlib import Path

TRANSCRIPTS = ["the cat sat on the mat", "the old man said yes", "hello there", "how are you today"]


def list_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
