"""The published detectors, from input to boxes and masks, against figures of the published code."""

from __future__ import annotations

import zlib

import detector_files
import numpy as np
import pytest
from PIL import Image

import mmref
import mmref.engine
from mmref.cli import main
from mmref.data.frame import Frame, filled_up, to_frame
from mmref.data.resize import resize
from mmref.engine import CompiledModel
from mmref.errors import ParameterMismatch, ShapeError, ValueProblem
from mmref.models.parameters import expected_shapes
from mmref.models.registry import resolve
from mmref.models.summary import summarize
from mmref.nn.layer import recording
from mmref.validate.check import check

DTYPES = (np.float64, np.float32)


def taps_of(model, run):
    """{name@call: output} of everything that `run` makes the layers compute."""
    taps, calls = {}, {}

    def record(name, value, layer):
        calls[name] = calls.get(name, -1) + 1
        taps[f"{name}@{calls[name]}"] = value
    with recording(record):
        run(model)
    return taps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", detector_files.FILES)
def test_every_layer_and_every_box(shared_golden, name, dtype):
    """Catches anything that differs from the published detector, and names the layer."""
    figures, model = detector_files.figures(shared_golden, name), detector_files.model(shared_golden, name, dtype)
    x, which, found = detector_files.inputs(shared_golden, name, dtype), DTYPES.index(dtype), []
    taps = taps_of(model, lambda model: found.extend(model.detect(x, figures["img_shape"], figures["ori_shape"])))
    allowed = detector_files.RAW[which]
    for tap in map(str, figures["taps"]):
        if tap not in taps or tap.startswith("roi_head."):  # upstream runs all pictures' regions at once
            assert "roi" in tap or tap == "backbone.blocks3@0" and "ssdlite" in name
            continue
        assert taps[tap].shape == tuple(figures[f"tap/{tap}/shape"]) and taps[tap].dtype == dtype
        error = detector_files.sample_error(taps[tap], figures[f"tap/{tap}/samples"], figures[f"tap/{tap}/stats"][2])
        assert error <= allowed, tap
    assert detector_files.raw_error(figures, model(x)) <= allowed
    assert all(one.boxes.dtype == one.scores.dtype == dtype and one.labels.dtype == np.int64 for one in found)
    detector_files.check_detections(figures, found, which)


