"""mmref: MobileMamba (CVPR 2025), forward-only, without a deep-learning framework.

    import mmref
    model = mmref.create_model("mobilemamba_nano", pretrained=True)
    logits = model(x)  # x (B, 3, H, W) float32

Reading order: mobilemamba, mrffi, wavelet, ss2d, scan_order, selective_scan, functional; layer is what they stand on.
"""

from __future__ import annotations

from importlib import import_module
from os import path as _path

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "mmref.models.create",
    "list_models": "mmref.models.create",
    "MobileMamba": "mmref.models.mobilemamba",
    "Variant": "mmref.models.variants",
    "Transform": "mmref.data.picture",
    "Predictor": "mmref.tasks.predictor",
    "Detector": "mmref.tasks.detector",
    "detect": "mmref.tasks.detector",
    "Frame": "mmref.data.frame",
    "Segmenter": "mmref.tasks.segmenter",
    "segment": "mmref.tasks.segmenter",
    "KeepRatio": "mmref.data.keep_ratio",
    "selective_scan": "mmref.nn.recurrence",
    "depthwise_conv2d": "mmref.nn.functional",
    "read_checkpoint": "mmref.weights",
    "MmrefError": "mmref.errors",
}
__all__ = ["__version__", *_PUBLIC]


def _checkout(package: str) -> list[str]:
    """[the checkout that the folder `package` lies in], [] where it is installed.

    An installed mmref holds kernels/ and weights/; in a checkout they lie beside it. Python started there takes this
    package before any installed one, so it has to find them. Folders of these names lie beside packages elsewhere too
    (`kernels` is somebody else's package): only a project that is called mmref is ours.
    """
    if _path.isfile(_path.join(package, "weights", "__init__.py")):
        return []
    root = _path.dirname(_path.realpath(package))
    if not all(_path.isfile(_path.join(root, name, "__init__.py")) for name in ("kernels", "weights")):
        return []
    import tomllib
    try:
        with open(_path.join(root, "pyproject.toml"), "rb") as file:
            project = tomllib.load(file).get("project")
    except (OSError, ValueError):
        return []
    return [root] if isinstance(project, dict) and project.get("name") == "mmref" else []


__path__ += _checkout(__path__[0])


def __getattr__(name: str):
    """Load a public name when it is first asked for, so that `import mmref` stays cheap."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmref' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
