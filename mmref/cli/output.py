"""What commands print: lines for people, JSON for programs. Names of files and records are safe in both."""

from __future__ import annotations

import sys

from mmref.text import printable, to_json


def prepare_streams() -> None:
    """Whatever the terminal's encoding cannot write comes out as an escape, never as a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "", file=None) -> None:
    """Print one line, whatever is in `text`."""
    print(printable(text), file=file)


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