@pytest.mark.parametrize("name", detector_files.FILES)
def test_compiled(shared_golden, name):
    """Catches an engine or a kernel that answers otherwise than the text."""
    figures, model = detector_files.figures(shared_golden, name), detector_files.model(shared_golden, name,
                                                                                       backend="numba")
    x = detector_files.inputs(shared_golden, name)
    assert detector_files.raw_error(figures, model(x)) <= 1e-5
    detector_files.check_detections(figures, model.detect(x, figures["img_shape"], figures["ori_shape"]), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", detector_files.PICTURES)
def test_from_a_picture(shared_golden, name, dtype):
    """Catches a picture that is scaled, normalised or filled up otherwise, and boxes scaled back wrongly."""
    figures, model = detector_files.figures(shared_golden, name), detector_files.model(shared_golden, name, dtype)
    size = tuple(map(int, figures["picture_shape"]))
    picture = detector_files.parameters(shared_golden).synthetic_picture(int(figures["seed"]), *size)
    x, scaled = to_frame(Image.fromarray(picture), model.transform)
    assert scaled == tuple(figures["resized_shape"])
    resized = resize(picture, scaled)
    assert zlib.crc32(resized.tobytes()) == figures["resized_crc32"]
    x = filled_up([x], model.transform.multiple)
    assert x.shape == tuple(figures["input_shape"]) and x.dtype == np.float32
    found = model.detect(x.astype(dtype), [scaled], [size])
    detector_files.check_detections(figures, found, DTYPES.index(dtype), rounded=True)


def test_sizes_of_pictures(shared_golden):
    """Catches a side rounded to the nearest even number, or to the other side's favour."""
    parts = np.load(shared_golden / "det_parts.npz")
    for (width, height), wanted in zip(parts["rescale/in_wh"].tolist(), parts["rescale/out_wh"].tolist(), strict=True):
        assert Frame().size(height, width) == tuple(wanted[::-1])


def order_of(boxes, exact, pixels):
    """Positions of boxes in the order of the float64 ones: two of nearly one score change places with rounding."""
    distances = np.abs(boxes[:, None].astype(np.float64) - exact).max(-1)
    order = distances.argmin(0)
    assert len(boxes) == len(exact) == len(set(order.tolist())) and distances.min(0).max(initial=0) <= pixels
    return order


@pytest.mark.parametrize("dtype", DTYPES)
def test_regions_and_heads(shared_golden, dtype):
    """Catches another choice of regions, and heads that see another picture's."""
    name, which = "mask_rcnn_2x128x128", DTYPES.index(dtype)
    figures, model = detector_files.figures(shared_golden, name), detector_files.model(shared_golden, name, dtype)
    exact = detector_files.model(shared_golden, name, np.float64)
    raw = model(detector_files.inputs(shared_golden, name, dtype))
    exact_raw = exact(detector_files.inputs(shared_golden, name, np.float64)) if which else raw
    cls, reg, masks = [], [], []
    for b, size in enumerate(figures["img_shape"]):
        levels, exact_levels = ([level[b:b + 1] for level in some["neck"]] for some in (raw, exact_raw))
        boxes, scores = model.regions(raw, b, size, "numpy")
        assert len(boxes) == figures["proposals/count"][b]
        pixels = (1e-7, 1e-3)[which]
        exact_boxes = exact.regions(exact_raw, b, size, "numpy")[0]
        order = order_of(boxes, exact_boxes, pixels)
        boxes, scores = boxes[order], scores[order]
        np.testing.assert_allclose(boxes[:100], figures[f"proposals/{b}/boxes"], rtol=0, atol=pixels)
        np.testing.assert_allclose(scores[:100], figures[f"proposals/{b}/scores"], rtol=0, atol=1e-5)
        answers = model.box_head(model.cut(levels, boxes, 7, "numpy"))
        cls.append(answers["cls"])
        reg.append(answers["reg"])
        objects = model.objects(boxes, answers, size, "numpy")[0]
        exact_answers = exact.box_head(exact.cut(exact_levels, exact_boxes, 7, "numpy"))
        objects = objects[order_of(objects, exact.objects(exact_boxes, exact_answers, size, "numpy")[0], pixels)]
        masks.append(model.mask_head(model.cut(levels, objects, 14, "numpy")))
    for key, parts in (("roi/cls", cls), ("roi/reg", reg), ("mask/logits", masks)):
        whole = np.concatenate(parts)
        assert whole.shape == tuple(figures[f"{key}/shape"])
        error = detector_files.sample_error(whole, figures[f"{key}/samples"], figures[f"{key}/stats"][2])
        # what a head sees depends on where its region lies, to the last digits: ten times upstream's own float32 error
        assert error <= (10 * figures["upstream_float32_error"] if which else detector_files.RAW[0]), key


@pytest.mark.parametrize("network", ["mask_rcnn", "retinanet", "ssdlite"])
def test_parameter_names_and_shapes(shared_golden, network):
    """Catches a parameter under another name or shape than the published checkpoints have, stage 3 of the SSDLites
    among them, which nothing computes."""
    published = {name: tuple(shape) for name, shape in detector_files.shapes(shared_golden, network).items()
                 if not name.endswith("num_batches_tracked")}
    assert expected_shapes(resolve(f"mobilemamba_b1_{network}")[0]) == published


LEARNED = {"mask_rcnn": 37_902_761, "retinanet": 27_002_029, "ssdlite": 17_968_621}


@pytest.mark.parametrize("network", LEARNED)
def test_learned_parameter_counts(network):
    """Catches a layer of another width, where the published figures are not at hand."""
    assert resolve(f"mobilemamba_b1_{network}")[0].build().parameter_count() == LEARNED[network]


@pytest.mark.parametrize("network", ["ssdlite", "retinanet"])
def test_summary(network):
    """Catches a table without the network where it gives several maps, and a head that is counted on one level only."""
    from mmref.graph.work import work
    model = mmref.create_model(f"mobilemamba_b1_{network}")
    rows = {row.name: row for row in summarize(model, 64)}
    assert rows[""].parameters == LEARNED[network] and rows[""].macs == work(model, 64).macs
    assert rows["bbox_head"].shape == () and rows["bbox_head"].macs < rows[""].macs


@pytest.mark.parametrize("network", ["ssdlite", "retinanet", "mask_rcnn"])
def test_folding(shared_golden, network):
    """Catches a norm with another epsilon folded as if it had the usual one, or none."""
    name = next(file for file in detector_files.FILES if file.startswith(f"{network}_2"))
    model, x = detector_files.model(shared_golden, name, np.float64), detector_files.inputs(shared_golden, name, float)
    folded, figures = model.fold_batchnorm(), detector_files.figures(shared_golden, name)
    assert folded.folded
    assert detector_files.raw_error(figures, folded(x)) <= 1e-10
    again = mmref.create_model(model.config.name, folded.state_dict(), dtype=np.float64)
    assert detector_files.raw_error(figures, again(x)) <= 1e-10


@pytest.mark.parametrize("name", ["mobilemamba_b1_ssdlite", "mobilemamba_b1_retinanet", "mobilemamba_b1_mask_rcnn"])
def test_degenerate_input(name):
    """Catches a crash where there is a single pixel or no picture, sizes that are not the input's, and NaN."""
    model = mmref.create_model(name, seed=1)
    found = model.detect(np.zeros((2, 3, 1, 1), np.float32), original_sizes=[(5, 3), (1, 1)])
    for one, size in zip(found, ((5, 3), (1, 1)), strict=True):
        assert one.boxes.shape == (len(one), 4) and one.labels.shape == (len(one),)
        assert one.masks is None or one.masks.shape == (len(one), *size)
    assert model.detect(np.zeros((0, 3, 40, 40), np.float32)) == []
    x = np.zeros((1, 3, 40, 40), np.float32)
    for wrong in ([(41, 40)], [(40, 40)] * 2, [(0, 4)], 40, [40]):
        with pytest.raises(ValueProblem, match="image_sizes"):
            model.detect(x, wrong)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueProblem, match="finite"):
        model.detect(x)
    with pytest.raises(ShapeError):
        model.detect(np.zeros((1, 4, 8, 8), np.float32))


