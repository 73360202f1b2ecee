"""Text that leaves the program: names of files and records, which may hold anything, made safe to show.

A file may be called `a\\x1b[2J.jpg` or two lines of text, or by bytes that are not UTF-8 (Python keeps these as lone
surrogates). On a terminal the first is obeyed and the last is a UnicodeEncodeError. So there is one rule:

people    `printable`: whatever does not show by itself (control characters, line ends, directions of writing, lone
          surrogates) becomes an escape, `\\x1b` or `\\u202e`; bytes that were no UTF-8 become `\\xe9`. MmrefError
          does so to every message, `mmref.cli.common.say` to every line of output
programs  `to_json`: ASCII alone, which is UTF-8 whatever the terminal's encoding; NaN and infinity become null. A
          name that is not UTF-8 is there as people see it, and exactly in KEY_base64: the base64 of its bytes
          (`name_fields`)
"""

from __future__ import annotations

import base64
import json
import math
import os
import re

__all__ = ["name_fields", "printable", "to_json"]

_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text) -> str:
    """`text` on one line, with nothing in it that a terminal obeys or cannot encode as Unicode. What is printable stays
    as it is, backslashes too, so that doing it twice changes nothing."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character):
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's stand-in for a byte
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def name_fields(key: str, name) -> dict[str, str]:
    """{key: name} for JSON; and {key}_base64, its exact bytes, where the name is not Unicode text."""
    name = os.fspath(name)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not _SURROGATE.search(name):
        return {key: name}
    return {key: printable(name), f"{key}_base64": base64.b64encode(os.fsencode(name)).decode("ascii")}


def to_json(value, indent: int | None = 2) -> str:
    """JSON that every reader takes: ASCII, no lone surrogates, no NaN or infinity (null stands for them)."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value):
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str) and _SURROGATE.search(value):
        return printable(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
