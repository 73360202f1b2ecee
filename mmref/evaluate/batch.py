"""The unit of work: a batch of the list of pictures, and the record of its answers."""

from __future__ import annotations

import os

from mmref.errors import MmrefError
from mmref.evaluate.folder import PictureSet
from mmref.tasks.predictor import Predictor

NEVER_BEGAN = ("worker processes end before they begin, most likely because each imports the program that starts it: "
               "call evaluate below `if __name__ == \"__main__\":` in a script that is a file, not standard input; or "
               "use one process")


def batch_paths(pictures: PictureSet, start: int, size: int) -> list[str]:
    """Paths, below the root, of the batch that begins at `start`."""
    return list(pictures.paths[start:start + size])


def run_batch(predictor: Predictor, root: str, paths: list[str], start: int) -> dict:
    """The record of the pictures `paths` below `root`, computed in whatever process this is.

    Raises MmrefError where the process cannot see `root`, lest a missing mount pass for bad pictures."""
    if not os.path.isdir(root):
        import socket
        raise MmrefError(f"{root}: no such folder in process {os.getpid()} on {socket.gethostname()}; every worker "
                         f"must see the pictures under the same path")
    return record(start, predictor([os.path.join(root, path) for path in paths]))


def record(start: int, answers) -> dict:
    """{"start": place of the first picture, "top": [[class, ...] or error text, one per picture]}."""
    return {"start": start, "top": [answer.error or list(answer.classes) for answer in answers]}