def test_traced_and_compared(tmp_path, capsys):
    """Catches a command for validators that ends in a traceback where a network gives several maps, and a difference in
    one of them that nobody reports."""
    from safetensors.numpy import save_file
    state = mmref.create_model("mobilemamba_nano_ssdlite", seed=1).state_dict()
    name = "bbox_head.reg_convs.1.1.bias"
    Image.new("RGB", (40, 30), (200, 90, 10)).save(tmp_path / "a.png")
    traces = []
    for i, bias in enumerate((state[name], state[name] + 1)):
        save_file({key: np.ascontiguousarray(value) for key, value in (state | {name: bias}).items()},
                  tmp_path / f"{i}.safetensors")
        traces.append(str(tmp_path / f"trace{i}.safetensors"))
        assert main(["trace", str(tmp_path / "a.png"), "--model", "mobilemamba_nano_ssdlite", "--weights",
                     str(tmp_path / f"{i}.safetensors"), "-o", traces[-1]]) == 0
    assert main(["compare", traces[0], traces[0]]) == 0
    capsys.readouterr()
    assert main(["compare", *traces, "--weights", str(tmp_path / "0.safetensors"), "--all"]) == 1
    text = capsys.readouterr().out
    assert "DIFFERS first at bbox_head.reg_convs.1.1" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("output.")}
    assert len(rows) == 12 and [place for place, row in rows.items() if "DIFFERS" in row] == ["output.reg.1"]
    model = mmref.create_model("mobilemamba_nano_ssdlite")
    with pytest.raises(ValueProblem, match="gives several maps"):
        check(model, model)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_equal_scores_and_boxes_outside(backend):
    """Catches an order that a sort made up where thousands of scores are equal, and boxes that lie outside of the
    picture among the answers."""
    model = mmref.create_model("mobilemamba_b1_retinanet")
    head = model.bbox_head
    for layer in (head.retina_cls, head.retina_reg):
        layer.weight, layer.bias = np.zeros_like(layer.weight), np.zeros_like(layer.bias)
    x = np.zeros((1, 3, 96, 64), np.float32)

    def found():
        ready = model if backend == "numpy" else mmref.engine.CompiledModel(model)
        return ready.detect(x, [(80, 60)])[0]
    equal = found()
    assert len(equal) == 100 and (equal.scores == 0.5).all()
    np.testing.assert_array_equal(equal.labels[:80], np.arange(80))         # the first anchor shows every class
    assert (equal.boxes[:80] == equal.boxes[0]).all() and (equal.boxes[80:] == equal.boxes[80]).all()
    head.retina_reg.bias = np.tile(np.float32([1000, 0, 0, 0]), 9)
    assert found().boxes.shape == (0, 4)


