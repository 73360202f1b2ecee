"""What the page says in words: every term in a line, and a tour of ten stops.

In the tour's text a term in square brackets is one of WORDS. `show` is the part of the page that a stop is about,
`needs` what a run must have for the stop to be there, `step` what the scan is set to.
docs/glossary.md and docs/tour.md say the same in the same words; tests/test_documents.py compares them.
"""

from __future__ import annotations

WORDS = {
    "map": "a picture of numbers: one channel of what a layer gives, a number for every pixel",
    "channel": "one of the maps that stand behind one another; a photograph has three, red, green and blue",
    "pixel": "one place of a map; the smaller the map, the larger the part of the picture that it stands for",
    "layer": "a named part of the network with a text (its code) and parameters (its learned numbers)",
    "parameter": "a number that training has set and a run only reads",
    "multiply-add": "one multiplication and one addition, the unit in which work is counted",
    "block": "the unit that a network repeats: mixes neighbours, channels, and far-away pixels",
    "stage": "blocks that work on maps of one size; between two stages the map halves",
    "mixer": "the part of a block in which far-away pixels meet",
    "identity": "channels that go around the mixer unchanged, which saves work where maps say the same twice",
    "pointwise": "a convolution of one pixel: it mixes channels and no neighbours",
    "depthwise": "a convolution of each channel by itself: it mixes neighbours and no channels",
    "batch norm": "shift and scale of every channel so that its values are of ordinary size; fixed after training",
    "shortcut": "the input added to the result, so that a layer learns only what to change",
    "inner channel": "a channel inside the scan, which has more of them than the map it is given, mostly twice as many",
    "sequence": "the pixels of a map in a row, in the order in which a scan visits them",
    "direction": "one order of visiting the pixels; the same again backwards is another direction",
    "scan": "a walk over the sequence that carries a state from pixel to pixel",
    "state": "h, what a channel of the scan remembers of all pixels before, in one number or a few",
    "selective": "the pixel decides how much is forgotten and how much taken in: delta, B and C are computed from it",
    "step size": "delta, how much weight this pixel has: a large one forgets the past, a small one passes by",
    "decay": "exp(delta A), between 0 and 1: the share of the state that outlives this pixel",
    "A": "a learned negative number for each channel: how fast it forgets for a step size of 1",
    "B": "how strongly a pixel writes into the state, computed from the pixel",
    "C": "how strongly a pixel reads the state, computed from the pixel",
    "D": "a learned number for each channel: how much of the pixel goes straight to the result",
    "u": "the pixel's own value in this channel, what the scan reads",
    "gate": "a second view of the map that multiplies the scan's result, channel by channel",
    "wavelet": "a way to take a map apart into four maps of half its size, losing nothing, and to put it together",
    "sub-band": "one of those four: the average, and what changes downwards, sideways, and both ways at once",
    "high-high": "the sub-band of what changes both ways at once: corners, dots, checks; nothing of plain edges",
    "logit": "the network's score for a class, before scores become probabilities",
    "probability": "exp(logit) over the sum of all exp(logit): positive, and one in total",
    "receptive field": "the part of the picture that a value depends on; effective: weighted with how much",
    "stem": "the first layers, which make a small map of many channels from the picture",
    "head": "the last layers, which make the answer from the last map",
    "token": "one pixel of a map with all its channels: what a sequence is made of",
    "recurrence": "a rule that makes the next state from the last one and the pixel",
    "zero-order hold": "the input counts as constant during a step; the scan's equation can then be solved over it",
    "rank": "how many numbers a pixel computes the step sizes of all channels from, by a matrix cut into two thin ones",
    "analysis": "the step that takes a map apart into its sub-bands",
    "synthesis": "the step that puts a map together from its sub-bands",
    "folded": "with batch norms multiplied into the convolutions beside them: the same function, other parameters",
    "covering": "a square of the picture is replaced by the mean colour; what the answer loses was seen there",
}

TOUR = (
    {"title": "A real run", "show": "top", "needs": "",
     "text": "Everything on this page is one run of one network on one picture: no drawing is made up, every number "
             "was computed. The photograph you see is what the network saw, cut and scaled. If you know "
             "convolutions, you need three new words: [sequence], [state] and [selective]."},
    {"title": "From picture to answer", "show": "network", "needs": "",
     "text": "Read the network from the top: every box is a [layer], and between two boxes stands the shape of what "
             "is handed on: [channel]s x rows x columns. Mint bars are [parameter]s, amber ones [multiply-add]s. "
             "Where a shape is marked with a half, the [map] halves: fewer pixels, more channels."},
    {"title": "One block", "show": "block", "needs": "",
     "text": "A [block] opened. Arrows that go around a box are [shortcut]s. You know [depthwise] and [pointwise] "
             "convolutions; new is the [mixer], in which pixels meet that are far from one another."},
    {"title": "Not all channels go through the mixer", "show": "split", "needs": "untouched",
     "text": "Channels are cut into groups: some go through the [scan], some through a plain [depthwise] "
             "convolution, and the rest, the [identity], straight on. The arrow from the cut to the joining has no "
             "box on it."},
    {"title": "A map becomes a sequence", "show": "scan", "needs": "scan",
     "text": "A scan reads the map off pixel by pixel. Press Play: the path runs over the photograph. What stands in "
             "a row is a [sequence]. It has a before and an after, a picture has not, so it is read in several "
             "[direction]s."},
    {"title": "A state is carried along", "show": "scan", "needs": "scan", "step": "play",
     "text": "At each [pixel] the [state] h is multiplied by the [decay], and the pixel is added: that is all. "
             "Convolution looks at a window; the state can bring something from the first pixel to the last."},
    {"title": "What selective means", "show": "scan", "needs": "scan", "step": "selective",
     "text": "The [decay] is not fixed: the [step size] delta is computed from the pixel. Look at the strip of "
             "decays: where it drops, this pixel made the channel forget. That choice is what [selective] means."},
    {"title": "What is still remembered", "show": "scan", "needs": "scan", "step": "memory",
     "text": "The violet veil on the photograph is the share of every earlier pixel that is still in the state here: "
             "the product of all decays since. Change the [channel]: some forget at once, some keep the whole "
             "picture."},
    {"title": "Edges by wavelet", "show": "bands", "needs": "bands",
     "text": "Beside the scan a [wavelet] takes each map apart into four [sub-band]s and convolves each by itself. "
             "On half-sized maps a small kernel reaches twice as far. [high-high] holds corners and fine texture."},
    {"title": "The answer, and what it rests on", "show": "answer", "needs": "",
     "text": "At last the maps are averaged and a linear layer gives every class a [logit]. [covering] parts of the "
             "picture shows which of them the answer needs; the [receptive field] how far one value sees."},
)
