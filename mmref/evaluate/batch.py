"""The unit of work: a batch of the list of pictures, and the record of its answers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mmref.errors import MmrefError

NEVER_BEGAN = ("worker processes end before they begin, most likely because each imports the program that starts it: "
               "call evaluate below `if __name__ == \"__main__\":` in a script that is a file, not standard input; or "
               "use one process")


@dataclass(frozen=True)
class Batch:
    """The pictures `paths` below `root`, of which the first has the place `start` in the list. Travels to the process
    that computes it."""

    root: str
    paths: tuple[str, ...]
    start: int

    def files(self) -> list[str]:
        """The pictures' paths."""
        return [os.path.join(self.root, path) for path in self.paths]

    def record(self, answers) -> dict:
        """{"start": place of the first picture, "top": [[class, ...] or error text, one per picture]}."""
        return {"start": self.start, "top": [answer.error or list(answer.classes) for answer in answers]}

    def check_here(self) -> None:
        """Raise MmrefError where this process cannot see the pictures, lest a missing mount pass for bad pictures."""
        check_folder(self.root, "the pictures")


def check_folder(folder, what) -> None:
    """Raise MmrefError that says where `folder` is not there."""
    if not os.path.isdir(folder):
        import socket
        raise MmrefError(f"{folder}: no such folder in process {os.getpid()} on {socket.gethostname()}; every worker "
                         f"must see {what} under the same path")


def run_batch(predictor, batch: Batch) -> dict:
    """The record of a batch, computed in whatever process this is. Raises MmrefError where it cannot see the files."""
    batch.check_here()
    return batch.record(predictor(batch.files()))
