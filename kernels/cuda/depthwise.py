"""Depthwise convolution on channels-last maps, any filter, stride and padding, with what follows it in the network.

Parallel   (picture, slab of 32 channels, 8 strips of output pixels) a block; (channel, strip) a thread.
Loops      rows of taps; in a row all is in registers: the strip's window of inputs, the taps, the sums.
Moves      x once and the result once, from DRAM; the rows of taps that overlap come from caches.
Why        Neighbouring threads are neighbouring channels: every access is one run of 128 bytes. A strip is up to 8
           pixels of a row, cut so that no strip is shorter than it need be: a 3x3 filter reads 30 inputs for 8 outputs
           where a thread for each would read 72. A warp is one strip, so the edges of the map part no warp.
"""

from __future__ import annotations

from numba import float32

from mmref.kernels.cuda.device import ZERO, device_function, load, relu, silu, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, no_map

LANES = 32
STRIP = 8             # output pixels of a thread at most
STRIPS = 8            # strips of a block at most
NONE, RELU, SILU, LOCAL = "none", "relu", "silu", "local"
SIGNATURE = ("void(float32[:, :], float32[:, ::1], float32[::1], float32[:, ::1], float32[:, :], "
             "int32, int32, int32, int32)")


def depthwise_kernel(k_h: int, k_w: int, stride: int, padding: int, strip: int, activation: str):
    """The kernel for one filter shape; `strip` output pixels a thread."""
    window = (strip - 1) * stride + k_w

    @device_function
    def finish(value, after, channel):
        if activation == RELU:
            return relu(value)
        if activation == SILU:
            return silu(value)
        if activation == LOCAL:  # ReLU, the 1x1 depthwise convolution, and the ReLU that follows the join
            return relu(relu(value) * load(after, 0, channel) + load(after, 1, channel))
        return value

    def kernel(x, weight, bias, after, out, height, width, out_height, out_width):
        values = cuda.local.array(window, float32)
        total = cuda.local.array(strip, float32)
        slabs = (x.shape[1] + LANES - 1) // LANES
        channel = cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        across = (out_width + strip - 1) // strip
        pieces = (out_height * across + cuda.blockDim.y - 1) // cuda.blockDim.y
        block = cuda.blockIdx.x // slabs
        picture, item = block // pieces, block % pieces * cuda.blockDim.y + cuda.threadIdx.y
        row, column = item // across, item % across * strip
        if channel >= x.shape[1] or row >= out_height:
            return
        for j in range(strip):
            total[j] = bias[channel]
        left = column * stride - padding
        whole = 0 <= left and left + window <= width
        for i in range(k_h):
            y = row * stride + i - padding
            if 0 <= y < height:
                at = (picture * height + y) * width + left
                if whole:
                    for j in range(window):
                        values[j] = load(x, at + j, channel)
                else:
                    for j in range(window):
                        values[j] = ZERO
                        if 0 <= left + j < width:
                            values[j] = load(x, at + j, channel)
                for s in range(k_w):
                    w = load(weight, i * k_w + s, channel)
                    for j in range(strip):
                        total[j] += w * values[j * stride + s]
        at = (picture * out_height + row) * out_width + column
        for j in range(strip):
            if column + j < out_width:
                store(out, at + j, channel, finish(total[j], after, channel))

    return kernel


def geometry(out_height: int, out_width: int) -> tuple[int, int, int]:
    """(pixels of a strip, strips of a block, blocks of a picture and slab)."""
    pieces = -(-out_width // STRIP)
    strip = -(-out_width // pieces)
    strips = out_height * -(-out_width // strip)
    together = min(strips, STRIPS)
    return strip, together, -(-strips // together)


def depthwise(x, weight, bias, out, *, images, height, width, filter_shape, stride, padding, activation=NONE,
              after=None, stream=0):
    """Launch: out = activation(conv(x) + bias).

    x (images * height * width, C), weight (k_h * k_w, C) and `after` (2, C) contiguous, bias (C,),
    out (images * oh * ow, C); float32. `filter_shape` (k_h, k_w); activation "none", "relu", "silu" or "local", which
    is relu(relu(v) * after[0] + after[1])."""
    k_h, k_w = filter_shape
    out_height, out_width = (height + 2 * padding - k_h) // stride + 1, (width + 2 * padding - k_w) // stride + 1
    strip, together, blocks = geometry(out_height, out_width)
    kernel = build(depthwise_kernel, k_h, k_w, stride, padding, strip, activation, threads=LANES * together)
    slabs = -(-x.shape[1] // LANES)
    kernel[slabs * images * blocks, (LANES, together), stream](
        x, weight, bias, no_map() if after is None else after, out, height, width, out_height, out_width)
