"""Names that others give to values, read as the reference's: prefixes of wrappers, `/ . _` alike, exporters' habits.

    module.blocks1.0.dw0                            a wrapper's prefix (DataParallel, a module in a module)
    /blocks1/blocks1.0/dw0/m/c/Conv_output_0        torch.onnx: scopes that repeat their parents, then the operation
    blocks1_0_dw0_m_c                               torch.fx
    blocks1.0.dw0.m.c/Conv + blocks1.0.dw0/Add      an engine's fused layer: its value is the last one's

A name says what a value should be, never that it is: see matching.py.
"""

from __future__ import annotations

import re
from collections import Counter

SEPARATORS = re.compile(r"[/._:\[\](){}\s*-]+")


def plain(name: str) -> str:
    """The name with every separator alike and repeated scopes once: a key that equal names share."""
    return ".".join(tokens(name))


def tokens(name: str) -> list[str]:
    """The words of a name, lower case; scopes of torch.onnx that repeat their parents are joined with them."""
    last = name.split(" + ")[-1]
    parts: list[str] = []
    for scope in filter(None, last.split("/")):
        words = [word.lower() for word in SEPARATORS.split(scope) if word]
        # "patch_embed", "patch_embed.0" and "wavelet_convs.0" after a parent's own name
        for size in range(min(len(words) - 1, len(parts)), 0, -1):
            if parts[-size:] == words[:size]:
                words = words[size:]
                break
        parts += words
    return parts


def behind(name: str, word: str) -> tuple[str, ...]:
    """The words of a name behind the last `word` in it, all of them where it is not: the operation of a layer."""
    words = tokens(name)
    word = (tokens(word) or [""])[-1]
    return tuple(words[len(words) - words[::-1].index(word):] if word in words else words)


def paired(reference, candidate) -> dict[str, list[str]]:
    """{reference's name: the candidate's names that read like it, likeliest last} with the prefix that most names share
    left out on either side, and operations behind a layer's name. A layer's value is the last that carries its name."""
    exact = set(candidate) & set(reference)
    if len(exact - {"input", "output"}) < 2:
        exact = set()
    ours: dict[tuple, str] = {}
    for name in reference:
        ours.setdefault(tuple(tokens(name)), name)
    ours = {key: name for key, name in ours.items() if name not in exact}
    lengths = sorted({len(key) for key in ours})
    words = {name: tuple(tokens(name)) for name in candidate if name not in exact}
    prefixes: Counter = Counter()
    for key in words.values():
        for start in range(min(len(key), 6)):
            if _longest(key[start:], ours, lengths):
                prefixes[key[:start]] += 1
    prefix = max(prefixes, key=lambda p: (prefixes[p], -len(p))) if prefixes else ()
    found: dict[str, list[str]] = {name: [name] for name in reference if name in exact}
    for name, key in words.items():
        if key[:len(prefix)] == prefix and prefix:
            name_of = _longest(key[len(prefix):], ours, lengths) if len(key) > len(prefix) else ours.get(("output",))
        else:
            name_of = ours.get(key) or (_longest(key, ours, lengths) if not prefix else None)
        if name_of:
            found.setdefault(name_of, []).append(name)
    if not set(found) - {"input", "output"}:
        found |= _under_a_prefix(reference, words)
    return found


def _longest(key, ours, lengths):
    """The reference's name that the first words of `key` are, the longest; what is behind it must be an operation."""
    for length in reversed(lengths):
        if length <= len(key) and key[:length] in ours and all(map(_operation, key[length:])):
            return ours[key[:length]]
    return None


OPERATION = re.compile(r"\d+|output|input|conv\w*|relu\w*|add\w*|mul\w*|gemm|matmul|batch\w*|norm\w*|sigmoid|concat|"
                       r"cat|reduce\w*|global\w*pool|layer\w*|identity|clip|silu|div|sub|slice|split|transpose|reshape|"
                       r"flatten|softplus|pointwise|myelin|reformat|out|fused|convolution|elementwise|kernel|bn|act")


def _operation(word) -> bool:
    return OPERATION.fullmatch(word) is not None


def _under_a_prefix(reference, words):
    """The reference's names without their own prefix, for a candidate that is only a part of the network."""
    prefixes: Counter = Counter()
    known = {key: name for name, key in words.items()}
    for name in reference:
        key = tuple(tokens(name))
        for start in range(1, min(len(key), 4)):
            if key[start:] in known:
                prefixes[key[:start]] += 1
    if not prefixes or prefixes.most_common(1)[0][1] < 3:
        return {}
    prefix = prefixes.most_common(1)[0][0]
    keys = {name: tuple(tokens(name)) for name in reference}
    return {name: [known[key[len(prefix):]]] for name, key in keys.items()
            if key[:len(prefix)] == prefix and key[len(prefix):] in known}
