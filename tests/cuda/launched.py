"""The launches of whole forwards without a device: plans made on host arrays that nobody reads or writes."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np

from mmref.engine.cuda import device
from mmref.engine.cuda import weights as device_weights
from mmref.engine.cuda.plan import make_plan
from mmref.engine.cuda.products import OwnProducts
from mmref.engine.cuda.weights import DeviceWeights
from mmref.engine.folding import FoldedParameters
from mmref.models.parameters import random_parameters
from mmref.models.variants import VARIANTS


class _Host:
    """Stands for numba.cuda where weights are uploaded."""

    to_device = staticmethod(np.asarray)


def launch_forwards(batches=(1, 32, 256)) -> None:
    """Call every launcher as a forward of each variant at its own size does: our own matrix product, and the epilogue
    that would follow one by cuBLAS. The launchers' `build` must be replaced before."""
    from mmref.kernels.cuda.epilogue import epilogue
    with (patch.object(device, "allocate", lambda shape: np.empty(shape, np.float32)),
          patch.object(device, "wait_for_uploads", lambda: None),
          patch.object(device, "prepare", lambda launches: None),
          patch.object(device_weights, "cuda", _Host)):
        uploaded = {}  # b1, b2 and b4 have the same
        for config in VARIANTS.values():
            if config.widths not in uploaded:
                uploaded[config.widths] = DeviceWeights(FoldedParameters(random_parameters(config)))
            weights = uploaded[config.widths]
            for batch in batches:
                shape = batch, config.in_chans, config.img_size, config.img_size
                plan = make_plan(config, weights, shape, ("0", "logits"), OwnProducts(0), 0, lambda: False)
                plan.input = plan.pictures
                plan.launch()
                for launch in plan.launches:
                    if launch.kernel == "matmul":
                        a = launch.arguments
                        epilogue(x=a["out"], **{name: a[name] for name in ("bias", "residual", "residual2", "relu")})
