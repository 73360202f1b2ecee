"""An exported graph beside the network it was made from, in the runtimes that are installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from mmref.arguments import check_integers, check_path
from mmref.errors import MissingBackend
from mmref.models.network import check_numpy_model
from mmref.nested import arrays_of

TOLERANCE = 1e-5  # of the largest logit
ROUNDING = 16     # times mmref's own float32 error that a runtime may have where that is more than TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """One runtime on one input. Errors are against mmref in float64: the largest, over the largest logit (of several
    outputs that which is worst).

    `own` is the error of mmref in float32. With trained weights it is below 1e-6; parameters that let rounding grow
    (untrained ones of the deeper variants: 1e-5) do so in every runtime, which says nothing about the graph.
    """

    runtime: str
    shape: tuple[int, ...]
    error: float
    own: float

    @property
    def passed(self) -> bool:
        return self.error <= max(TOLERANCE, ROUNDING * self.own)


def verify(model, path, shapes=None, reference=None, least: float = 1e-30) -> list[Comparison]:
    """Run the graph at `path` and `model` on the same random inputs, in every runtime that is installed.

    shapes: of the inputs (default: the training size, a batch of 3 of an odd size, a single pixel). All shapes go
    through one session, as a program that serves any picture would have it. A result of another shape or one that is
    not finite counts as error infinity.
    reference: called with the model, in float32 and in float64, gives a function of pictures whose results are the
    graph's (default: the model itself).
    least: what errors are taken over where all values are smaller; 1 for probabilities.

    The model must be float32. Raises MissingBackend where no runtime is installed.
    """
    check_numpy_model(model)
    path = check_path("path", path)
    if shapes is not None:
        shapes = [check_integers("shapes", shape, 4, 1) for shape in shapes]
    runtimes = [name for name in OPENERS if find_spec(name.split()[0])]
    if not runtimes:
        raise MissingBackend('verifying needs ONNX Runtime or OpenVINO: pip install "mmref[onnx]" or "mmref[openvino]"')
    side, channels = model.config.img_size, model.config.in_chans
    shapes = shapes or [(1, channels, side, side), (3, channels, side // 2 + 1, side // 3), (2, channels, 1, 1)]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, np.float32) for shape in shapes]
    reference = reference or (lambda model: model)
    exact, mine = reference(model.astype(np.float64)), reference(model)
    truths = [exact(x.astype(np.float64)) for x in inputs]
    own = [_error(mine(x), truth, least) for x, truth in zip(inputs, truths, strict=True)]
    found = []
    for name in runtimes:
        run = OPENERS[name](path)
        found += [Comparison(name, x.shape, _error(run(x), truth, least), error)
                  for x, truth, error in zip(inputs, truths, own, strict=True)]
    return found


def _error(actual, expected, least):
    if isinstance(expected, (list, tuple, dict)):
        actual, expected = arrays_of(actual), arrays_of(expected)
        if len(actual) != len(expected):
            return float("inf")
        return max(_error(*pair, least) for pair in zip(actual, expected, strict=True))
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), least))


def _only(results):
    """The one result of a graph, or the list of several."""
    return results[0] if len(results) == 1 else results


def open_onnxruntime(path):
    """A callable x -> logits, or the list of all outputs where there are several; ONNX Runtime on the CPU."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: _only(session.run(None, {"input": x}))


def open_openvino(path):
    """A callable x -> logits; OpenVINO on the CPU, held to float32 (it would take bfloat16 where the CPU has it)."""
    import openvino
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: _only(list(compiled(x).values()))


def open_openvino_fixed(path):
    """The same with the shapes fixed before compiling, for each input anew: another code path of OpenVINO's."""
    import openvino
    core = openvino.Core()

    def run(x):
        model = core.read_model(str(path))
        model.reshape(list(x.shape))
        return _only(list(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x).values()))
    return run


OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino, "openvino fixed": open_openvino_fixed}
