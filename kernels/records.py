"""The records that describe operations to the kernels: the one place that knows their memory layout.

A plan (mmref.engine.plan) is a table of steps; each step names a kernel and a record. A kernel is compiled once for
all shapes and takes everything it needs from its record. All fields are 64-bit integers: addresses and distances in
bytes, everything else a count. Activations lie channels-last: one pixel's channels side by side, the next pixel
`pitch` bytes on, a multiple of 64, so that kernels work on whole vectors of 16 channels. What is computed in the
padding of a pixel is finite and never reaches a real channel: the weights that would read it are zero.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.target import VECTOR_BYTES


def _record(fields: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in fields.split()])


# matmul.py: out[i] = act(a[i] @ weights + bias + residual[i] + residual2[i]) for i < rows. Columns come in panels of at
# most `tile_vectors` vectors, each packed by itself; `chunk` rows pass all panels before the next ones do. The
# residuals (address 0: none) have the pitch of `out`. next: the record of the next MATMUL (0: none), whose first
# weights are asked for while the last of these are in use.
MATMUL = _record("a pitch rows depth panels panel_table bias out out_pitch residual residual2 relu chunk tiles "
                 "tile_rows next")
# One panel: `column`, bytes from the first column of `out`; its vectors; the address of its packed weights.
PANEL = _record("column vectors weights")

# stem.py: k x k convolution over maps with a border of zeros, `kernel` rows (`tap_row` bytes apart) of `taps` runs
# (`tap` bytes apart) of `depth` values; height and width are those of the output. Residuals as in MATMUL.
STEM = _record("x pixel row image depth kernel tap_row taps tap stride out out_pixel out_row out_image height width "
               "images panels panel_table bias residual residual2 relu tiles tile_rows")
# stem.py: NCHW picture -> channels-last, pixels `pixel` bytes apart. `cell` is where the array's address stands while a
# plan runs; 1 is written to `alarm` where a value is infinite or NaN.
PICTURE = _record("cell offset channels height width out pixel row alarm")
# stem.py: channels-last map -> the caller's array, packed; `cell` and `offset` as above.
RESULT = _record("x pitch rows channels cell offset")

# dense.py: k_h x k_w convolution of many channels over plain maps, taps `dilation` pixels apart, `padding` of zeros
# that are not there; `depth` values a pixel; height and width are those of the output. Panels as in MATMUL, `zeros`
# the address of as many zeros as a tile has columns.
DENSE = _record("x pixel in_height in_width depth kernel_h kernel_w dilation padding stride out out_pixel out_row "
                "out_image height width images panels panel_table bias zeros residual residual2 relu tiles tile_rows")

# depthwise.py: k x k with padding k//2, then an activation; `lanes` of the last vector may be written (16, unless other
# channels lie beside them); `after` is the scale and shift of ACTIVATION_LOCAL; `bands` of rows to a vector; `zero` is
# the address of 16 zeros.
DEPTHWISE = _record("x pitch height width kernel stride out_height out_width weights bias out out_pitch activation "
                    "after vectors images lanes bands zero")
# depthwise.py, the reference's operation: k_h x k_w over a map whose padding is a part of it.
DEPTHWISE_ANY = _record("x pitch height width kernel_h kernel_w stride out_height out_width weights bias out out_pitch "
                        "vectors images")
ACTIVATION_NONE, ACTIVATION_RELU, ACTIVATION_SILU, ACTIVATION_LOCAL = range(4)

# wavelet_branch.py: Haar analysis, k x k on four sub-bands, synthesis; `scratch` has four sub-bands for a thread.
WAVELET = _record("x pitch height width kernel weights out out_pitch vectors images scratch scratch_size")


def wavelet_line_bytes(width, k):
    """From one row of the sub-bands to the next: the pixels of a vector of channels, the zeros that a k x k filter sees
    beside them, and one more, because pixels are worked on in pairs."""
    return ((width + 1) // 2 + 2 * (k // 2) + 1) * VECTOR_BYTES


def wavelet_scratch_bytes(height, width, k):
    """`scratch_size`: what one thread needs."""
    return 4 * ((height + 1) // 2) * wavelet_line_bytes(width, k)


# scan.py: both directions. `parameters` of a vector and direction: `rank` rows of the step-size projection, its bias,
# A * log2(e), D. `coefficients` of a pixel: for each direction `rank` floats dt, then B, then C. `zero` as above.
SCAN = _record("u pitch coefficients coefficients_pitch rank parameters out out_pitch vectors images length zero")

# selective_scan.py, the reference's operation: arrays padded to whole vectors, channels last; A and D by vectors.
STATES = _record("u delta A B C D out states directions sequences length channel_vectors scratch scratch_size")

# state_scan.py: any order and number of states; `table` (directions, length) of pixel numbers, -1 for a pixel of zeros.
# `parameters` of a vector and direction: `rank` rows of the step-size projection, its bias, D, A * log2(e) by states.
# by_path 1: u and coefficients are rows of the map, a pixel's coefficients those of all directions; 0: rows are steps.
# `nothing`: zeros for a row of either. shared 1: rates are multiples of the first. `factor` (0: none) times the result.
STATE_SCAN = _record("u pitch coefficients coefficients_pitch rank states directions parameters table length pixels "
                     "out out_pitch vectors images scratch scratch_size by_path nothing shared factor factor_pitch")
STATE_BLOCK = 8  # steps for which its states are registers


def state_scan_scratch_bytes(states):
    """`scratch_size`: what one thread needs: the states, and of a block of steps delta, delta * u, y and addresses."""
    return (states + 3 * STATE_BLOCK + 2) * VECTOR_BYTES



# tokens.py. PATH_CONV: `weights` by direction: `taps` rows of all channels, then their bias; by_path, table, nothing as
# above, but `nothing` is one vector. ROTARY: `count` rows of angles, row r's is r % count. ROW_STATS: two floats a row.
PATH_CONV = _record("x pitch table length directions pixels by_path nothing taps weights silu out out_pitch vectors "
                    "images")
RMS_NORM = _record("x pitch rows channels weight epsilon out out_pitch")
ROTARY = _record("x pitch length images channels cos sin table_pitch count out out_pitch")
ROW_STATS = _record("x pitch rows channels epsilon out")
NORM_MEAN = _record("x pitch images length vectors stats weight bias out out_pitch")

# norm_gate.py: out = (layer norm of y * weight + bias) * silu(z); `parameters` holds weight, then bias.
NORM_GATE = _record("y pitch z z_pitch rows vectors parameters out out_pitch")

# join.py: out = relu(x), `channels` floats a row.
COPY_RELU = _record("x pitch rows channels out out_pitch")

# pool.py: out[image] = mean over its pixels.
MEAN = _record("x pitch images length vectors out out_pitch")

# pool.py: means over rows x columns parts, which cover the map, and maxima over windows; `lanes` of the last vector may
# be written.
ADAPTIVE_MEAN = _record("x pitch height width images rows columns vectors lanes out out_pitch")
MAXIMUM = _record("x pitch height width images kernel stride padding out_height out_width vectors lanes out out_pitch")

# resize.py: bilinear, or nearest where `nearest` is 1. `cell`, if it is not 0, is where the caller's array's address
# stands: then `out` is the offset in it. `scratch` has a row of the map for each thread.
RESIZE = _record("x pitch height width images vectors lanes out out_pitch out_height out_width nearest cell scratch "
                 "scratch_size")

# squeeze_excite.py: x[image, pixel] *= sigmoid(gate[image]), in place.
GATE = _record("x pitch images length vectors gate gate_pitch")

# plain.py: what no faster kernel covers. MOVE: strides in bytes; x 0 stands for zeros; add 1 adds to what is there.
MOVE = _record("x x_image x_row x_column x_channel out out_image out_row out_column out_channel images rows columns "
               "channels add")
# COMBINE: `operation` as in COMBINATIONS; y 0 for those of one operand, else its row is (row // y_length) % y_count.
COMBINE = _record("x pitch y y_pitch y_length y_count rows channels out out_pitch operation")
COMBINATIONS = {"copy": 0, "relu": 1, "sigmoid": 2, "silu": 3, "softplus": 4, "add": 5, "multiply": 6, "relu6": 7,
                "gelu": 8}
# NORM: layer norm; addresses of weight, bias and epsilon.
NORM = _record("x pitch rows channels weight bias epsilon out out_pitch")
# GATHER, SCATTER: rows by a table of `count` int64.
GATHER = _record("x pitch x_rows table count out out_pitch vectors images")
SCATTER = _record("x pitch table count out out_pitch out_rows vectors images")
# ANALYSIS, SYNTHESIS: any wavelet; height and width are those of the map.
ANALYSIS = _record("x pitch height width channels kernel bank out out_pitch images")
SYNTHESIS = _record("x pitch height width channels kernel bank out out_pitch images")

# nms.py: boxes (count, 4) doubles by descending score, their corners as floats rounded outwards; `kept_corners` are
# four planes of floats, `plane` bytes apart; `kept` gets positions, `result` how many; `threshold`: a double's address.
NMS = _record("boxes corners count threshold kept_corners plane kept result")
# roi_align.py: regions (count, 5) doubles of channels-last maps; `scale` is a double's address. Scratch: weights as
# doubles, for each bin the pixels that count in it, and a row of mixed pixels.
ROI_ALIGN = _record("x rois count channels height width size scale rows row_ranges columns column_ranges mixed out")

# team.py: what threads that work together share; words that several write lie in cache lines of their own, and `lock`
# and `wake` have room for any system's mutex and condition variable. A forward is a job: `count` steps; `times`: where
# their nanoseconds go (0: nowhere); `core`: the leader's.
TEAM = np.dtype({"names": ["job", "barrier", "left", "asleep", "steps", "count", "times", "core", "lock", "wake"],
                 "formats": [np.int64] * 10, "offsets": [0, 64, 128, 192, 256, 264, 272, 280, 320, 448],
                 "itemsize": 576})

# team.py: kernel, record; `owner` is the one member that runs it, -1 for all together; `barrier` 1 where every thread
# must have finished it before any goes on.
STEP = _record("function record owner barrier")
