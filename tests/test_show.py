"""Pictures for readers: drawn for any model, and what they draw is true."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

import mmref
from mmref.cli import main

pytest.importorskip("matplotlib")

from mmref.models.parameters import random_parameters
from mmref.models.variants import Variant
from mmref.show import pictures as show
from mmref.show.field import STEP


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)


@pytest.mark.parametrize("what", show.WHAT)
def test_command_draws(tmp_path, what, capsys):
    """Catches a picture that is empty, of one colour, or not written where it was asked for."""
    out = tmp_path / "out.png"
    arguments = ["show", "--sample", "camera", "--what", what, "--size", "150", "--cells", "3", "-o", str(out)]
    assert main(arguments) == 0
    picture = np.asarray(Image.open(out).convert("L"))
    assert min(picture.shape) > 300 and picture.std() > 20
    assert capsys.readouterr().out.startswith(str(out))


@pytest.mark.parametrize("changes", [{"scan_order": "cross", "d_state": 2}, {"scan_order": "unidirectional"},
                                     {"wavelet": "db2", "wavelet_levels": 2}, {"num_classes": 0}, "folded"])
def test_other_networks_are_drawn(changes):
    """Catches a drawing that knows only the released structure."""
    changed = {} if changes == "folded" else changes
    other = random_parameters(Variant("small", 64, (48, 64, 80), **changed), 0, np.float32)
    other.transform = show.Transform(64)
    other = other.fold_batchnorm() if changes == "folded" else other
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    for what in show.WHAT:
        assert len(show.draw(what, other, picture, size=97, cells=2).axes) >= 3


def test_scan_orders_visit_every_pixel_once():
    """Catches a path drawn over pixels that the scan does not visit so."""
    for order, first, last in (("bidirectional", [0, 11], [11, 0]), ("cross", [0, 0, 11, 11], [11, 11, 0, 0])):
        ways = show.visited(order, 3, 4)
        assert [sorted(way) for way in ways.tolist()] == [list(range(12))] * len(ways)
        assert ways[:, 0].tolist() == first and ways[:, -1].tolist() == last
    assert show.visited("cross", 3, 4)[1, :4].tolist() == [0, 4, 8, 1]


def test_gradient_is_the_gradient(model):
    """Catches cells in the wrong place, a step too coarse, a centre that is not the map's: PyTorch's gradients agree.

    With the signs that were drawn, the estimate is the norm of the Jacobian times the signs."""
    torch = pytest.importorskip("torch")
    from mmref.bench import torch_network
    net = torch_network.create("nano", 10).double().eval()
    net.load_state_dict({name: torch.tensor(array) for name, array in model.state_dict().items()}, strict=False)
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 56))
    found, _ = show.gradient_norms(model, x, "blocks1", 4)
    given = torch.tensor(x, requires_grad=True)
    centre = net.blocks1(net.patch_embed(given))[0]
    centre = centre[:, centre.shape[1] // 2, centre.shape[2] // 2]
    jacobian = np.stack([torch.autograd.grad(value, given, retain_graph=True)[0][0].numpy() for value in centre])
    signs = np.sign(np.random.default_rng(0).choice((-STEP, STEP), x.shape[1:]))
    cells = (jacobian * signs).reshape(len(jacobian), 3, 4, 10, 4, 14).sum((1, 3, 5))
    np.testing.assert_allclose(found, np.sqrt((cells ** 2).sum(0)), rtol=0.02)


@pytest.mark.parametrize("arguments, said", [
    (["--what", "wavelet", "--layer", "blocks9"], "--layer must be (in) one of blocks1.0"),
    (["--what", "erf", "--layer", "blocks1.0"], "--layer must be one of patch_embed"),
    (["--what", "features", "--layer", "head"], "--layer must name a map"),
    (["--what", "erf", "--cells", "0"], "--cells must be"), (["--what", "scan", "--size", "0"], "--size must be"),
    (["--what", "scan", "-o", "x.bmp"], "-o must end in"),
    (["--what", "scan", "-o", "/nowhere/x.png"], "/nowhere/x.png"), (["--what", "scan", "/nowhere.jpg"], "not both")])
def test_bad_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    """Catches a traceback."""
    monkeypatch.chdir(tmp_path)
    assert main(["show", "--sample", "cat", "-o", "x.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmref: error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    """Catches an ImportError's traceback, and a plotting library that every user would have to have."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["show", "--sample", "cat", "--what", "scan", "-o", str(tmp_path / "x.png")]) == 2
    assert 'pip install "mmref[viz]"' in capsys.readouterr().err
