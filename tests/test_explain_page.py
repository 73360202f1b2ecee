"""The page of `mmref explain`, opened and used in a real browser."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmref
from mmref.cli import main

pytest.importorskip("jinja2")

from browser import CHROMIUM, Browser

from mmref.data.picture import Transform
from mmref.data.samples import sample_picture
from mmref.explain.page import explain
from mmref.models.network import Network
from mmref.models.parameters import random_parameters
from mmref.models.variants import Variant
from mmref.nn.layer import Conv2d, ConvBN, ReLU, Sequential

CHECKS = (Path(__file__).parent / "page_checks.js").read_text("utf-8")
pytestmark = pytest.mark.skipif(CHROMIUM is None or os.name != "posix",
                                reason="needs Chromium (apt-get install chromium)")
HOSTILE = ("</script ></script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&`"
           "${1}\x1b[2J\n\u202e\udce9")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(CHROMIUM, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """The page of the cat, as the command writes it."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["explain", "--sample", "cat", "--cells", "8", "-o", str(path)]) == 0
    return path


@pytest.fixture
def clean(browser):
    """The browser; after the test it must have met no error, and no request but for pages themselves."""
    browser.errors.clear()
    browser.requests.clear()
    yield browser
    assert not browser.errors
    assert all(url == "about:blank" or url.startswith("data:") or url.split("#")[0].endswith("/page.html")
               for url in browser.requests)


def opened(browser, page, *arguments, **options):
    """The page in the browser."""
    browser.open(page, *arguments, **options)
    return browser


def checked(browser, call):
    """The value of a call of one of the functions of page_checks.js."""
    return browser.run(f"{CHECKS}\n{call}")


def test_every_layer_opens(clean, nano):
    """Catches a layer that the page cannot draw, a drawing without boxes, a picture that stays blank."""
    opened(clean, nano)
    seen = checked(clean, "everyLayer()")
    model = mmref.create_model("mobilemamba_nano", pretrained=True)
    assert {name for name, _ in model.walk()} - {row[0] for row in seen} == {
        f"{name}.{part}" for name, _ in model.walk() for part in ("wavelet_convs", "wavelet_scale")
        if name.endswith("global_op")}                                      # never called: their children are
    for name, text, canvases, lines, boxes in seen:
        assert (name or "mobilemamba_nano") in text and canvases >= 2 and lines >= 3 and boxes, name


def test_scans_come_out_equal(clean, nano):
    """Catches numbers that are not those of the run, or a step done in another order or precision than it was."""
    opened(clean, nano, "#scan=blocks2.3&inner=17&step=10")
    wrong = clean.run("window.mmref.data.scans.map(window.mmref.mismatches)")
    assert wrong == [0] * 5
    cells = clean.run("[...document.querySelectorAll('#scan-view td.ok')].map(e => e.textContent)")
    assert len(cells) == 3 and not clean.run("document.querySelectorAll('#scan-view td.bad').length")
    model = mmref.create_model("mobilemamba_nano", pretrained=True)
    from mmref.data.picture import to_array
    from mmref.nn.layer import recording
    records = {}
    with recording(lambda name, y, layer: records.setdefault(name, y)):
        model(to_array(sample_picture("cat"), model.transform)[None])
    y = records["blocks2.3.mixer.m.attn.global_op.global_atten:y"][0, 0, 17, 10]
    assert np.float32(cells[2].split()[0]) == y                             # nine digits tell float32 values apart
    # a changed number must not pass
    assert checked(clean, "wrongWithOneBit()") > 0
    assert clean.run("document.querySelectorAll('#scan-view .tight .stack').length") == 11    # directions of all orders


def test_tour_by_keyboard_alone(clean, nano):
    """Catches a stop that shows nothing, controls that a keyboard cannot reach, focus that gets lost."""
    opened(clean, nano)
    for _ in range(12):
        clean.key("Tab")
        if clean.run("document.activeElement.id") == "tour-start":
            break
    clean.key("Enter")
    titles = []
    for number in range(1, 11):
        assert clean.run("window.mmref.state.tour") == number
        titles.append(clean.run("document.getElementById('tour-title').textContent"))
        assert clean.run("document.querySelector('.lit').getBoundingClientRect().height") > 20
        assert clean.run("document.activeElement.id") == "tour-next"
        clean.key("Enter")
    assert len(set(titles)) == 10 and clean.run("document.getElementById('tour').hidden")


