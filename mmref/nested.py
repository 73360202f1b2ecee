"""Results of networks that give several arrays, in lists, tuples and dictionaries."""

from __future__ import annotations


def arrays_of(results) -> list:
    """The arrays of a structure in its order; one of itself alone."""
    if not isinstance(results, (list, tuple, dict)):
        return [results]
    parts = results.values() if isinstance(results, dict) else results
    return [array for part in parts for array in arrays_of(part)]
