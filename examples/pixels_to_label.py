"""One picture from pixels to label, drawn step by step: python examples/pixels_to_label.py [PICTURE [FOLDER]]

Needs matplotlib (pip install "mmref[viz]"). Without arguments it takes the photograph of a cat that comes along and
draws into the folder pixels_to_label where you stand.
"""

import sys
from pathlib import Path

import numpy as np

import mmref
from mmref.data.picture import open_picture, to_array
from mmref.data.samples import sample_picture
from mmref.show.pictures import draw

picture, _ = open_picture(sys.argv[1] if len(sys.argv) > 1 else sample_picture("cat"))
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "pixels_to_label")
folder.mkdir(parents=True, exist_ok=True)
model = mmref.create_model("mobilemamba_nano", pretrained=True)

STEPS = (
    ("features", "The stem shrinks the picture 16 times; every stage has more channels and fewer pixels."),
    ("wavelet", "A block's wavelet branch sees the map as averages and differences, and convolves each of them."),
    ("scan", "Its scan reads the map as sequences, forwards and backwards, and forgets slowly what it has read."),
    ("delta", "How slowly is each pixel's own choice: a large step takes the pixel in and forgets what came before."),
    ("erf", "So the middle of the last map hears from the whole picture, from some places more than from others."),
)
for number, (what, text) in enumerate(STEPS, 1):
    path = folder / f"{number}_{what}.png"
    draw(what, model, picture, cells=16).savefig(path)
    print(f"{number}. {text}\n   {path}")

x = to_array(picture, model.transform)[None]               # (1, 3, 128, 128): now at the size it was trained on
pooled = model.forward_head(model.forward_features(x), pre_logits=True)
logits = model.head(pooled)[0].astype(np.float64)
print(f"6. The last map's mean over its pixels is {pooled.shape[1]} numbers; the head makes {len(logits)} logits.")
chances = np.exp(logits - logits.max())
for i in np.argsort(-chances)[:3]:
    print(f"   {chances[i] / chances.sum():6.1%}  {model.class_names[i]}")
