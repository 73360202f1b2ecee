"""Where `mmref segment` and `mmref detect` write: some files per picture, under names that a data set would have.

    photos/a/cat.jpg, in the folder photos     FOLDER/labels/a/cat.png, FOLDER/overlays/a/cat.png
    cat.jpg beside cat.png                     FOLDER/labels/cat.jpg.png, FOLDER/labels/cat.png.png
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

from mmref.errors import ValueProblem


class Target(NamedTuple):
    """The files of one picture."""

    labels: str
    overlay: str


class Destination:
    """An output folder, and the arguments that pictures come from.

    target  a named tuple of one picture's files; kinds  {folder of each: extension}"""

    def __init__(self, folder: str, arguments, target=Target, kinds=None):
        self.target, self.kinds = target, kinds or {"labels": ".png", "overlays": ".png"}
        if not folder:
            raise ValueProblem("--output must be a folder, got an empty name")
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueProblem(f"--output must be a folder, got the file {folder}")
        self.folder = folder
        self._folders = [path for path in arguments if path != "-" and os.path.isdir(path)]
        self._ours = [os.path.join(os.path.realpath(folder), kind, "") for kind in self.kinds]

    def is_ours(self, name: str) -> bool:
        """Whether a picture found in a folder is an answer of an earlier run, which nobody wants worked on again."""
        return self._root(name) is not None and os.path.realpath(name).startswith(tuple(self._ours))

    def targets(self, names: list[str]) -> list:
        """The files of each picture. Raises ValueProblem where two pictures would have the same, or one would replace a
        picture that is read."""
        inner = [self._inner(name) for name in names]
        stems = [os.path.splitext(path)[0] for path in inner]
        count = Counter(stems)
        taken, targets = {}, []
        for name, path, stem in zip(names, inner, stems, strict=True):
            file = path if count[stem] > 1 else stem
            if file in taken:
                raise ValueProblem(f"PICTURE {taken[file]} and {name} would both become {file}.*; give them in two "
                                   f"calls, or a folder that holds both")
            taken[file] = name
            targets.append(self.target(*(os.path.join(self.folder, kind, file + extension)
                                         for kind, extension in self.kinds.items())))
        read = {os.path.realpath(name) for name in names}
        for target in targets:
            for path in target:
                if os.path.realpath(path) in read:
                    raise ValueProblem(f"--output must be another folder: {path} would replace a picture that is read")
        return targets

    def prepare(self) -> None:
        """Make the folder. Raises OSError where it cannot be made or written, now instead of after the work."""
        import errno
        os.makedirs(self.folder, exist_ok=True)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.folder)

    def _root(self, name):
        """The folder that a picture was found in, None for a picture that was named itself."""
        return next((root for root in self._folders if name.startswith(os.path.join(root, ""))), None)

    def _inner(self, name):
        """A picture's path below the folder it was found in; the name alone of one that was named itself."""
        if name == "-":
            return "stdin"
        root = self._root(name)
        if root is None:
            return os.path.basename(name.removeprefix("sample "))
        return os.path.relpath(name, root)
