"""Replacing a file: whole or not at all, and never something that is no file."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from mmref.files import replacing


def write(path, data=b"new", **options):
    with replacing(path, **options) as temporary:
        temporary.write_bytes(data)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_link_stays_a_link(tmp_path):
    """Catches a rename that puts a file in the place of a link and leaves what it points to as it was."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "real").read_bytes() == b"new"
    assert names(tmp_path / "there") == ["real"]


def test_pipes_and_devices_are_written_into(tmp_path):
    """Catches a pipe (or, as root, /dev/null) renamed away and replaced by a plain file."""
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    write(tmp_path / "pipe", b"x" * 100_000)
    reader.join(timeout=60)
    assert heard == [b"x" * 100_000] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="/dev/full"):
            write("/dev/full")
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    assert names(tmp_path) == ["pipe"]


def test_permissions(tmp_path):
    """Catches a private file that becomes readable for all when it is replaced, and new files that ignore the umask or
    the mode that was asked for (the compiled kernels': their owner's alone)."""
    old = os.umask(0o022)
    try:
        write(tmp_path / "new")
        write(tmp_path / "own", mode=0o600)
        os.umask(0o002)
        write(tmp_path / "shared")
        (tmp_path / "private").write_bytes(b"old")
        (tmp_path / "private").chmod(0o600)
        write(tmp_path / "private")
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "own", "shared", "private")] == [
        0o644, 0o600, 0o664, 0o600]


def test_errors_name_the_path_the_user_gave(tmp_path):
    """Catches an error about a temporary name nobody knows, work that is done before a bad path shows, and an error of
    another file put down to this one."""
    def must_not_run(path):
        with replacing(path):
            pytest.fail("the block ran")
    with pytest.raises(FileNotFoundError) as caught:
        must_not_run(tmp_path / "no" / "out")
    assert caught.value.filename == str(tmp_path / "no" / "out")
    with pytest.raises(IsADirectoryError) as caught:
        must_not_run(tmp_path)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input") and names(tmp_path) == []


@pytest.mark.parametrize("broken", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_what_stops_the_block_leaves_the_old_file(tmp_path, broken):
    """Catches half a file in place of the old one, and a temporary file left behind."""
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(type(broken)), replacing(tmp_path / "out") as temporary:
        temporary.write_bytes(b"ne")
        raise broken
    assert (tmp_path / "out").read_bytes() == b"old" and names(tmp_path) == ["out"]
