"""One file over HTTPS, resumed where it was cut, with the standard library alone.

The server is not trusted for the length it announces nor for honouring `Range`: a download ends when as many bytes
have arrived as were announced, and whether they are right is for the caller to check.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from mmref.errors import CheckpointError

TIMEOUT = 30            # seconds without a byte
PAUSE = 1.0             # seconds before a new attempt, doubled each time nothing came
ATTEMPTS = 5            # in a row that bring nothing new
CONNECTIONS = 100       # in all
MAX_FILE = 2 << 30      # bytes; the largest published file has about 70 MB
_CHUNK = 1 << 18


class _Cut(Exception):
    """The connection ended before the file did."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, new_url):
        if request.type == "https" and not new_url.startswith("https:"):
            raise CheckpointError(f"{request.full_url}: the server redirects to {new_url}, which is not https")
        return super().redirect_request(request, file, code, message, headers, new_url)


def download(url: str, partial, *, progress: bool = True) -> None:
    """Complete the file `partial` from `url`, resuming what an earlier call left there.

    Going on needs the server's entity tag, kept in a file beside it (`.tag`); without one, or where the server ignores
    ranges or has another file by now, it starts again. Raises CheckpointError (what the server answered, or that it
    cannot be reached; the part is kept), OSError where it cannot be written.
    """
    partial, most, failures, problem = Path(partial), 0, 0, ""
    if not url.startswith(("https://", "http://")):
        raise CheckpointError(f"{url}: must be an address that begins with https:// or http://")
    for _ in range(CONNECTIONS):
        try:
            _attempt(url, partial, progress)
            return
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # nothing beyond what we have: what we have is not its file
                discard(partial)
            elif error.code < 500 and error.code not in (408, 429):
                raise CheckpointError(f"{url}: {problem}") from error
        except urllib.error.URLError as error:
            raise CheckpointError(f"{url}: cannot be reached ({error.reason})") from error
        except (_Cut, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = str(error) or type(error).__name__
        except OSError as error:  # ours, not the server's: a full disk, which does not say where
            raise OSError(error.errno, error.strerror, str(partial)) from error
        size = partial.stat().st_size if partial.exists() else 0
        failures = 0 if size > most else failures + 1
        most = max(most, size)
        if failures == ATTEMPTS:
            break
        time.sleep(PAUSE * 2 ** failures)
    raise CheckpointError(f"{url}: {problem}, repeatedly ({most} bytes are kept for the next attempt)")


def discard(partial) -> None:
    """Remove a part and its tag."""
    Path(partial).unlink(missing_ok=True)
    _tag_file(partial).unlink(missing_ok=True)


def _tag_file(partial):
    return Path(f"{partial}.tag")


def _known_tag(url, partial):
    """The entity tag of what the part is a part of, None where there is none or it is of another address."""
    try:
        address, tag = _tag_file(partial).read_text().splitlines()
    except (OSError, ValueError):
        return None
    return tag if address == url and partial.exists() else None


def _attempt(url, partial, progress):
    tag = _known_tag(url, partial)
    have = partial.stat().st_size if tag else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mmref", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        start, total = _extent(response, have)
        if total is not None and total > MAX_FILE:
            raise CheckpointError(f"{url}: the server announces {total} bytes, at most {MAX_FILE} expected")
        with open(partial, "r+b" if start else "wb") as file:
            if not start:  # the tag after the old bytes are gone, before the first new one is there
                _write_tag(url, partial, response.headers.get("ETag", ""))
            file.seek(start)
            file.truncate()
            _copy(response, file, start, total, progress and url)
            file.flush()
            os.fsync(file.fileno())


def _extent(response, have):
    """(first byte, size of the whole or None) of what the server is going to send."""
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != have:
        raise _Cut(f"the server was asked for bytes from {have} and sends {response.headers.get('Content-Range')}")
    return have, int(match[2])


def _write_tag(url, partial, tag):
    if re.fullmatch('"[!-~]*"', tag):  # a weak tag (W/"...") promises nothing about bytes
        _tag_file(partial).write_text(f"{url}\n{tag}\n")
    else:
        _tag_file(partial).unlink(missing_ok=True)


def _copy(response, file, position, total, label):
    from mmref.progress import progress
    bar = progress(total, "B", str(label).rpartition("/")[2], None if label else False, leave=True, initial=position,
                   unit_scale=True)
    with bar:
        while True:
            try:
                data = response.read1(_CHUNK)  # what is there, so that a killed process leaves it behind
            except (http.client.HTTPException, OSError) as error:
                raise _Cut(f"the connection was lost after {position} bytes ({error})") from error
            if not data:
                break
            position += len(data)
            if position > MAX_FILE:
                raise CheckpointError(f"more than {MAX_FILE} bytes received")
            file.write(data)
            bar.update(len(data))
    if total is not None and position != total:
        raise _Cut(f"the connection ended after {position} of {total} bytes")
