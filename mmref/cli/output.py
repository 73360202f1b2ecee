"""What commands print: lines for people, JSON for programs. Names of files and records are safe in both."""

from __future__ import annotations

import io
import os
import sys

from mmref.text import printable, to_json


class Nowhere(io.TextIOBase):
    """Stands for a standard stream that was closed before the program began (`>&-`), which Python has as None: `print`
    would then take standard output for standard error. `used` tells whether anything was written."""

    used = False

    def writable(self) -> bool:
        return True

    def write(self, text) -> int:
        self.used = True
        return len(text)


def prepare_streams() -> None:
    """Whatever the terminal's encoding cannot write comes out as an escape, never as a UnicodeEncodeError. What would
    go to a closed stream is thrown away."""
    if sys.stdout is None or sys.stderr is None:
        while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # or the next file opened would be standard output
            pass
        os.close(number)
    sys.stdout, sys.stderr = sys.stdout or Nowhere(), sys.stderr or Nowhere()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "", file=None) -> None:
    """Print one line, whatever is in `text`. Raises OSError where standard output cannot be written; what cannot go to
    standard error (a full disk, a closed pipe) costs nobody the answer."""
    try:
        print(printable(text), file=file)
    except OSError:
        if file is None or file is not sys.stderr:
            raise
        drop(sys.stderr)


def drop(stream) -> None:
    """Send what is left of a stream that cannot be written, and all that follows, nowhere; Python would fail again at
    exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def note(text: str) -> None:
    """One line on stderr, for what a user should know beside the answer."""
    say(f"mmref: note: {text}", sys.stderr)


def print_json(value) -> None:
    """`value` as JSON on standard output, in ASCII: that is UTF-8, whatever the terminal's encoding."""
    text = to_json(value) + "\n"
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # somebody's stand-in for standard output
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        binary.write(text.encode("ascii"))
        binary.flush()
