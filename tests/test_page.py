"""The page of `mmref compare --html`, opened in a real browser."""

from __future__ import annotations

import html
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

import mmref
from mmref.validate.compare import compare
from mmref.validate.page import page, write_page
from mmref.validate.trace import Trace, trace_model

pytest.importorskip("torch")

import mutation_bench as bench
from browser import CHROMIUM
from mutations import GLOBAL

HOSTILE = "</td><script>document.title='owned';document.body.innerHTML=''</script><img src=x onerror=alert(1)>\"'&"
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def compared():
    """(result, reference, candidate) of a run whose wavelet branch is half as large as it should be."""
    model = mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)
    reference = trace_model(model, bench.random_input(0, (2, 3, 163, 245)))
    records = {name: array.astype(np.float32) for name, array in reference.records.items()}
    names = list(records)
    for name in names[names.index(f"{GLOBAL}.wavelet_scale.0"):]:
        records[name] = records[name] * np.float32(0.5)
    candidate = Trace(records)
    return compare(reference, candidate, model=model), reference, candidate


def browser(tmp_path, *arguments):
    """Output of headless Chromium with an empty profile; it can reach no network."""
    flags = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --hide-scrollbars").split()
    flags.append("--host-resolver-rules=MAP * ~NOTFOUND")
    done = subprocess.run([CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", *map(str, arguments)],
                          capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@in_browser
def test_what_a_browser_shows(compared, tmp_path):
    """Catches a page that is only well-formed to us: no verdict, rows lost, pictures that do not decode."""
    result, reference, candidate = compared
    text = page(result, reference, candidate, "reference.safetensors", "candidate.npz")
    # What only a browser knows: how many pictures it decoded, and which row it paints as the first.
    probe = """<script>addEventListener('load', () => {
        const first = document.querySelector('tr.first').cells[0], images = [...document.images];
        document.body.dataset.seen = [images.length, images.filter(i => i.complete && i.naturalWidth > 0).length,
            document.querySelectorAll('tbody tr').length, first.innerText, getComputedStyle(first).backgroundColor,
            performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length].join('|')})
        </script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", probe))
    dom = browser(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    images, decoded, rows, first, colour, loaded = re.search('data-seen="(.*?)"', dom)[1].split("|")
    assert int(images) == int(decoded) >= 9 and int(rows) == len(result.rows) and loaded == "0"
    assert first == result.first == f"{GLOBAL}.wavelet_scale.0" and colour == "rgb(255, 213, 213)"
    assert f"Differs first at {result.first}" in dom


@in_browser
def test_a_screenshot_is_a_page(compared, tmp_path):
    """Catches a page that is blank, or so wide that the verdict leaves the window."""
    result, reference, candidate = compared
    write_page(tmp_path / "page.html", result, reference, candidate)
    shot = tmp_path / "page.png"
    browser(tmp_path, f"--screenshot={shot}", "--window-size=1200,1000", (tmp_path / "page.html").as_uri())
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert picture.shape == (1000, 1200, 3) and picture.std() > 20
    red = (picture[:140, :, 0] - picture[:140, :, 1] > 80).sum()  # the heading of a difference
    assert red > 200


@in_browser
def test_hostile_names_stay_text(compared, tmp_path):
    """Catches a name from a candidate's file, or a file's own name, that runs as a script."""
    reference = Trace({"input": np.zeros((1, 3, 4, 4)), HOSTILE: np.ones((1, 2, 4, 4))}, {"noise": {HOSTILE: 1e-7}})
    candidate = Trace({"input": np.zeros((1, 3, 4, 4)), HOSTILE: np.zeros((1, 2, 4, 4))})
    result = compare(reference, candidate)
    result.note, result.blind_spots = HOSTILE, [HOSTILE]
    write_page(tmp_path / "page.html", result, reference, candidate, HOSTILE, HOSTILE)
    dom = browser(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    title = re.search("<title>(.*?)</title>", dom, re.S)[1]
    assert html.unescape(title) == f"mmref compare: Differs first at {HOSTILE}"
    assert "<script" not in dom and "<img src=\"x\"" not in dom and "Records in network order" in dom


def test_the_page_stands_alone(compared):
    """Catches a page that loads something, or that grows with the traces instead of with the number of pictures."""
    text = page(*compared)
    assert not re.search(r"""(?:src|href)\s*=\s*(?!"data:)|url\(|@import|<link|<script""", text)
    assert len(text) < 1_000_000


def test_pictures_of_any_shape(compared):
    """Catches a map of one pixel, a constant one, infinities: all things that wrong ports produce."""
    ours = {"a": np.zeros((1, 2, 1, 1)), "b": np.ones((2, 3, 5, 1)), "c": np.ones((1, 1, 1, 700))}
    reference = Trace({"input": np.zeros((1, 3, 4, 4)), **ours}, {"noise": dict.fromkeys(ours, 1e-7)})
    theirs = {"a": np.full((1, 2, 1, 1), 1e38), "b": np.full((2, 5, 1, 3), -1.0), "c": np.full((1, 1, 1, 700), np.inf)}
    candidate = Trace({"input": np.zeros((1, 3, 4, 4)), **theirs})
    text = page(compare(reference, candidate), reference, candidate)
    assert text.count("<img") == 6 and "NOT FINITE" in text
