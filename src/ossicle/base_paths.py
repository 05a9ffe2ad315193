"""Names of an ear's bases in its config.json: hub ids as they are, folders relative to the ear where they lie beside it.

So an ear that is moved together with its bases finds them, and one that is given away tells nothing of its maker's disk
where that can be helped.
"""

import os
import re
from pathlib import Path

from ossicle.backbones.model_files import resolve_model_path

_SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?$")
"""A model's folder in the hub's own cache."""
_LEVELS = 3
"""Folders above an ear's own in which its bases lie beside it: that of a run, of all runs, of a project."""


def to_portable(name: str, revision: str | None, folder: Path) -> tuple[str, str | None]:
    """Returns a base's name and revision as the ear in `folder` keeps them."""
    path = _to_absolute(resolve_model_path(name))
    if name.startswith("pocket/") or not path.exists():
        return name, revision
    if cached := _SNAPSHOT.search(path.as_posix()):
        return f"{cached[1]}/{cached[2]}", cached[3]
    ear = Path(os.path.realpath(folder))
    here = Path(os.path.realpath(path.parent)) / path.name
    ancestors = [parent for parent in ear.parents[:_LEVELS] if parent != Path(ear.anchor)]
    if any(here.is_relative_to(ancestor) for ancestor in ancestors):
        relative = Path(os.path.relpath(here, ear)).as_posix()
        return relative if relative.startswith("..") else f"./{relative}", revision
    return str(path), revision


def from_portable(name: str, folder: Path) -> str:
    """Returns where the base of the ear in `folder` lies; a hub id and a base that is not found are returned unchanged.

    Older ears hold absolute paths, or paths relative to where they were made. If such a path leads nowhere, the base is
    looked for in the folders above the ear, under as much of its path as there is: its fingerprint is compared anyway.
    """
    if name.startswith("pocket/"):
        return name
    given = Path(resolve_model_path(name))
    beside = [Path(os.path.normpath(root / given)) for root in (_to_absolute(folder), folder.resolve())]
    is_relative = name.startswith(("./", "../"))
    try:
        found = [path for path in ([*beside, given] if is_relative else [given]) if path.exists()]
    except OSError:  # a name that no file can have; to load it says so
        return name
    if found:
        return str(found[0])
    parts = [part for part in given.parts if part not in (".", "..", given.anchor)]
    is_hub_id = len(parts) <= 2 and not (is_relative or given.is_absolute())
    n_shortest = len(parts) if is_hub_id else 1
    for ancestor in list(_to_absolute(folder).parents)[:_LEVELS]:
        for n in range(len(parts), n_shortest - 1, -1):
            path = ancestor.joinpath(*parts[-n:])
            if (path / "config.json").is_file() or path.is_file():
                return str(path)
    return name


def _to_absolute(path: Path | str) -> Path:
    """Returns an absolute path without "..", through the links that it is given with."""
    return Path(os.path.normpath(Path(path).absolute()))


def name_base(name: str) -> str:
    """Returns a base's name for people: of a folder its last part, of anything else the whole."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(("./", "../", "~")) else name