def test_keyboard_opens_layers_and_steps(clean, nano):
    """Catches a drawing or a scan for mice only."""
    opened(clean, nano)
    clean.run("document.querySelector('#drawing [data-open=blocks1]').focus()")
    clean.key("Enter")
    assert clean.run("window.mmref.state.layer") == "blocks1"
    clean.run("document.querySelector('#drawing [data-open]').focus()")
    clean.key(" ")
    assert clean.run("window.mmref.state.layer").startswith("blocks1.0.")
    clean.run("document.getElementById('scan-photo').focus()")
    for _ in range(3):
        clean.key("ArrowRight")
    assert clean.run("window.mmref.state.step") == 3
    clean.run("document.querySelector('#directions [data-choice=\"1\"]').focus()")
    clean.key("Enter")
    assert clean.run("window.mmref.state.direction") == 1
    assert clean.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    clean.run("document.querySelectorAll('#answer-body [data-class]')[1].focus()")
    clean.key("Enter")
    assert clean.run("window.mmref.state.class") == 1
    assert clean.run("document.activeElement.getAttribute('aria-pressed')") == "true"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200, 2500])
def test_every_width_in_light_and_dark(clean, nano, tmp_path, width, dark):
    """Catches a page wider than its window, grey text on grey, and what has no name for a screen reader."""
    opened(clean, nano, "#layer=blocks1.0.mixer.m.attn.global_op.global_atten&tour=3", width=width, height=800,
           dark=dark, mobile=width < 500)
    assert clean.run("document.documentElement.scrollWidth") <= width
    assert clean.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert checked(clean, "faintTexts()") == []
    assert checked(clean, "unnamed()") == []
    clean.screenshot(tmp_path / "page.png")
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("L"), float)
    assert picture.shape == (800, width) and picture.std() > 15 and (picture.mean() < 110) == dark


def small_model(**changes):
    model = random_parameters(Variant("small", 64, (48, 64, 80), **changes), 0, np.float32)
    model.transform = Transform(64)
    return model


def test_hostile_names_stay_text(clean, tmp_path):
    """Catches a picture's, a class's or a layer's name that becomes markup, ends the script, or stops the page."""
    model = small_model(num_classes=2)
    model.class_names = ("plain", HOSTILE)
    setattr(model.blocks1, HOSTILE.replace(".", ""), model.blocks1.children["0"])
    model.name_layers()
    page = tmp_path / "page.html"
    page.write_text(explain(model, sample_picture("cat"), HOSTILE, cells=2), encoding="utf-8")
    opened(clean, page)
    assert clean.run("document.title").startswith("mmref explain: small on </script >")
    assert clean.run("document.querySelectorAll('img[src=x]').length") == 0
    assert clean.run("document.getElementById('title').textContent").endswith("\\x1b[2J\\n\\u202e\\xe9")
    assert clean.run("document.querySelectorAll('script').length") == 2
    hostile = [name for name in clean.run("window.mmref.data.layers.map(l => l.name)") if "owned" in name]
    assert hostile and clean.run(f"(window.mmref.set({{layer: {json.dumps(hostile[0])}}}), "
                                 f"document.querySelector('#layer-body .big').textContent)").startswith(hostile[0])
    assert "\\x1b" in clean.run("document.getElementById('answer').textContent")


class Pixels(Network):
    """A network of one's own that gives a class for every pixel."""

    def __init__(self, config):
        super().__init__(config)
        self.stem = Sequential(ConvBN(3, 8, 3, 2), ReLU())
        self.head = Conv2d(8, config.num_classes, bias=True)
        self.name_layers()

    def forward(self, x):
        self.check_input(x)
        return self.head(self.stem(x))


