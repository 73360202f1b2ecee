"""The operations of a scan in ONNX, in any order of directions, for maps of any size.

Blocks: a map is cut into blocks of s x s pixels, as paths.py has it (s = 1 but for windows and atrous scans); it stands
as (H/s, W/s, B, s*s*C), sides rounded up, which for s = 1 is the form PIXELS. A direction takes one pixel of each block
or all of them, blocks side by side or one below the other, and may run backwards.

Letters: B batch, C channels, D inner channels, H x W pixels, L steps, K directions, N states.
"""

from __future__ import annotations

from mmref.export.builder import GraphBuilder
from mmref.export.lowering import PIXELS, STEPS, Axis, emits
from mmref.nn import recurrence, scan_order, ss2d
from mmref.nn.paths import directions, way

FIRST = -2 ** 62  # where a slice that runs backwards stops: before the very first


# -------------------------------------------------------------------------------------------- from and to maps

@emits(scan_order.cross_scan)
def cross_scan(g, x, order):
    ways = [way(direction) for direction in directions(order)]
    shape = g.sizes(-1, g.axis(x, 0), g.axis(x, 1))
    blocks = {side: _blocks(g, x, side) for side in sorted({one.side for one in ways})}
    forwards = {one: g.node("Reshape", [_taken(g, blocks[one.side], one, x.shape[1]), shape])  # (L, B, C)
                for one in dict.fromkeys(map(_forwards, ways))}
    sequences = [_reversed(g, forwards[_forwards(one)]) if one.backwards else forwards[one] for one in ways]
    return STEPS, sequences if _of_one_length(ways) else _padded(g, sequences)


@emits(scan_order.cross_merge)
def cross_merge(g, y, order, height, width):
    ways, forwards, blocks = [way(direction) for direction in directions(order)], {}, {}
    for one, sequence in zip(ways, g.take(y, STEPS), strict=True):
        if not _of_one_length(ways):
            length = g.node("ReduceProd", [_counts(g, one, height, width)])
            sequence = g.node("Slice", [sequence, g.integers(0), length, g.integers(0)])
        forwards.setdefault(_forwards(one), []).append(_reversed(g, sequence) if one.backwards else sequence)
    for one, several in forwards.items():
        part = _put_back(g, g.total(several), g.axis(y, 2), _counts(g, one, height, width), one)
        blocks.setdefault(one.side, {}).setdefault(one.cell, []).append(part)
    pixels = g.total(blocks.pop(1)[None]) if 1 in blocks else None          # (H, W, B, C)
    if not blocks:
        return PIXELS, pixels
    maps = [g.transpose(pixels, 2, 3, 0, 1)] if pixels else []
    maps += [g.cropped(_map(g, side, parts), height, width) for side, parts in blocks.items()]
    return g.total(maps)


def _forwards(one):
    return one._replace(backwards=False)


def _of_one_length(ways):
    return len({(one.side, one.cell is None) for one in ways}) == 1


def _reversed(g, sequence):
    """Steps in the other order."""
    return g.node("Slice", [sequence, g.integers(-1), g.integers(FIRST), g.integers(0), g.integers(-1)])


def _blocks(g, x, side):
    """A map in blocks, zeros where they reach beyond it."""
    if side == 1:
        return g.take(x, PIXELS)
    return g.transpose(g.node("SpaceToDepth", [padded_to(g, x, side)], blocksize=side), 2, 3, 0, 1)


def padded_to(g, x, side):
    """A map with zeros at the bottom and right until its sides are multiples of `side`."""
    sizes = g.sizes(g.axis(x, 2), g.axis(x, 3))
    lacking = g.node("Mod", [g.node("Neg", [sizes]), g.integers(side)])
    return g.node("Pad", [g.take(x), g.concatenate([g.integers(*[0] * 6), lacking], 0)])


def _taken(g, blocks, one, channels):
    """The pixels of blocks that a direction visits, in its order, (..., B, C)."""
    if one.cell:
        first = (one.cell[0] * one.side + one.cell[1]) * channels
        blocks = g.node("Slice", [blocks, g.integers(first), g.integers(first + channels), g.integers(3)])
    elif one.side > 1:
        apart = g.node("Reshape", [blocks, g.integers(0, 0, 0, one.side ** 2, channels)])
        blocks = g.transpose(apart, 0, 1, 3, 2, 4)                          # (H/s, W/s, s*s, B, C)
    return g.transpose(blocks, 1, 0, 2, 3) if one.by_column else blocks


def _counts(g, one, height, width):
    """How many pixels a direction visits along the axes of `_taken`, as a vector."""
    sizes = g.sizes(width, height) if one.by_column else g.sizes(height, width)
    if one.side > 1:
        sizes = g.node("Div", [g.node("Add", [sizes, g.integers(one.side - 1)]), g.integers(one.side)])
    return sizes if one.side == 1 or one.cell else g.concatenate([sizes, g.integers(one.side ** 2)], 0)


