"""Memory of the engine: one aligned block of weights a model, one block of activations a plan.

Activations have lives: from the operation that writes them to the last that reads them. A plan is a list, so both are
known, and a new buffer takes the first hole that is large enough. Nothing is allocated while a plan runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.kernels.target import FLOAT_BYTES, VECTOR_BYTES, round_up

PAGE, HUGE_PAGE = 1 << 12, 1 << 21


def aligned_zeros(size: int) -> np.ndarray:
    """`size` zero bytes that begin at a page, and at a huge page where NumPy asks the system for such (from 4 MB)."""
    alignment = HUGE_PAGE if size >= 2 * HUGE_PAGE else PAGE
    block = np.zeros(size + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    return block[start:start + size]


class Slabs:
    """Arrays that are kept for good, one behind the other in large blocks.

    A forward of one small picture reads all weights once, 35 to 68 MB: in pages of 4 kB the translation of addresses
    would be a large part of the time."""

    SIZE = 8 * HUGE_PAGE

    def __init__(self):
        self.blocks: list[np.ndarray] = []
        self.free = 0

    def put(self, array: np.ndarray) -> int:
        """Address of a copy of `array`, aligned to a vector, with a readable vector behind it."""
        size = round_up(array.nbytes, VECTOR_BYTES) + VECTOR_BYTES
        if size > self.free:
            self.blocks.append(aligned_zeros(max(size, self.SIZE)))
            self.free = len(self.blocks[-1])
        block, start = self.blocks[-1], len(self.blocks[-1]) - self.free
        block[start:start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.free -= size
        return block.ctypes.data + start


@dataclass(frozen=True)
class Place:
    """An address in a block that has none yet: bytes from the start of the plan's block of that number."""

    offset: int
    block: int = 0

    def __add__(self, count: int) -> Place:
        return Place(self.offset + count, self.block)


@dataclass(frozen=True)
class Map:
    """Channels-last activations: `pixels` (of all images) of `channels` channels, `pitch` bytes apart."""

    place: Place
    pitch: int
    channels: int
    size: int  # bytes in the arena
    row: int = 0  # bytes from one line of pixels to the next, where a border lies between them; 0: pitch * width

    def part(self, first: int, channels: int) -> Map:
        """`channels` of them from channel `first` on; not to be freed."""
        return Map(self.place + first * FLOAT_BYTES, self.pitch, channels, 0, self.row)


class Arena:
    """Hands out places in a block whose size is known once everything is handed out."""

    def __init__(self, block: int = 0):
        self.block, self.size = block, 0
        self.holes: list[tuple[int, int]] = []  # (offset, size), by offset, never touching each other

    def take(self, size: int) -> Place:
        size = round_up(size, VECTOR_BYTES)
        for index, (offset, hole) in enumerate(self.holes):
            if hole >= size:
                self.holes[index:index + 1] = [(offset + size, hole - size)] if hole > size else []
                return Place(offset, self.block)
        if self.holes and sum(self.holes[-1]) == self.size:  # lengthen the hole at the end
            offset, _ = self.holes.pop()
        else:
            offset = self.size
        self.size = offset + size
        return Place(offset, self.block)

    def fresh(self, size: int) -> Place:
        """A place where nothing lay before: its bytes are zero when a plan runs for the first time."""
        offset = self.size
        self.size += round_up(size, VECTOR_BYTES)
        return Place(offset, self.block)

    def give(self, place: Place, size: int) -> None:
        """Take back a place: what is handed out after this may lie there."""
        self.holes.append((place.offset, round_up(size, VECTOR_BYTES)))
        self.holes.sort()
        merged = []
        for offset, hole in self.holes:
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + hole)
            else:
                merged.append((offset, hole))
        self.holes = merged

    def map(self, pixels: int, channels: int) -> Map:
        pitch = round_up(channels) * FLOAT_BYTES
        return Map(self.take(pixels * pitch), pitch, channels, pixels * pitch)

    def free(self, *maps: Map) -> None:
        for used in maps:
            self.give(used.place, used.size)
