"""The predictor: right answers, bad pictures, and travelling to other processes."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from assertions import of_layer, rounding
from colour_model import COLOURS, ColourModel, paint
from scipy.special import softmax
from strategies import lively

import mmref
from mmref.data.picture import Transform, to_array
from mmref.data.samples import sample_picture
from mmref.errors import MmrefError, ValueProblem
from mmref.tasks import task as task_module
from mmref.tasks.predictor import Prediction, Predictor


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures of known colours; the fourth is no picture, the sixth is missing."""
    names = ["red", "blue", "white", "broken", "yellow", "missing", "green"]
    for i, name in enumerate(names):
        if name in COLOURS:
            paint(tmp_path / f"{i}.png", name)
    (tmp_path / "3.png").write_text("<html>")
    return [tmp_path / f"{i}.png" for i in range(7)], names


@pytest.fixture(scope="module")
def nano():
    """Untrained nano weights as a state dict."""
    return lively().state_dict()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("workers", [0, 2])
def test_answers_stay_with_their_pictures(pictures, batch_size, workers):
    """Catches: answers shifted by a bad picture, lost at a batch's edge or in another order (tried: dropping bad
    pictures before numbering the answers)."""
    paths, names = pictures
    predict = Predictor(ColourModel(), batch_size=batch_size, workers=workers, topk=2)
    answers = predict(paths)
    assert [a.picture for a in answers] == [str(p) for p in paths]
    for answer, name in zip(answers, names, strict=True):
        if name in COLOURS:
            assert answer.labels[0] == name and answer.error is None and len(answer.classes) == 2
        else:
            assert answer.classes == answer.labels == answer.probabilities == ()
            assert "3.png: expected JPEG" in answer.error or "5.png: No such file" in answer.error


def test_batch_with_only_bad_pictures_runs_nothing(pictures):
    """Catches: the network called with an empty batch."""
    model = ColourModel()
    answers = Predictor(model)([pictures[0][3], pictures[0][5]])
    assert all(a.error for a in answers) and model.runs == 0 and Predictor(model)([]) == []


def test_probabilities():
    """Catches: softmax over the listed classes only, overflow for large logits, another order for ties."""
    class Large(ColourModel):
        def __call__(self, x):
            return np.tile(np.float32([1e4, 0, 1e4, 9999, 0, 0]), (len(x), 1))

    answer, = Predictor(Large(), topk=3)([_bytes()])
    assert answer.classes == (0, 2, 3)
    np.testing.assert_allclose(answer.probabilities, np.array([1, 1, np.exp(-1)]) / (2 + np.exp(-1)), rtol=1e-6)
    everything, = Predictor(ColourModel(), topk=99)([_bytes()])
    assert len(everything.classes) == 6 and abs(sum(everything.probabilities) - 1) < 1e-12


def test_nan_is_an_error():
    """Catches: a picture counted as class 0 because NaN sorts somewhere."""
    class Broken(ColourModel):
        def __call__(self, x):
            return np.full((len(x), 6), np.nan, np.float32)

    answer, = Predictor(Broken())([_bytes()])
    assert "NaN" in answer.error and answer.classes == ()


def test_stream_is_lazy(tmp_path):
    """Catches: an endless source of pictures read to its end before the first answer."""
    path = paint(tmp_path / "a.png", "red")
    for workers in (0, 1):
        taken = []

        def endless(taken=taken):
            for i in itertools.count():
                taken.append(i)
                yield path

        stream = Predictor(ColourModel(), batch_size=2, workers=workers).stream(endless())
        assert next(stream).labels[0] == "red" and len(taken) <= 8
        stream.close()


def test_answers_do_not_depend_on_the_batch(nano, tmp_path):
    """Catches: samples that influence one another. Alone to the last bit with batch_size=1; in batches to what rounding
    does to a probability, since a matrix product of another height may sum in another order."""
    rng = np.random.default_rng(0)
    from PIL import Image
    images = [Image.fromarray(rng.integers(0, 256, (40, 33, 3), dtype=np.uint8)) for _ in range(5)]
    single = Predictor("mobilemamba_nano", nano, batch_size=1, img_size=32)
    alone = [single([image])[0] for image in images]
    assert single(images) == alone and single(images[::-1]) == alone[::-1]
    together = Predictor("mobilemamba_nano", nano, batch_size=5, img_size=32)(images)
    model = mmref.create_model("mobilemamba_nano", nano)
    x = np.stack([to_array(image, replace(model.transform, size=32)) for image in images])
    _, tolerance = rounding(of_layer(model, x, lambda model, x: softmax(model(x), axis=1)))
    for a, b in zip(alone, together, strict=True):
        assert a.classes == b.classes
        np.testing.assert_allclose(a.probabilities, b.probabilities, rtol=0, atol=tolerance)


