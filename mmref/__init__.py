"""mmref: MobileMamba (CVPR 2025), forward-only, without a deep-learning framework.

    import mmref
    model = mmref.create_model("mobilemamba_nano", pretrained=True)
    logits = model(x)  # x (B, 3, H, W) float32

Reading order: mobilemamba, mrffi, wavelet, ss2d, scan_order, selective_scan, functional; layer is what they stand on.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "mmref.models.create",
    "list_models": "mmref.models.create",
    "MobileMamba": "mmref.models.mobilemamba",
    "Variant": "mmref.models.variants",
    "Transform": "mmref.data.picture",
    "Predictor": "mmref.tasks.predictor",
    "selective_scan": "mmref.nn.recurrence",
    "depthwise_conv2d": "mmref.nn.functional",
    "read_checkpoint": "mmref.weights",
    "MmrefError": "mmref.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    """Load a public name when it is first asked for, so that `import mmref` stays cheap."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmref' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)