def _put_back(g, sequence, channels, counts, one):
    """The inverse of `_taken` and of the reshaping behind it: (L, B, C) to (H/s, W/s, B, C or s*s*C)."""
    part = g.node("Reshape", [sequence, g.concatenate([counts, g.sizes(-1, channels)], 0)])
    if one.by_column:
        part = g.transpose(part, 1, 0, 2, 3)
    if one.side == 1 or one.cell:
        return part
    return g.node("Reshape", [g.transpose(part, 0, 1, 3, 2, 4), g.integers(0, 0, 0, -1)])


def _map(g, side, parts):
    """A map (B, C, H, W), padded to whole blocks, from values for single cells of the blocks and for all (None)."""
    whole = parts.pop(None, [])
    if parts:
        cells = {cell: g.total(several) for cell, several in parts.items()}
        nothing = g.node("ConstantOfShape", [g.node("Shape", [next(iter(cells.values()))])])
        whole += [g.concatenate([cells.get(divmod(i, side), nothing) for i in range(side ** 2)], 3)]
    return g.node("DepthToSpace", [g.transpose(g.total(whole), 2, 3, 0, 1)], blocksize=side)


def _padded(g, sequences):
    """Sequences of unequal lengths with zeros behind them, up to the longest."""
    lengths = [g.sizes(Axis(sequence, 0)) for sequence in sequences]
    longest, (before, after) = g.node("Max", lengths), (g.integers(0, 0, 0), g.integers(0, 0))
    return [g.node("Pad", [sequence, g.concatenate([before, g.node("Sub", [longest, length]), after], 0)])
            for sequence, length in zip(sequences, lengths, strict=True)]


# ---------------------------------------------------------------------------------------------- the recurrence

@emits(ss2d.project)
def project(g, weight, sequences):
    matrices = [g.known(weight, f"[{k}]", lambda array, k=k: array[k].T) for k in range(weight.shape[0])]
    return STEPS, [g.node("MatMul", pair) for pair in zip(g.take(sequences, STEPS), matrices, strict=True)]


@emits(recurrence.selective_scan)
def selective_scan(g, u, delta, A, B, C, D):
    """What depends on one step alone is computed for all steps at once; then one recurrence for all directions and
    states, which stand side by side in it: it costs by the step, not by the width."""
    (K, dim, N), decays, inputs, results = A.shape, [], [], []
    u, delta, B, C = (g.take(operand, STEPS) for operand in (u, delta, B, C))

    def among_states(value, axis):
        """(L, B, 1, D) or (L, B, N, 1); one state needs no axis."""
        return value if N == 1 else g.node("Unsqueeze", [value, g.integers(axis)])
    for k in range(K):
        rates = g.known(A, f"[{k}]", lambda array, k=k: array[k, :, 0] if N == 1 else array[k].T)
        decays.append(g.node("Mul", [among_states(delta[k], 2), rates]))
        driven = among_states(g.node("Mul", [delta[k], u[k]]), 2)
        inputs.append(g.node("Mul", [driven, among_states(B[k], 3)]))
    decay = g.node("Exp", [g.concatenate(decays, 2)])                       # (L, B, K*D) or (L, B, K*N, D)
    width = (K * dim,) if N == 1 else (K * N, dim)
    hidden = g.split(_recurrence(g, decay, g.concatenate(inputs, 2), width), [width[0] // K] * K, 2)
    for k in range(K):
        y = g.node("Mul", [hidden[k], among_states(C[k], 3)])
        if N > 1:
            y = g.node("ReduceSum", [y, g.integers(2)], keepdims=0)
        skip = g.node("Mul", [u[k], g.known(D, f"[{k}]", lambda array, k=k: array[k])])
        results.append(g.node("Add", [skip, y]))
    return STEPS, results


def _recurrence(g, decay, values, width):
    """h[l] = h[l-1] * decay[l] + values[l] along the first axis, from h = 0; all (L, B, *width)."""
    zero = g.node("ConstantOfShape", [g.sizes(Axis(decay, 1), *width)])
    body, shape = GraphBuilder(), ("batch", *width)
    body.scope = g.unique(g.scoped("step"))                                # names there must not be those around it
    before, fading, driven = (f"{body.scope}/{name}" for name in ("h", "decay", "input"))
    # Factors in this order: OpenVINO 2026.4 with fixed shapes computes something else for decay * h.
    h = body.node("Add", [driven, body.node("Mul", [before, fading])])
    shown = body.node("Identity", [h])                                      # a value can be an output only once
    graph = body.graph("step", [(name, shape) for name in (before, fading, driven)], [(h, shape), (shown, shape)])
    return g.node("Scan", [zero, decay, values], 2, body=graph, num_scan_inputs=2)[1]
