"""Convert a PyTorch checkpoint without PyTorch: python examples/convert_a_checkpoint.py [IN.pth OUT.safetensors]

Without arguments it makes a small checkpoint first, as PyTorch would have written it, in a temporary folder.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import mmref
from mmref.weights import convert, read_checkpoint

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) == 3:
        source, target = map(Path, sys.argv[1:])
    else:
        source, target = Path(folder) / "nano.pth", Path(folder) / "nano.safetensors"
        from mmref.weights.pth_writer import write_pth
        write_pth(source, mmref.create_model("mobilemamba_nano", pretrained=True).state_dict())
    convert(source, target)
    checkpoint = read_checkpoint(target)
    print(f"{target.name}: {len(checkpoint.tensors)} tensors, "
          f"{sum(t.size for t in checkpoint.tensors.values()):,} values, bit for bit those of {source.name}")
    if len(sys.argv) != 3:
        model = mmref.create_model("mobilemamba_nano", target)
        print("logits of a grey picture:", np.round(model(np.zeros((1, 3, 64, 64), np.float32))[0], 3))
