"""What a candidate may compute in and still be a faithful copy: the reference's records, and how far they may be off.

A candidate is held to the sharpest precision that its values show:

    float64          where float32 cannot hold them: float64's noise, which is float32's, 2^-29 as large
    float32
    float16 weights  (as in HALVED) compared with our own run on weights rounded the same way, which makes it as sharp a
                     test as float32's; that needs the reference's model. Where folding was done in other steps, single
                     weights round the other way: FLIPS. The same for bfloat16
    float16          weights and activations, only where float16 can hold every value: the error of our own such run;
                     the same for bfloat16
    ... products     convolutions and products in TF32, bfloat16 or float16 and the rest in float32, as "autocast" and
                     tensor cores compute: only where the errors of nearly all products are as large as that makes them
"""

from __future__ import annotations

import numpy as np

from mmref.errors import MmrefError, ValueProblem
from mmref.validate.layouts import arranged
from mmref.validate.roundings import bfloat16, float16, tf32
from mmref.validate.trace import half_noise, largest, rms, rounding_noise, run_recorded

_SMALLER = 2.0 ** -29  # float64's rounding beside float32's
# Ways to store weights in half the bits: (batch norms folded before, A stored instead of A_logs, as graphs do, how).
HALVED = {"float16 weights": (False, False, float16), "float16 folded weights": (True, False, float16),
          "float16 folded weights and A": (True, True, float16), "bfloat16 weights": (False, False, bfloat16),
          "bfloat16 folded weights": (True, False, bfloat16)}
# Folding in float32 moves a weight across a rounding boundary of float16 once in some thousand, a step of 2^-11 each:
# the share of float16's own effect (root mean square) that this may make. A float32 candidate differs by all of it.
FLIPS = 0.5
# Without measured noise: the share of a record's largest value that counts as one unit.
UNMEASURED, UNMEASURED_HALF = 2.0 ** -20, 2.0 ** -13
# Products in fewer bits: the rounding, and the bits kept.
PRODUCTS = {"TF32 products": (tf32, 11), "bfloat16 products": (bfloat16, 8), "float16 products": (float16, 11)}
LIKE_PREDICTED = 0.25, 4.0  # error over what the precision's own run makes, of at least MOST of the records
MOST = 0.7


def references(reference, candidate, model, precision, limit, exact=lambda: False):
    """(label, records, unit of every record) of what the candidate may be a faithful copy of, sharpest first.

    `exact()`, asked after float32: whether some record agrees as it is."""
    records = {name: np.asarray(array, np.float64) for name, array in reference.records.items()}
    noise, half = noises(reference, candidate, model)
    held = [array for name, array in candidate.records.items() if name != "input" and array.size
            and array.dtype.kind == "f"]
    if precision == "float64" and reference.manifest.get("dtype") == "float32":
        raise ValueProblem("--precision float64 needs a reference traced in float64, got float32")
    if precision == "float64" or (precision == "auto" and reference.manifest.get("dtype") == "float64"
                                  and held and beyond(held[0], np.float32)):
        yield "float64", records, {name: value * _SMALLER for name, value in noise.items()}
    if precision in ("auto", "float32"):
        yield "float32", records, noise
    has_input = "input" in records and not exact()
    if precision in ("auto", "float16") and model is not None and has_input:
        for label, (folded, _, _) in HALVED.items():
            if folded or not model.folded:
                again = run_recorded(model_of(label, model), records["input"])
                yield label, {name: again[name] if name in again and again[name].shape == array.shape else array
                              for name, array in records.items()}, noise
    if half and (precision == "float16" or precision == "auto" and not any(beyond(a, np.float16) for a in held)):
        yield "float16", records, half
    elif precision == "float16" and model is None:
        raise ValueProblem("--precision float16 needs a trace of `mmref trace`, or its weights (--weights FILE)")
    if precision == "auto" and model is not None and has_input and held:
        if not any(_more_than_bfloat16(array) for array in held):
            yield "bfloat16", records, half_noise(model, records["input"], records, None, bfloat16, 2.0 ** -8)
        for label, (rounding, bits) in PRODUCTS.items():
            units = _products(candidate, model, records, noise, rounding, bits, limit)
            if units:
                yield label, records, units


def noises(reference, candidate, model):
    """The two noise levels of a trace: its own, or measured now, or a share of the largest value."""
    manifest = reference.manifest
    if manifest.get("noise"):
        return manifest["noise"], manifest.get("noise_float16", {})
    if model is not None and "input" in reference.records:
        x = reference.records["input"]
        return tuple(measure(model, x, reference.records) for measure in (rounding_noise, half_noise))
    coarse = any(array.dtype == np.float16 for trace in (reference, candidate) for array in trace.records.values())
    share = UNMEASURED_HALF if coarse else UNMEASURED
    return {name: share * largest(np.asarray(array, np.float64)) for name, array in reference.records.items()}, {}


def beyond(array, dtype) -> bool:
    """Whether most values of a record hold more digits than `dtype` does."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((array.astype(dtype) != array).mean() > 0.5)


def _more_than_bfloat16(array):
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((bfloat16(array) != array).mean() > 0.5)


def _products(candidate, model, records, noise, rounding, bits, limit):
    """Units for a candidate whose products are computed in fewer bits; None where its errors do not look like that:
    too small or too large beside those of our own such run, for more than a few records."""
    from mmref.validate.replay import Indexed, compute
    try:
        graph = Indexed(model.astype(np.float64), records["input"].shape)
    except MmrefError:
        return None

    def rounded(o, a, op):
        o = {name: rounding(value) if name in ("x", "weight", "sequences") else value for name, value in o.items()}
        from mmref.nn.operation import apply
        return apply(op, o, a)
    values = {graph.graph.inputs[0]: records["input"]}
    with np.errstate(all="ignore"):
        for node in graph:
            if node.operation is None:
                continue
            product = node.name in ("conv2d", "depthwise_conv2d", "linear", "project")
            change = (lambda o, a, op=node.operation: rounded(o, a, op)) if product else None
            values[node] = compute(node, values, change)
    units, ratios = dict(noise), []
    for name, node in graph.names.items():
        if name not in records or name == "input" or node not in values:
            continue
        error = values[node] - records[name]
        if not np.isfinite(error).all():
            return None
        units[name] = max(noise.get(name, 0.0), largest(error) / 4)
        got = arranged(records[name], candidate.records[name])[0] if name in candidate.records else None
        if got is not None and rms(error) > limit * noise.get(name, 0.0) / 10:
            ratios.append(rms(got - records[name]) / rms(error))
    low, high = LIKE_PREDICTED
    alike = [low <= ratio <= high for ratio in ratios]
    return units if len(alike) >= 3 and np.mean(alike) >= MOST else None


def model_of(label, model):
    """The float64 model whose run the comparison was made with."""
    if model is None:
        return None
    model = model.astype(np.float64)
    if label in HALVED:
        folded, exponential, rounding = HALVED[label]
        model = model.fold_batchnorm() if folded else model
        for _, layer, attribute in model.named_parameters():
            array = getattr(layer, attribute)
            if exponential and attribute == "A_logs":
                array = np.log(np.maximum(rounding(np.exp(array)), 1e-300))
            else:
                array = rounding(array)
            setattr(layer, attribute, array)
    return model
