"""Operations of the reference on the GPU: arrays of the host in, run, arrays of the host out.

For tests and for whoever wants one operation. The network keeps its maps on the device (mmref.engine.cuda).
"""

from __future__ import annotations

import numpy as np

from mmref.errors import ShapeError
from mmref.kernels.cuda.depthwise import depthwise
from mmref.kernels.cuda.driver import cuda, device
from mmref.kernels.cuda.selective_scan import scan_states


def _check_float32(**arrays):
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ShapeError(f"{name} must be float32 for backend 'cuda', got {array.dtype}")


def _to_device(array):
    return cuda.to_device(np.ascontiguousarray(array))


def selective_scan(u, delta, A, B, C, D):
    """`mmref.nn.recurrence.selective_scan` on the GPU; shapes have been checked there. float32 only: ShapeError for
    another dtype. MissingBackend where there is no GPU."""
    _check_float32(u=u, delta=delta, A=A, B=B, C=C, D=D)
    device()
    if not u.size:
        return np.zeros(u.shape, np.float32)
    y = cuda.device_array(u.shape, np.float32)
    scan_states(*map(_to_device, (u, delta)), *(_to_device(array) if array.size else array for array in (A, B, C)),
                _to_device(D), y)
    return y.copy_to_host()


def depthwise_conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0):
    """`mmref.depthwise_conv2d` on the GPU, channels-last inside. float32 only: ShapeError for another dtype
    and where the kernel is larger than the padded picture. MissingBackend where there is no GPU."""
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    _check_float32(x=x, weight=weight, bias=bias)
    if bias.shape != (len(weight),):
        raise ShapeError(f"bias must have shape ({len(weight)},), got {bias.shape}")
    device()
    (images, channels, height, width), (k_h, k_w) = x.shape, weight.shape[2:]
    out_height, out_width = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, k_h), (width, k_w)))
    if height + 2 * padding < k_h or width + 2 * padding < k_w:
        raise ShapeError(f"kernel {k_h}x{k_w} is larger than the padded picture "
                         f"{height + 2 * padding}x{width + 2 * padding}")
    y = np.zeros((images, out_height, out_width, channels), np.float32)
    if y.size and not x.size:  # padding alone
        y += bias
    elif y.size:
        out = cuda.device_array((images * out_height * out_width, channels), np.float32)
        depthwise(_to_device(x.transpose(0, 2, 3, 1).reshape(-1, channels)),
                  _to_device(weight.reshape(channels, -1).T), _to_device(bias), out, images=images, height=height,
                  width=width, filter_shape=(k_h, k_w), stride=stride, padding=padding)
        y = out.copy_to_host().reshape(y.shape)
    return y.transpose(0, 3, 1, 2)
