"""Pictures for readers: drawn for any model, and what they draw is true."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import rivals
from PIL import Image

import mmref
from mmref.cli import main

pytest.importorskip("matplotlib")

from mmref.models.parameters import random_parameters
from mmref.models.variants import Variant
from mmref.show import pictures as show
from mmref.show import scans
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


@pytest.mark.parametrize("config, layer", [(rivals.localvim(), "layers.0"), (rivals.efficientvmamba(), "layers.1")])
def test_scans_of_other_families(config, layer):
    """Catches drawings of scans that take MobileMamba's layers for granted: several states, a layer's directions in
    scans of their own, padding, pixels that a direction never visits."""
    model = rivals.alive(config)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8))
    model.transform = show.Transform(48)
    for what in ("scan", "delta"):
        assert len(show.draw(what, model, picture, layer, size=75).axes) >= 8
    for what in ("wavelet", "erf"):
        with pytest.raises(mmref.MmrefError, match="small has none"):
            show.draw(what, model, picture, size=75)
    with pytest.raises(mmref.MmrefError, match="which holds [23] of them"):
        show.draw("scan", model, picture, "layers", size=75)


def test_a_drawn_way_is_the_scans():
    """Catches a way drawn otherwise than the scan goes: padding elsewhere, rows for columns, a shorter path."""
    order = ("columns", "windows 3 backwards", "windows 2")
    for one in scans.of_order(order, 4, 5):
        columns, rows = scans.places(one)
        inside = (columns < 5) & (rows < 4)
        path = one.path[:len(columns)]
        assert np.array_equal(inside, path != -1) and (one.path[len(columns):] == -1).all()
        assert np.array_equal((rows * 5 + columns)[inside], path[inside])
    rows = scans.places(scans.of_order(order, 4, 5)[1])[1]
    assert len(rows) == 36 and rows[0] == 5


def test_what_is_remembered_is_what_an_impulse_leaves():
    """Catches decays counted from the wrong step, states mixed up, padding that does not fade: one unit put in at each
    pixel, and the share that is still in the states when the scan reaches the middle."""
    rng = np.random.default_rng(0)
    one, = scans.of_order(("windows 3",), 4, 5)
    one.delta, one.A = rng.uniform(0, 0.3, (7, len(one.path))), -rng.uniform(0.5, 2, (7, 2))
    memory, (row, column) = scans.remembered(one)
    assert (row, column) == (2, 2)
    middle = one.path.tolist().index(row * 5 + column)
    for pixel in range(20):
        step = one.path.tolist().index(pixel)
        left = np.ones((7, 2))
        for later in range(step + 1, middle + 1):
            left *= np.exp(one.delta[:, later, None] * one.A)
        expected = left.mean() if step <= middle else np.nan
        np.testing.assert_allclose(memory[divmod(pixel, 5)], expected, rtol=1e-12)


@pytest.mark.parametrize("arguments, said", [
    (["--order", "atrous"], "order atrous"),
    (["--order", "rows", "windows 3 backwards", "--size", "7"], "order rows, windows 3 backwards"),
    (["--model", "localvim_t"], "scan orders of localvim_t, layers.10.mixer"),
    (["--model", "efficientvmamba_t", "--layer", "layers.0.blocks.1", "--size", "100"], "layers.0.blocks.1.op")])
def test_orders_without_a_picture(tmp_path, capsys, arguments, said):
    """Catches orders that cannot be drawn without trained weights, or by name."""
    out = tmp_path / "orders.svg"
    assert main(["show", "--what", "scan", *arguments, "-o", str(out)]) == 0
    assert said in capsys.readouterr().out and b"<svg" in out.read_bytes()


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
    (["--what", "scan", "-o", "/nowhere/x.png"], "/nowhere/x.png"), (["--what", "scan", "/nowhere.jpg"], "not both"),
    (["--what", "scan", "--layer", "blocks2"], "which holds 2 of them"),
    (["--what", "scan", "--order", "atrous"], "--order draws an order by its name")])
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
