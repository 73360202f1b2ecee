"""Classify a picture with the included weights: python examples/classify_a_picture.py [PICTURE]

Without an argument it takes the photograph of a cat that comes along.
"""

import sys

import numpy as np

import mmref
from mmref.data.picture import open_picture, to_array
from mmref.data.samples import sample_picture

picture, notes = open_picture(sys.argv[1] if len(sys.argv) > 1 else sample_picture("cat"))
for note in notes:
    print("note:", note)

model = mmref.create_model("mobilemamba_nano", pretrained=True)
x = to_array(picture, model.transform)[None]               # (1, 3, 128, 128) float32
logits = model(x)[0].astype(np.float64)                    # (10,)
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
for i in np.argsort(-probabilities)[:3]:
    print(f"{probabilities[i]:6.1%}  {model.class_names[i]}")
