"""The page: a run and everything that is said of it as one HTML file, which loads nothing.

The template and its style and scripts stand beside this file; the run goes along as JSON, read by the scripts and never
as markup, so that names of files, classes and layers stay text whatever is in them.
"""

from __future__ import annotations

import base64
import io
import json
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import numpy as np

from mmref.arguments import check_integer, check_kind
from mmref.data.labels import class_names
from mmref.errors import MissingBackend, ValueProblem
from mmref.explain import answer as answers
from mmref.explain.bands import branches
from mmref.explain.drawing import children_of, halvings, layer_rows, untouched
from mmref.explain.formula import FORMULAS, mathml
from mmref.explain.pack import as_maps, map_record, parameter_record, share, thinned
from mmref.explain.photograph import network_input, photograph
from mmref.explain.run import Run, constant_names, observe
from mmref.explain.scans import orders, scans
from mmref.explain.source import kinds
from mmref.explain.words import TOUR, WORDS
from mmref.models.network import check_numpy_model
from mmref.models.summary import summarize
from mmref.text import printable, to_json

SCRIPTS = ("base", "pictures", "network", "layer", "scan", "bands", "answer", "tour", "main")


def needs_jinja() -> None:
    """MissingBackend where jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingBackend('mmref explain needs jinja2, which is not installed: pip install "mmref[explain]"') \
            from error


def work(cells: int) -> int:
    """How many cells `explain` tells `seen` of."""
    return answers.runs(check_integer("--cells", cells, 1))


def write_page(path, model, picture, name: str = "", layers: str = "*", cells: int = 16, seen=None) -> int:
    """Write the page of `explain`, whole or not at all; returns its bytes."""
    from mmref.files import replacing
    with replacing(path) as temporary:  # a folder that is not there is said before the work
        text = explain(model, picture, name, layers, cells, seen).encode("utf-8")
        temporary.write_bytes(text)
    return len(text)


def explain(model, picture, name: str = "", layers: str = "*", cells: int = 16, seen=None) -> str:
    """The HTML text of one run of a NumPy model (float32, any of mmref's or one's own) on a PIL picture (8-bit RGB).

    name    of the picture, as readers should see it
    layers  comma-separated shell patterns: of which layers the page holds maps, scans and sub-bands
    cells   a side, of what is covered and moved to see what the answer rests on; 2 cells^2 runs of the network
    seen    called with the number of cells done

    The same arguments give the same text. Raises MissingBackend without jinja2, ValueProblem for a pattern that no
    layer matches, for other models and for values that are not finite, NotTraceable for a network whose text cannot be
    traced."""
    needs_jinja()
    check_numpy_model(model)
    check_kind("layers", layers, str, "comma-separated patterns of layers such as 'blocks1.*'")
    cells = check_integer("--cells", cells, 1)
    if model.transform is None or model.transform.channels != model.config.in_chans or model.dtype != np.float32:
        raise ValueProblem("model must be of float32 and have a transform for pictures of its channels")
    run = observe(model, network_input(picture, model.transform)[None])
    data = describe(run, picture, name, layers, cells, seen)
    return _template().render(title=printable(f"{model.config.name} on {name or 'a picture'}"), data=_embedded(data),
                              style=_read("page.css"), script="\n".join(_read(f"{part}.js") for part in SCRIPTS))


def describe(run: Run, picture, name: str, layers: str, cells: int, seen=None) -> dict:
    """Everything the page shows, as JSON takes it."""
    model = run.model
    tree = children_of(run)
    patterns = [part.strip() for part in layers.split(",") if part.strip()]

    def wanted(layer):
        return any(fnmatchcase(layer, pattern) for pattern in patterns)
    if not any(map(wanted, tree)):
        raise ValueProblem(f"--layers must match a layer (for instance 'blocks1.*'), got {layers!r}")
    height, width = run.values[run.input].shape[2:]
    rows = {row.name: row for row in summarize(model, height, width)}
    described = layer_rows(run, rows, tree)
    shown = photograph(picture, run.model.transform)
    found_kinds, texts = kinds(run.layers)
    labels = class_names(model) if model.config.num_classes else ()
    data = {
        "model": {"name": model.config.name, "source": Path(str(model.source)).name, "notes": list(model.notes),
                  "parameters": rows[""].parameters, "macs": rows[""].macs,
                  "input": list(run.values[run.input].shape[1:])},
        "picture": {"name": name, "photograph": _jpeg(shown), "size": list(shown.shape[:2])},
        "layers": described, "kinds": found_kinds, "files": texts, "halvings": halvings(run),
        "untouched": untouched(run), "scans": scans(run, wanted), "bands": branches(run, shown, wanted),
        "answer": answers.answer(run, labels, cells, seen), "words": WORDS, "tour": list(TOUR),
        "formulas": {node.name: mathml(FORMULAS[node.name]) for node in run.graph if node.name in FORMULAS},
        "operations": {node.name: " ".join((node.operation.__doc__ or "").split("\n\n")[0].split())
                       for node in run.graph if node.operation is not None}, "of": layers}
    sizes = dict.fromkeys(tuple(scan["size"]) for scan in data["scans"])
    data["orders"] = {f"{height} x {width}": orders(height, width) for height, width in sizes}
    data["maps"] = _maps(run, described, wanted)
    return data


def _maps(run, described, wanted):
    """What the layers read and gave, each value once; sets "input", "output", "own" and "parameters" of the layers."""
    number, kept = {}, []

    def refer(node):
        if node not in number:
            number[node] = len(kept)
            kept.append(node)
        return number[node]
    for row in described:
        name = row["name"]
        given, gave = run.given(name), run.graph.layers.get(name, run.graph.outputs[0])
        row["shapes"] = [list(run.values[node].shape[1:]) if node in run.values else [] for node in (given, gave)]
        show = wanted(name) and given in run.values and gave in run.values
        row["input"], row["output"] = (refer(given), refer(gave)) if show else (None, None)
        row["own"] = [{"name": node.name, "shape": list(node.shape[1:]), "reads":
                       [list(source.shape[1:]) for source in node.sources],
                       "parameters": constant_names(node)} for node in run.own(name)]
        layer = run.layers[name]
        row["parameters_of"] = [parameter_record(attribute, getattr(layer, attribute)) for attribute in layer.shapes]
    shapes = [thinned(as_maps(run.values[node]))[0].shape for node in kept]
    limit = share(shapes) if shapes else 0
    return [map_record(run.values[node], limit) for node in kept]


def _jpeg(shown):
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(np.rint(shown * 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _embedded(data) -> str:
    """JSON that can stand in a script element: no character that HTML could take for markup."""
    text = json.dumps(json.loads(to_json(_texts(data), indent=None)), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _texts(value):
    """The same with every text made printable, texts of several lines line by line."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else "\n".join(map(printable, value.split("\n")))
    if isinstance(value, dict):
        return {_texts(key): _texts(item) for key, item in value.items()}
    return [_texts(item) for item in value] if isinstance(value, (list, tuple)) else value


def _template():
    from jinja2 import Environment, StrictUndefined
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(_read("page.html"))


def _read(name):
    return (files("mmref.explain") / name).read_text("utf-8")
