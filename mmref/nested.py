"""Results of networks that give several arrays, in lists, tuples and dictionaries."""

from __future__ import annotations

from collections.abc import Iterator


def arrays_of(results) -> list:
    """The arrays of a structure in its order; one of itself alone."""
    return [array for _, array in named_arrays(results)]


def named_arrays(results, path: str = "") -> Iterator[tuple[str, object]]:
    """(place, array) of a structure in its order, the place as "cls.0"; empty of an array that stands alone."""
    if not isinstance(results, (list, tuple, dict)):
        yield path, results
        return
    for name, part in results.items() if isinstance(results, dict) else enumerate(results):
        yield from named_arrays(part, f"{path}.{name}" if path else str(name))
