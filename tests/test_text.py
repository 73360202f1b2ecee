"""Names on output: whatever files and records are called, in whatever encoding the terminal has."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mmref.data.labels import CIFAR10
from mmref.data.picture import open_picture
from mmref.data.samples import sample_picture
from mmref.errors import MmrefError, ParameterMismatch, PictureError
from mmref.text import name_fields, printable, to_json

HOSTILE = {"escape": "a\x1b[2Jb", "line": "a\nmmref: error: b", "return": "a\rb", "c1": "a\x9b2Jb", "bidi": "a\u202eb",
           "separator": "a\u2028b", "nothing": "a\x00b", "bell": "\x07", "half": "a\ud800b"}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_printable(text):
    """Catches: a control character, a line end, a change of direction or a lone surrogate that reaches a terminal."""
    shown = printable(text)
    assert shown.isprintable() and "\\" in shown and printable(shown) == shown
    assert str(MmrefError(f"{text}: broken")) == f"{shown}: broken" == str(ParameterMismatch(f"{text}: broken"))


def test_what_is_printable_stays():
    """Catches: names of other languages, or Windows' paths, made unreadable; bytes that are no UTF-8 shown as Python's
    stand-ins for them."""
    for text in ("größe.jpg", "猫.png", "C:\\pictures\\new.jpg", "two  blanks", "😺"):
        assert printable(text) == text
    assert printable(os.fsdecode(b"latin\xe9.jpg")) == "latin\\xe9.jpg" and printable("\u202e") == "\\u202e"
    assert str(MmrefError()) == "" and str(MmrefError("a", 1)) == "('a', 1)"


@settings(max_examples=200)
@given(st.text(st.characters(codec=None)))
def test_any_text(text):
    """Catches: a character nobody thought of."""
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert json.loads(to_json({text: [text]}).encode("ascii").decode("utf-8"))


def test_json_is_strict():
    """Catches: JSON that only Python reads: NaN, infinity, lone surrogates; a name that cannot be had back."""
    text = to_json({"a": [float("nan"), np.inf, 1.5], "b": ("x\ud800", "é")})
    assert text.isascii() and json.loads(text) == {"a": [None, None, 1.5], "b": ["x\\ud800", "é"]}
    raw = b"latin\xe9\n.jpg"
    if os.name == "posix":
        fields = json.loads(to_json(name_fields("picture", os.fsdecode(raw))))
        assert fields["picture"] == "latin\\xe9\\n.jpg" and base64.b64decode(fields["picture_base64"]) == raw
    assert name_fields("picture", "a\n") == {"picture": "a\n"}  # JSON says it exactly


# -- every command ---------------------------------------------------------------------------------------------

NAMES = [b"latin\xe9.jpg", b"esc\x1b[31m.jpg", b"line\nend.jpg", "größe.jpg".encode(), "bidi\u202e.jpg".encode(),
         "c1\x9b.jpg".encode()]
ENCODINGS = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-16"},
             {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "utf-8:strict"}]
posix = pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder of pictures with names that terminals obey or cannot show, one of them broken; class folders of them."""
    root = os.fsencode(tmp_path_factory.mktemp("hostile"))
    buffer = io.BytesIO()
    sample_picture("cat").save(buffer, "JPEG")
    for name in NAMES:
        (open(os.path.join(root, name), "wb")).write(buffer.getvalue())
    with open(os.path.join(root, b"bad\x1b\xff.jpg"), "wb") as file:
        file.write(b"GIF89a")
    return os.fsdecode(root)


def mmref(*arguments, environment=None, **options):
    return subprocess.run([sys.executable, "-m", "mmref", *map(os.fspath, arguments)], capture_output=True, check=False,
                          env=os.environ | (environment or {}), **options)


def plain(data, environment):
    """What was printed, as text; no Traceback, and nothing a terminal obeys."""
    text = data.decode(environment.get("PYTHONIOENCODING", "ascii").partition(":")[0])
    assert "Traceback" not in text and all(c in "\n" or c >= " " and not "\x7f" <= c <= "\x9f" for c in text), text
    return text


@posix
@pytest.mark.parametrize("environment", ENCODINGS, ids=[next(iter(e.values())) for e in ENCODINGS])
def test_classify(hostile, environment):
    """Catches: UnicodeEncodeError for a name that the terminal's encoding lacks, a name obeyed by the terminal, two
    lines where there is one picture."""
    done = mmref("classify", hostile, environment=environment)
    out, err = plain(done.stdout, environment), plain(done.stderr, environment)
    assert done.returncode == 2 and len(out.splitlines()) == len(NAMES) and out.count(": cat 9") == len(NAMES)
    assert "latin\\xe9.jpg" in out and "esc\\x1b[31m.jpg" in out and "line\\nend.jpg" in out
    assert "bad\\x1b\\xff.jpg: expected JPEG" in err and len(err.splitlines()) == 2