def test_img_size_and_transform(nano):
    """Catches: img_size without effect, or a transform of one's own overruled by the model's."""
    predict = Predictor(ColourModel(), img_size=5)
    assert predict.load().transform == Transform(size=5, crop_ratio=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    assert Predictor(ColourModel(), transform=Transform(size=3)).load().transform == Transform(size=3)
    assert Predictor("mobilemamba_nano", nano, img_size=64).load().transform.size == 64


def test_loads_once_and_lazily(monkeypatch, tmp_path):
    """Catches: weights read at construction or unpickling, once a call, or once a thread."""
    from mmref.models import create as model_module
    calls = []

    def create_model(name, weights, **kwargs):
        calls.append((name, weights, kwargs["pretrained"]))
        return ColourModel()

    monkeypatch.setattr(model_module, "create_model", create_model)
    monkeypatch.setattr(task_module, "_loaded", type(task_module._loaded)())
    (tmp_path / "t2.safetensors").write_bytes(b"weights")
    predict = Predictor("mobilemamba_t2", tmp_path / "t2.safetensors")
    copy = pickle.loads(pickle.dumps(predict))
    assert calls == []
    threads = [threading.Thread(target=lambda: copy([_bytes()])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    predict([_bytes()])
    assert calls == [("mobilemamba_t2", str(tmp_path / "t2.safetensors"), False)]
    monkeypatch.setattr(model_module, "pretrained_weights", lambda name: tmp_path / "t2.safetensors")
    Predictor("mobilemamba_t2")([_bytes()])
    assert calls[1:] == [("mobilemamba_t2", None, True)]  # never random parameters


def test_different_models_are_not_mixed_up(nano):
    """Catches: the process's store of loaded models answering with somebody else's."""
    other = {name: array * np.float32(1.01) for name, array in nano.items()}
    image = _noise()
    a, b = (Predictor("mobilemamba_nano", w, img_size=32) for w in (nano, other))
    assert a([image]) != b([image]) and a([image]) == a([image])


def test_wrong_settings():
    """Catches: a setting without sense noticed only deep inside, or in another process."""
    for settings in ({"topk": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"workers": -1}, {"topk": True}):
        with pytest.raises(ValueProblem, match=next(iter(settings))):
            Predictor(**settings)
    with pytest.raises(ValueProblem, match="model must be one of"):
        Predictor("resnet50").load()
    with pytest.raises(ValueProblem, match="size must be an integer"):
        Predictor(ColourModel(), img_size=0)([_bytes()])


def test_other_weights_in_another_process_are_refused(tmp_path, monkeypatch):
    """Catches: an evaluation mixed from two versions of a weights file, or a process that goes on with weights it
    read from the file before it was replaced."""
    from mmref.models import create as model_module
    monkeypatch.setattr(model_module, "create_model", lambda *_, **__: ColourModel())
    monkeypatch.setattr(task_module, "_loaded", type(task_module._loaded)())
    path = tmp_path / "w.safetensors"
    with pytest.raises(MmrefError, match="w.safetensors: No such file"):
        Predictor("mobilemamba_nano", path).load()
    path.write_bytes(b"first")
    here = Predictor("mobilemamba_nano", path)
    first = here.load().model
    path.write_bytes(b"second")
    assert Predictor("mobilemamba_nano", path).load().model is not first
    there = pickle.loads(pickle.dumps(here))
    assert there.load().model is first
    task_module._loaded.clear()
    with pytest.raises(MmrefError, match="w.safetensors: sha256 must be"):
        there.load()


def test_process_pool(nano, pictures):
    """Catches: a predictor that cannot be pickled, or answers otherwise in a spawned process."""
    paths, names = pictures
    predict = Predictor("mobilemamba_nano", nano, batch_size=2, img_size=32)
    here = predict(paths)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = list(itertools.chain(*pool.map(predict, [paths[:4], paths[4:]])))
        colours = list(itertools.chain(*pool.map(Predictor(ColourModel()), [paths[:4], paths[4:]])))
    assert there == here and all(isinstance(answer, Prediction) for answer in there)
    assert [c.labels[0] for c in colours if not c.error] == [n for n in names if n in COLOURS]


def test_joblib(nano, pictures):
    """Catches: a predictor that joblib's loky processes cannot run."""
    joblib = pytest.importorskip("joblib")
    paths, _ = pictures
    predict = Predictor("mobilemamba_nano", nano, batch_size=2, img_size=32)
    there = joblib.Parallel(n_jobs=2)(joblib.delayed(predict)(part) for part in (paths[:4], paths[4:]))
    assert there[0] + there[1] == predict(paths)


def _noise():
    from PIL import Image
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (30, 30, 3), dtype=np.uint8))


def _bytes():
    import io
    buffer = io.BytesIO()
    _noise().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_answers_that_are_not_finite(backend):
    """Catches NaN ranked as a probability, and NumPy's warnings, with lines of our source, beside the error."""
    state = dict(mmref.create_model("mobilemamba_nano", pretrained=True).state_dict())
    state["head.l.weight"] = np.full_like(state["head.l.weight"], 3e38)
    predict = Predictor("mobilemamba_nano", state, backend=backend, transform=Transform(128))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (answer,) = predict([sample_picture("cat")])
    assert "the network answered NaN or infinity" in answer.error and not answer.labels
