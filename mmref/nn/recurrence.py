"""The selective scan: a linear recurrence whose coefficients depend on the input.

A state-space model h'(t) = A h(t) + B u(t), y = C h + D u becomes, for steps of size delta,

    h[l] = exp(delta[l] * A) * h[l-1] + delta[l] * B[l] * u[l],     y[l] = C[l] . h[l] + D * u[l].

from h[-1] = 0. A is discretised exactly (zero-order hold); B by the simpler delta*B, as Mamba does (Gu and Dao 2023,
section 3.2 and algorithm 2; upstream `selective_scan_fn`). delta, B and C are computed from u: that is what "selective"
means. Below, exp(delta * A) is called decay and delta * B * u drive.

The first step is a step like any other: it multiplies the zero state by its decay. So a decay that is not finite (NaN,
or an exponential that overflowed) makes the state NaN there too, 0 times infinity being NaN. A channel without states
(N = 0) yields D * u. Every backend gives these values.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import shapes
from mmref.nn.functional import check_backend
from mmref.nn.operation import operation


@operation(shapes.selective_scan)
def selective_scan(u, delta, A, B, C, D, *, backend: str = "numpy"):
    """Run the recurrence over every sequence.

    Letters: batch, K directions, D channels, N states per channel, L steps. One dtype for all, float32 or float64.

    Parameters
    ----------
    u, delta
        (batch, K, D, L): input and step size; softplus and bias have been applied to the latter
    A
        (K, D, N), negative for a stable system
    B, C
        (batch, K, N, L)
    D
        (K, D)
    backend
        "numpy", or "numba" and "cuda" for the compiled kernels of mmref.kernels (float32 only)

    Returns
    -------
    y
        (batch, K, D, L)

    Raises
    ------
    ShapeError
        where shapes disagree
    MissingBackend
        where the backend cannot run

    Examples
    --------
    >>> import numpy as np
    >>> from mmref import selective_scan
    >>> u, half = np.float64([8, 0, 0]).reshape(1, 1, 1, 3), np.full((1, 1, 1, 3), np.log(2))
    >>> y = selective_scan(u, half, -np.ones((1, 1, 1)), 1 / half, np.ones((1, 1, 1, 3)), np.zeros((1, 1)))
    >>> y.ravel().round(6).tolist()                                      # a step leaves one half
    [8.0, 4.0, 2.0]
    """
    if check_backend(backend) != "numpy":
        from mmref.kernels import load_op
        return load_op("selective_scan", backend)(u, delta, A, B, C, D)
    y = D[:, :, None] * u
    for n in range(A.shape[-1]):  # the states of a channel never meet, so each is a scan of its own
        decay = np.exp(delta * A[:, :, n, None])                            # (batch, K, D, L)
        drive = delta * u * B[:, :, n, None, :]                             # (batch, K, D, L)
        h = np.zeros(u.shape[:-1], u.dtype)                                 # (batch, K, D)
        for step in range(u.shape[-1]):
            h = decay[..., step] * h + drive[..., step]
            y[..., step] += C[:, :, n, None, step] * h
    return y
