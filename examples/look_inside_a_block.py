"""Follow one picture through the first block: python examples/look_inside_a_block.py

Prints every layer that runs inside blocks1.0, its output shape and the size of its values, and then what the
selective scan decided: how far each direction remembers.
"""

import numpy as np

import mmref
from mmref.data.picture import open_picture, to_array
from mmref.data.samples import sample_picture
from mmref.nn.layer import recording

model = mmref.create_model("mobilemamba_nano", pretrained=True)
picture, _ = open_picture(sample_picture("cat"))
seen = {}
with recording(lambda name, y, layer: seen.setdefault(name, y)):
    model(to_array(picture, model.transform)[None])

for name, y in seen.items():
    if name.startswith("blocks1.0"):
        print(f"{name:72} {'x'.join(map(str, y.shape)):>16}  std {y.std():.3f}")

scan = "blocks1.0.mixer.m.attn.global_op.global_atten"
delta, A = seen[f"{scan}:delta"][0], seen[f"{scan}:A"]     # (K, D, L) and (K, D, N)
decay = np.exp(delta * A)                                  # what one step leaves of the state
for k, direction in enumerate(("forwards", "backwards")):
    half_life = np.log(0.5) / np.log(decay[k].mean(-1))    # (D,)
    print(f"{direction}: half of the state is left after {np.median(half_life):.1f} pixels "
          f"(middle channel; {half_life.min():.1f} to {half_life.max():.0f})")
