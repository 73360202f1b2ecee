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
    "create_model": "mmref.model",
    "list_models": "mmref.model",
    "MobileMamba": "mmref.mobilemamba",
    "Variant": "mmref.variants",
    "Transform": "mmref.picture",
    "Predictor": "mmref.predictor",
    "selective_scan": "mmref.selective_scan",
    "depthwise_conv2d": "mmref.functional",
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
