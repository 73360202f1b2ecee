"""Pictures as commands take them: files, folders of them, samples, and `-` for standard input."""

from __future__ import annotations

import os
import sys

from mmref.data.samples import SAMPLES
from mmref.errors import ValueProblem


def add_picture_arguments(parser) -> None:
    """PICTURE... and --sample, what `gather` takes."""
    parser.add_argument("pictures", nargs="*", metavar="PICTURE",
                        help="picture files, and folders of them; - is standard input")
    parser.add_argument("--sample", action="append", default=[], metavar="NAME",
                        help=f"a picture that comes along: {', '.join(SAMPLES[:-1])} or {SAMPLES[-1]}")


def picture_from(path: str):
    """What `open_picture` takes for an argument PICTURE: standard input's binary file for "-", else the path itself
    (a file of that name is ./-)."""
    if path != "-":
        return path
    if sys.stdin is None or sys.stdin.closed or not hasattr(sys.stdin, "buffer"):
        raise ValueProblem("PICTURE '-' needs a standard input, which is closed")
    return sys.stdin.buffer


def check_once(paths) -> None:
    """Raise ValueProblem where standard input is asked for twice: it can be read once."""
    if sum(path == "-" for path in paths) > 1:
        raise ValueProblem("PICTURE '-' (standard input) can be given once")


def gather(paths, samples=()):
    """(pictures, their names, folders that could not be read): samples first, folders replaced by the picture files
    below them, sorted. Raises ValueProblem where there is nothing."""
    from mmref.data.folders import EXTENSIONS, pictures_below
    from mmref.data.samples import sample_picture
    check_once(paths)
    pictures, names, problems = [sample_picture(name) for name in samples], [f"sample {name}" for name in samples], []
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            pictures.append(picture_from(path))
            names.append(path)
            continue
        found = pictures_below(path)
        if not found.pictures and not found.problems:
            raise ValueProblem(f"PICTURE must be a picture or a folder with some ({', '.join(EXTENSIONS)}), got the "
                               f"folder {path} without any")
        below = [os.path.join(path, name) for name in found.pictures]
        pictures, names, problems = pictures + below, names + below, problems + found.problems
    if not pictures and not problems:
        raise ValueProblem("PICTURE must be at least one file or folder (or use --sample cat), got none")
    return pictures, names, problems
