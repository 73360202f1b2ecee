"""The engine on an NVIDIA GPU: a network's graph, lowered to launches of the kernels of mmref.kernels.cuda.

    weights.py   constants, on the device                 plan.py    launches and memory of one input shape
    products.py  matrix products that keep their bits     cublas.py  the functions of cuBLAS that they need
    device.py    memory, streams, graphs, lent arrays     model.py   DeviceModel, which has the NumPy model's face
    check.py     a plan's launches beside their twins

docs/cuda.md says how it is used, how it is built and what it guarantees.
"""

from mmref.engine.cuda.model import DeviceModel

__all__ = ["DeviceModel"]