@posix
@pytest.mark.parametrize("environment", ENCODINGS, ids=[next(iter(e.values())) for e in ENCODINGS])
def test_json(hostile, environment):
    """Catches: JSON in the terminal's encoding, or names that cannot be had back from it."""
    done = mmref("classify", hostile, "--json", environment=environment)
    answers = json.loads(done.stdout.decode("utf-8"))
    names = [base64.b64decode(answer["picture_base64"]) if "picture_base64" in answer else
             os.fsencode(answer["picture"]) for answer in answers]
    assert {os.path.basename(name) for name in names} == {*NAMES, b"bad\x1b\xff.jpg"}


@posix
@pytest.mark.parametrize("environment", ENCODINGS[:2], ids=["cp1252", "ascii"])
def test_eval_keeps_its_results(hostile, tmp_path, environment):
    """Catches: hours of work lost at the end, when a bad picture's name is printed or written."""
    for name in CIFAR10:
        (tmp_path / "data" / name).mkdir(parents=True)
    for name in os.listdir(hostile):
        os.link(os.path.join(hostile, name), tmp_path / "data" / "cat" / name)
    results = tmp_path / "r\x1b\udcff.json"
    done = mmref("eval", tmp_path / "data", "--results-file", results, "--class-map", _cifar_map(tmp_path),
                 environment=environment)
    assert done.returncode == 2, done.stderr
    plain(done.stdout, environment), plain(done.stderr, environment)
    written = json.loads(results.read_bytes().decode("utf-8"))
    assert written["answered"] == len(NAMES) and written["correct_top1"] == len(NAMES)
    bad, = written["bad"]
    assert os.path.basename(base64.b64decode(bad["picture_base64"])) == b"bad\x1b\xff.jpg"
    assert sorted(os.listdir(tmp_path)) == sorted(["data", "map.txt", results.name])  # no journal is left


def _cifar_map(folder):
    (folder / "map.txt").write_text("\n".join(CIFAR10))
    return folder / "map.txt"


@posix
def test_other_commands(tmp_path):
    """Catches: the name of an output file, of a missing one, or an argument of argparse's, printed as it is."""
    name = "x\x1b[2J\ny\u202e\udcff"
    cat = tmp_path / f"{name}.jpg"
    sample_picture("cat").save(cat, "JPEG")
    weights = tmp_path / f"{name}.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    environment = {"PYTHONIOENCODING": "ascii"}
    for status, arguments in [(0, ["convert", tmp_path / "a.safetensors", weights]),
                              (0, ["weights", "verify", weights]),
                              (0, ["trace", cat, "-o", tmp_path / f"{name}.trace"]),
                              (0, ["compare", tmp_path / f"{name}.trace", tmp_path / f"{name}.trace", "--html",
                                   tmp_path / f"{name}.html"]),
                              (2, ["classify", cat, "--weights", tmp_path / f"{name}.none"]),
                              (2, ["classify", cat, "--weights", weights]), (2, ["eval", tmp_path / name]),
                              (2, ["classify", f"--{name}"]), (2, [name]), (2, ["classify", "--model", name, cat]),
                              (2, ["compare", tmp_path / f"{name}.none", cat]), (2, ["classify", "--sample", name]),
                              (2, ["weights", "fetch", name]), (2, ["export", "onnx", name])]:
        done = mmref(*arguments, environment=environment)
        assert done.returncode == status, (arguments, done.stderr)
        plain(done.stdout, environment), plain(done.stderr, environment)
    page = (tmp_path / f"{name}.html").read_bytes().decode("utf-8")
    assert all(c == "\n" or c.isprintable() for c in page) and printable(name) in page
    for arguments in (["convert", tmp_path / "a.safetensors", weights], ["weights", "verify", weights]):
        assert json.loads(mmref(*arguments, "--json", environment=environment).stdout.decode("utf-8"))


def test_errors_in_python(tmp_path):
    """Catches: the rule kept by the command line alone: a notebook shows messages, too."""
    with pytest.raises(PictureError) as caught:
        open_picture(str(tmp_path / "a\x1b\n.jpg"))
    assert str(caught.value).isprintable() and "a\\x1b\\n.jpg" in str(caught.value)