def test_nothing_found(shared_golden):
    """Catches an answer of another shape where no score is above the threshold, heads included."""
    for name in ("ssdlite_1x320x320", "mask_rcnn_2x128x128"):
        for backend in ("numpy", "numba"):
            model = detector_files.model(shared_golden, name, backend=backend)
            source = getattr(model, "_model", model)
            head = "roi_head.bbox_head.fc_cls.bias" if "mask" in name else None
            for key, layer, attribute in source.named_parameters():
                if key == head or not head and key.startswith("bbox_head.cls_convs") and key.endswith(".1.bias"):
                    value = getattr(layer, attribute).copy()
                    value[80::81] += 50            # background everywhere
                    setattr(layer, attribute, value)
            (found,) = model.detect(np.zeros((1, 3, 64, 50), np.float32), original_sizes=[(30, 20)])
            assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
            assert found.masks is None or found.masks.shape == (0, 30, 20)


def test_other_weights_are_named(shared_golden):
    """Catches a detector's checkpoint taken for another network's, or refused without saying whose it is."""
    state = detector_files.model(shared_golden, "retinanet_2x128x128").state_dict()
    with pytest.raises(ParameterMismatch, match="fit mobilemamba_b1_retinanet"):
        mmref.create_model("mobilemamba_b1_ssdlite", state)
    with pytest.raises(ParameterMismatch, match="mobilemamba_b1_retinanet"):
        mmref.create_model("mobilemamba_b1", state)
    with pytest.raises(ParameterMismatch, match="num_classes must be 80"):
        mmref.create_model("mobilemamba_b1_retinanet", state, num_classes=7)
    assert mmref.create_model("mobilemamba_b1_retinanet", num_classes=3)(np.zeros((1, 3, 9, 9), np.float32))["cls"][
        0].shape[1] == 27


@pytest.mark.parametrize("name", ["mobilemamba_b1_ssdlite", "mobilemamba_b1_mask_rcnn"])
def test_backbone_maps(name):
    """Catches `forward_features` that a detector does not have, and a backend that gives other maps."""
    model = mmref.create_model(name)
    x = np.random.default_rng(0).standard_normal((2, 3, 70, 64)).astype(np.float32)
    maps, ours = model.forward_features(x), CompiledModel(model).forward_features(x)
    assert [y.shape[2:] for y in maps] == [(5, 4), (3, 2), (2, 1)]
    for ours_, y in zip(ours, maps, strict=True):
        assert ours_.dtype == np.float32
        np.testing.assert_allclose(ours_, y, atol=1e-4 * np.abs(y).max(), rtol=0)
