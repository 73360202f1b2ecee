"""Picture files in folders: one walk and one rule for all that take folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

__all__ = ["EXTENSIONS", "Found", "is_picture_name", "natural_key", "pictures_below"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass
class Found:
    """What is below a folder: pictures by their path there, sorted; folders that could not be read, in words; how many
    files have another extension."""

    pictures: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    others: int = 0


def is_picture_name(name: str) -> bool:
    """By its extension, in any case of letters. Hidden files are none: `._cat.jpg` is macOS's notes about cat.jpg."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def pictures_below(root) -> Found:
    """All pictures in a folder and the folders in it, but for hidden ones. Links to folders are followed; a folder that
    is met again, by a link or in a circle of links, counts once. Nothing is opened."""
    root, found, seen, waiting = os.fspath(root), Found(), set(), [""]
    while waiting:
        inner = waiting.pop()
        folder = os.path.join(root, inner) if inner else root
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                entries = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries)
        except OSError as error:
            found.problems.append(f"{folder}: {error.strerror or error}")
            continue
        for name, is_folder, is_link in reversed(entries):
            path = os.path.join(inner, name)
            if is_folder and not name.startswith("."):
                waiting.append(path)
            elif is_folder:
                continue
            elif is_picture_name(name):
                found.pictures.append(path)
            elif is_link and not name.startswith(".") and not os.path.exists(os.path.join(root, path)):
                found.problems.append(f"{os.path.join(root, path)}: a link to nothing")
            else:
                found.others += 1
    found.pictures.sort()
    return found


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return False


def natural_key(name: str):
    """Sort key that has "a2" before "a10": runs of digits by their value, everything else by its characters."""
    import re
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
