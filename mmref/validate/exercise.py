"""What an input exercises of a network: declared beside every verdict, so that "same" is not taken for more than it is.

Read from the graph while it runs: lengths of scans, arguments of the step sizes' softplus, sizes of maps, what comes
near the bend of a ReLU6.
"""

from __future__ import annotations

import numpy as np

from mmref.errors import NotTraceable, ShapeError
from mmref.validate.replay import graph_of, observe

CHUNK = 512       # the longest common chunk of a scan; fewer steps cannot show a state that is not passed on
BEND = 6.0       # of a ReLU6
OVERFLOW = 88.0   # exp of more overflows float32
THOROUGH = ((83, 145), (259, 547), (515, 1043))  # odd maps, not square; tried until a scan is longer than CHUNK


def exercise(model, x) -> dict:
    """What a float64 model does with x: {batch, size, samples_differ, scan_lengths, softplus [low, high], odd [height,
    width], relu [ReLUs that nothing near BEND came to, ReLUs]}; what the network does not have is left out. A network
    that cannot be traced declares its input alone."""
    found = {"batch": len(x), "size": list(x.shape[2:]),
             "samples_differ": len(x) > 1 and not any(np.array_equal(x[0], other) for other in x[1:])}
    lengths, odd, step, relus = set(), [False, False], [], []
    try:
        graph, _ = graph_of(model, x.shape)
        for node, value, operands in observe(graph, np.asarray(x, model.dtype)):
            if node.name == "selective_scan":
                lengths.add(value.shape[-1])
            elif node.name == "softplus" and value.size:
                step += [float(operands["x"].min()), float(operands["x"].max())]
            elif node.name == "analysis":
                odd = [was or bool(n % 2) for was, n in zip(odd, operands["x"].shape[2:], strict=True)]
            elif node.name == "relu" and value.size:
                relus.append(float(value.max()))
        has_bands = any(node.name == "analysis" for node in graph)
    except (NotTraceable, ShapeError):
        return found
    found |= {"scan_lengths": sorted(lengths)} if lengths else {}
    found |= {"softplus": [min(step), max(step)]} if step else {}
    found |= {"odd": odd} if has_bands else {}
    return found | ({"relu": [sum(largest <= BEND for largest in relus), len(relus)]} if relus else {})


def declared(found: dict, smallest: float | None = None) -> list[str]:
    """What was exercised, in words."""
    if not found:
        return []
    lines = [f"batch {found['batch']}, {'x'.join(map(str, found['size']))} pixels"]
    if found.get("scan_lengths"):
        lines.append(f"scans of {', '.join(map(str, found['scan_lengths']))} steps")
    if found.get("softplus"):
        lines.append("softplus of {:.3g} to {:.3g}".format(*found["softplus"]))
    if smallest is not None:
        lines.append(f"the smallest error that shows in the output is {smallest:.1e} of its largest value")
    return lines


def not_exercised(found: dict) -> list[str]:
    """What this input could not have shown, in words."""
    if not found:
        return []
    lines, size = [], found["size"]
    if not found["samples_differ"]:
        lines.append("samples that mix: use a batch of two or more different ones")
    if len(size) == 2 and size[0] == size[1]:
        lines.append("height and width exchanged: use an input that is not square")
    for word, seen in zip(("height", "width"), found.get("odd", ()), strict=False):
        if not seen:
            lines.append(f"padding of odd maps: no map had an odd {word} (83 x 145 pixels give both)")
    low, count = found.get("relu") or (0, 0)
    if low:
        lines.append(f"ReLU6 in place of ReLU in {low} of {count} places: nothing above 6 came there (multiply "
                     f"the input)")
    longest = max(found.get("scan_lengths") or (CHUNK + 1,))
    if longest <= CHUNK:
        lines.append(f"a scan in chunks of {longest} steps or more that does not pass its state on: no scan is longer "
                     f"(mmref trace --thorough)")
    low, high = found.get("softplus") or (0, OVERFLOW)
    if high < OVERFLOW:
        lines.append(f"a softplus that overflows above {OVERFLOW:.0f}: its arguments end at {high:.3g}")
    return lines


def thorough_input(model, batch: int = 2) -> np.ndarray:
    """float32 (batch, C, H, W) that shows most: odd and unequal sides, different samples with large and ordinary
    values, and scans of more than CHUNK steps if the network has any scan that long."""
    channels = model.config.in_chans
    for height, width in THOROUGH:
        try:
            graph, _ = graph_of(model, (batch, channels, height, width))
        except (NotTraceable, ShapeError):
            break
        lengths = [node.shape[-1] for node in graph if node.name == "selective_scan"]
        if not lengths or max(lengths) > CHUNK:
            break
    values = np.random.default_rng(0).standard_normal((batch, channels, height, width), np.float32)
    return values * np.where(np.arange(batch) % 2, 1, 20).astype(np.float32)[:, None, None, None]
