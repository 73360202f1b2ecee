"""The launches of whole forwards without a device: plans made on host arrays that nobody reads or writes."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from mmref.engine.cuda import device
from mmref.engine.cuda import weights as device_weights
from mmref.engine.cuda.plan import device_schedule, make_plan
from mmref.engine.cuda.products import OwnProducts
from mmref.engine.cuda.weights import DeviceWeights
from mmref.graph.passes import fused
from mmref.graph.trace import Constants, trace
from mmref.models.parameters import random_parameters
from mmref.models.registry import models

PIXELS = 2 ** 24
"""Pixels that a batch has at most here (256 pictures of 256 x 256): the host memory lent to a plan stays below 3 GB."""


class _Host:
    """Stands for numba.cuda where weights are uploaded."""

    to_device = staticmethod(np.asarray)


def launch_forwards(batches=(1, 32, 256)) -> None:
    """Call every launcher as a forward of each variant at its own size does, its feature maps asked for, too: our own
    matrix product, and the epilogue that would follow one by cuBLAS. The launchers' `build` must be replaced before."""
    from mmref.kernels.cuda.epilogue import epilogue
    with (patch.object(device, "allocate", lambda shape: np.empty(shape, np.float32)),
          patch.object(device, "wait_for_uploads", lambda: None),
          patch.object(device, "prepare", lambda launches: None),
          patch.object(device_weights, "cuda", _Host)):
        known = {}  # b1, b2 and b4 are the same at other sizes; a head is the same on every backbone
        for config in reversed(models().values()):
            head = (type(config), config.num_classes) if hasattr(config, "backbone") else None
            key = head or getattr(config, "widths", config.name)
            if head in known:
                continue
            if key not in known:
                model = random_parameters(config)
                known[key] = model, Constants(model), DeviceWeights()
            model, constants, weights = known[key]
            shape = 1, config.in_chans, config.img_size, config.img_size
            for call in (model.forward, model.forward_features):
                graph = fused(trace(call, model, shape, constants=constants))
                for batch in batches:
                    images = min(batch, max(1, PIXELS // config.img_size ** 2))
                    plan = make_plan(graph, device_schedule(graph), images, weights, OwnProducts(0), 0, lambda: False)
                    plan.given = plan.inputs
                    plan.launch()
                    for launch in plan.launches:
                        if launch.kernel == "matmul":
                            a = launch.arguments
                            epilogue(x=a["out"], **{name: a[name] for name in ("bias", "residual", "residual2",
                                                                              "relu")})