@pytest.mark.parametrize("changes", [{"scan_order": "cross", "d_state": 2}, {"scan_order": ("windows 3", "columns")},
                                     {"wavelet": "db2", "wavelet_levels": 2}, {"num_classes": 0}, "folded", "maps"],
                         ids=str)
def test_pages_of_other_networks(clean, tmp_path, changes):
    """Catches a page that knows only the released structure: orders, several states, padded windows, other wavelets,
    folded networks, no classes, a map of labels in place of logits."""
    model = small_model(**(changes if isinstance(changes, dict) else {}))
    if changes == "folded":
        model = model.fold_batchnorm()
    if changes == "maps":
        model = Pixels(model.config).initialise()
        model.transform = Transform(64)
    page = tmp_path / "page.html"
    page.write_text(explain(model, sample_picture("camera").convert("RGB"), "camera", cells=2), encoding="utf-8")
    opened(clean, page, "#tour=2")
    assert clean.run("window.mmref.data.scans.map(window.mmref.mismatches).every(n => n === 0)")
    kind = clean.run("window.mmref.data.answer.kind")
    assert kind == ("maps" if changes == "maps" else "features" if "num_classes" in changes else "classes")
    assert clean.run("document.querySelectorAll('#answer-body canvas').length") >= 1
    clean.run("(() => { for (const l of window.mmref.data.layers) window.mmref.set({layer: l.name}); "
              "window.mmref.stops.forEach((_, i) => window.mmref.set({tour: i + 1})); })()")


def test_page_of_t2(clean, tmp_path):
    """Catches a page that shows only small networks: maps whose channels are not all there, a thousand classes."""
    page = tmp_path / "page.html"
    page.write_text(explain(mmref.create_model("mobilemamba_t2"), sample_picture("cat"), "cat", cells=2), "utf-8")
    assert 1e6 < page.stat().st_size < 12e6
    opened(clean, page)
    assert clean.run("window.mmref.data.answer.of") == 1000
    assert clean.run("window.mmref.data.scans.map(window.mmref.mismatches).every(n => n === 0)")
    assert sum(row[2] >= 1 for row in checked(clean, "everyLayer()")) > 200


def test_page_of_a_segmenter(clean, tmp_path):
    """Catches a page that cannot show a network whose backbone is called in pieces, or no map of labels."""
    page = tmp_path / "page.html"
    page.write_text(explain(mmref.create_model("mobilemamba_nano_fpn"), sample_picture("cat"), "cat", cells=2), "utf-8")
    assert page.stat().st_size < 12e6
    opened(clean, page)
    assert clean.run("window.mmref.data.answer.kind") == "maps"
    assert sum(row[2] >= 1 for row in checked(clean, "everyLayer()")) > 300
    assert clean.run("document.querySelectorAll('#answer-body canvas').length") >= 2
    height, width = clean.run("window.mmref.data.model.input")[1:]          # the picture whole, not a square of it
    photograph = clean.run("window.mmref.data.picture.size")
    assert width > height and abs(photograph[1] / photograph[0] - width / height) < 0.01
    assert clean.run("(e => e.clientWidth / e.clientHeight)(document.getElementById('scan-photo'))") == pytest.approx(
        width / height, rel=0.02)


def test_questions_that_readers_ask(clean, nano):
    """Catches a page that no longer answers what docs/explain.md says it answers."""
    opened(clean, nano, "#scan=blocks2.3&inner=17&layer=blocks2.3.mixer.m.attn")
    text = {part: clean.run(f"document.getElementById('{part}').textContent") for part in
            ("facts", "drawing", "scan", "bands", "answer")}
    assert "128 × 128 → 64 × 64 in patch_embed.0.c" in text["facts"]
    assert "4 × 4 → 2 × 2 in blocks3.1.conv2.c" in text["facts"]
    assert "channels 121 to 127 of 128 in blocks2.3.mixer.m.attn" in text["facts"]
    assert "channels 121 to 127" in text["drawing"]
    assert re.search(r"How far channel 17 remembers.*half is forgotten after [\d.]+ pixels", text["scan"])
    assert "corners, dots and checks" in text["bands"]
    assert re.search(r"Why “\w+” is second.*a difference of [\d.]+", text["answer"])
