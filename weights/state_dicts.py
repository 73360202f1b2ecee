"""Find the weights in what was saved: which entry, under which prefix, and what beside them is not weights.

Trainers save dicts of dicts: the raw weights, their moving average, an optimizer. Wrappers put their names before every
parameter (`module.` of data-parallel training, `_orig_mod.` of torch.compile, `model.` of Lightning, `backbone.` of
mmengine), and tools leave counters among them. What is decided here is said in words: `Choice.notes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import NamedTuple

from mmref.arguments import check_kind
from mmref.errors import CheckpointError
from mmref.weights.pickle_tensors import Foreign, advice, described, short

# Names under which raw weights are kept, the most telling first, and averages whose name comes first among several.
RAW = ("net", "state_dict", "model", "model_state_dict", "module", "network", "params", "weights", "model_state",
       "net_state_dict", "net_state", "state")
AVERAGES = ("net_E", "model_ema", "state_dict_ema")
_SURELY_AVERAGE = {"ema", "emas", "swa", "shadow", "polyak"}
_AVERAGE_WORDS = _SURELY_AVERAGE | {"avg", "average", "averaged"}  # the rest may be an average of losses
_KIND = r"(net|model|module|weights?|params?|state|dict)"
_GLUED = re.compile(f"{_KIND}ema|ema{_KIND}")  # words that are written as one
_BESIDE = re.compile(r"optim|(lr_?)?sched|scaler|rng", re.IGNORECASE)  # entries that hold tensors and no weights

WRAPPERS = ("module", "_orig_mod", "model", "backbone", "net", "network", "_module", "_forward_module",
            "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "ema_model", "averaged_model")
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # stand in the middle of names, too
_COUNTS = ("total_ops", "total_params")  # thop's, beside every layer's parameters
_LOSSES = ("criterion", "loss", "loss_fn", "loss_func", "data_preprocessor")
_DEPTH, MAX_ENTRIES = 4, 64


@dataclass(frozen=True)
class Choice:
    """One state dict out of a file.

    source   "flat" for a file that is one state dict, else the entry's path, such as "net_E" or "state.model"
    tensors  {name: tensor}, without the prefix of wrappers
    others   paths of the other state dicts
    prefix   what was cut from the beginning of every name
    notes    what was decided, in words
    """

    source: str
    tensors: dict[str, object]
    others: tuple[str, ...] = ()
    prefix: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    path: str
    values: Mapping
    average: bool
    known: bool  # whether its place or its name says that these are a network's weights


def is_name(name) -> bool:
    """Names are printed, and terminals obey control characters; lone surrogates cannot be written."""
    return isinstance(name, str) and name.isprintable() and len(name) <= 200


def check_name(name) -> None:
    """Raise CheckpointError for what cannot be a tensor's name."""
    if not is_name(name):
        raise CheckpointError(f"a tensor's name must be printable text of at most 200 characters, got {short(name)}")


def says_average(path: str, words: set[str] = _AVERAGE_WORDS) -> bool:
    """Whether a name is that of a moving average: ema, net_E, modelEMA, state_dict_ema, swa_model, shadow_params."""
    found = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", path)}
    return (not words.isdisjoint(found) or any(_GLUED.fullmatch(word) for word in found)
            or any(re.fullmatch(r"(net\w*|model)_E", part) for part in path.split(".")))


def is_array(value) -> bool:
    """Tensors of a file and arrays of any library; what else may stand in a dict has no shape and dtype."""
    return hasattr(value, "shape") and (hasattr(value, "dtype") or hasattr(value, "storage"))


def choose(top, prefer: str = "auto", exact: bool = False) -> Choice:
    """The state dict to take from a file's top object.

    prefer  a path, its last part, "ema" (a moving average), "raw" (the weights it was made of), or "auto": the moving
            average where it is there
    exact   refuse numbers, text and the like among the tensors, instead of leaving them out

    Raises CheckpointError: nothing that could be weights, no such entry, several of which none is known to be the
    weights, names that cannot be.
    """
    check_kind("prefer", prefer, str, "the name of an entry, ema, raw or auto")
    if not isinstance(top, Mapping):
        raise CheckpointError(f"must hold a dict of tensors, got {_whole(top)}")
    contents = _Contents()
    entries = list(_entries(top, contents))
    if not entries:
        raise CheckpointError(_nothing(top))
    raw_is_average = _swapped(top)
    if raw_is_average:
        entries = [replace(e, average=e.average != (e.path in ("state_dict", "ema_state_dict"))) for e in entries]
    cleaned: dict[int, Choice] = {}

    def clean(entry):
        if id(entry.values) not in cleaned:
            cleaned[id(entry.values)] = _clean(entry.values, contents, exact)
        return replace(cleaned[id(entry.values)], source=entry.path)

    entry, notes = _pick(entries, prefer, clean)
    taken = clean(entry)
    if entry.average:
        for raw in (e for e in _ranked(entries) if not e.average):
            taken, completed = _complete(taken, clean(raw))
            notes += completed
    if raw_is_average:
        notes.append("mmengine keeps the moving average in state_dict, the raw weights in ema_state_dict")
    elif not entry.average:
        notes += [f"the moving average {path} cannot be read: {what}"
                  for path, what in islice(_unreadable_averages(top, contents), 3)]
    known = any(e.known for e in entries)  # then what is not is an optimizer's, say, and no other choice of weights
    others = tuple(e.path for e in entries if e is not entry and (e.known or e.average or not known
                                                                  or _same_names(e.values, entry.values)))
    return replace(taken, others=others, notes=(*notes, *taken.notes))


# ------------------------------------------------------------------------------------------ which entry

class _Contents:
    """What dicts and lists hold, each looked through once: a file may name a long one a hundred thousand times.

    contents(value) gives a _Held."""

    def __init__(self):
        self._seen: dict[int, tuple[object, _Held]] = {}  # the object beside, so that its id stays its own

    def __call__(self, value) -> _Held:
        if not isinstance(value, (Mapping, list, tuple)):
            return _NOTHING
        if id(value) not in self._seen:
            self._seen[id(value)] = value, self._look(value)
        return self._seen[id(value)][1]

    @staticmethod
    def _look(value):
        named = isinstance(value, Mapping)
        arrays = weighty = dotted = foreign = False
        for name, item in value.items() if named else enumerate(value):
            foreign |= isinstance(item, Foreign)
            if is_array(item):
                arrays = True
                if len(item.shape) and not _BESIDE.match(str(name)):
                    weighty, dotted = True, dotted or "." in str(name)
        return _Held(named and arrays, weighty, dotted, arrays or foreign)


class _Held(NamedTuple):
    """What a container holds: tensors under names; more than single numbers, which are losses and counters; such under
    names with a dot, as a network's parameters have; anything that weights could hide in."""

    tensors: bool = False
    weighty: bool = False
    dotted: bool = False
    suspect: bool = False


_NOTHING = _Held()


def _walk(top, path=(), seen=None) -> Iterator[tuple[str, object]]:
    """(path, value) of everything below dicts with printable keys, each dict once, outermost first."""
    seen = seen if seen is not None else {id(top)}
    inner = []
    for key, value in top.items():
        if not is_name(key) or _BESIDE.match(key):
            continue
        yield ".".join((*path, key)), value
        if isinstance(value, Mapping) and id(value) not in seen and len(path) + 1 < _DEPTH:
            seen.add(id(value))
            inner.append((key, value))
    for key, value in inner:
        yield from _walk(value, (*path, key), seen)


def _entries(top, contents) -> Iterator[_Entry]:
    """Every state dict in `top`: dicts with tensors under names, itself included."""
    nested = list(_nested(top, contents))
    raw = any(_is_raw(path) for path, _ in nested)
    sure = not nested or contents(top).dotted
    if not raw and contents(top).tensors and (sure or contents(top).weighty):
        if sure:  # a flat file; what else it holds, but for an average, is nothing that weights are kept under
            nested = [(path, value) for path, value in nested if says_average(path)]
        ids = {id(value) for _, value in nested}
        nested.insert(0, ("flat", {name: value for name, value in top.items() if id(value) not in ids}))
    found: dict[int, dict] = {}
    for path, value in nested:
        if id(value) not in found:
            found[id(value)] = _groups(value, contents)
        groups = found[id(value)]
        for name, values in groups.items():
            yield _Entry(name if path == "flat" else f"{path}.{name}", values, says_average(name), True)
        if not groups:
            yield _Entry(path, value, says_average(path), sure if path == "flat" else _is_raw(path))


def _is_number(value):
    return is_array(value) and prod(value.shape) <= 1


def _is_raw(path):
    return path.rpartition(".")[2] in RAW and not says_average(path)


def _nested(top, contents) -> Iterator[tuple[str, Mapping]]:
    """(path, dict) of every state dict below `top`; of those whose names say nothing, such as an optimizer's, the first
    MAX_ENTRIES. CheckpointError for as many that are called a network's weights."""
    known = unknown = 0
    for path, value in _walk(top):
        if not contents(value).tensors:
            continue
        if _is_raw(path) or says_average(path):
            known += 1
            yield path, value
        elif contents(value).weighty and unknown < MAX_ENTRIES:
            unknown += 1
            yield path, value
        if known > MAX_ENTRIES:
            raise CheckpointError(f"holds more than {MAX_ENTRIES} state dicts that are called a network's weights")


def _groups(values, contents) -> dict[str, dict]:
    """{first part of the names: its state dict} where one dict holds a network and its average side by side."""
    groups: dict[str, dict] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".") if isinstance(name, str) else ("", "", "")
        if dot and first not in _LOSSES:
            groups.setdefault(first, {})[rest] = value
        elif not dot and not _is_number(value):
            return {}
    averages = set(filter(says_average, groups))
    if not averages or len(averages) == len(groups):
        return {}
    names = {first: set(_clean(group, contents).tensors) for first, group in groups.items()}
    raw = next(names[first] for first in groups if first not in averages)
    alike = all(found == raw or (first in averages and found <= raw and 2 * len(found) >= len(raw))
                for first, found in names.items())
    return groups if alike else {}


def _ranked(entries):
    """Best first: by the lists of names above, then the outermost, then as they stand in the file."""
    def rank(entry):
        last = entry.path.rpartition(".")[2]
        names = AVERAGES if entry.average else RAW
        return (names.index(last) if last in names else len(names), entry.path.count("."))
    return sorted(entries, key=rank)


def _pick(entries, prefer, clean) -> tuple[_Entry, list[str]]:
    """The entry to take, and what there is to say about it."""
    paths = [entry.path for entry in entries]
    ranked, notes = _ranked(entries), []
    averages, raws = [e for e in ranked if e.average], [e for e in ranked if not e.average]
    if prefer == "auto":
        known = [entry for entry in raws if entry.known or len(raws) == 1]
        for average in averages:
            if not known or _alike(clean(average), clean(known[0])):
                return average, notes
            notes.append(f"{average.path} is named like a moving average and holds other names: not taken")
        if known:
            return known[0], notes
        raise CheckpointError(f"holds several state dicts, none of which is known to be the weights: "
                              f"{', '.join(paths[:10])}; choose one (prefer, --prefer)")
    matches = ([e for e in entries if e.path == prefer]
               or [e for e in entries if e.path.rpartition(".")[2] == prefer]
               or {"ema": averages, "raw": raws if averages else []}.get(prefer, [])[:1])
    if len(matches) == 1:
        return matches[0], notes
    if paths == ["flat"]:
        raise CheckpointError(f"prefer={prefer!r}: the file is one state dict and has no such entry")
    raise CheckpointError(f"prefer must be one of {', '.join(paths[:10])}, got {prefer!r}")


def _alike(average, raw):
    """Whether an average is one of these weights: half of its names or more are theirs."""
    return 2 * len(average.tensors.keys() & raw.tensors.keys()) >= len(average.tensors)


def _same_names(other, values):
    """Whether another entry, whatever it is called, may be the same network: a teacher, a slow copy."""
    return 2 * len(other.keys() & values.keys()) > len(values)


def _complete(average, raw):
    """An average of learned parameters alone, with what it lacks from the weights it was made of: as trainers do it."""
    lacking = [name for name in raw.tensors if name not in average.tensors]
    if not lacking or not average.tensors.keys() <= raw.tensors.keys() or 2 * len(lacking) > len(raw.tensors):
        return average, []
    tensors = {name: average.tensors.get(name, tensor) for name, tensor in raw.tensors.items()}
    return (replace(average, tensors=tensors),
            [f"{len(lacking)} tensors that {average.source} lacks are those of {raw.source}, first {lacking[0]}"])


def _swapped(top) -> bool:
    """Whether mmengine wrote the file: its EMA hook exchanges the two, so that `state_dict` is the average."""
    meta = top.get("meta")
    return (isinstance(top.get("state_dict"), Mapping) and isinstance(top.get("ema_state_dict"), Mapping)
            and ("message_hub" in top or (isinstance(meta, Mapping) and "mmengine_version" in meta)))


def _unreadable_averages(top, contents) -> Iterator[tuple[str, str]]:
    lists = {}  # each looked through once, and kept, so that its id stays its own
    for path, value in _walk(top):
        if isinstance(value, Foreign) and says_average(path, _SURELY_AVERAGE):
            yield path, described(value)
        elif isinstance(value, (list, tuple)) and id(value) not in lists and says_average(path):
            lists[id(value)] = value
            if contents(value).suspect:
                yield path, "a list without names"
            elif any(contents(item).suspect for item in value):
                yield path, "a list of several: save one of them as a dict"


def _whole(value):
    if isinstance(value, Foreign):
        return f"{described(value)}: a whole object; load it where its code is installed and save its state_dict()"
    return f"a {type(value).__name__}"


def _nothing(top):
    objects = [(path, value) for path, value in _walk(top) if isinstance(value, Foreign)]
    objects.sort(key=lambda item: not (_is_raw(item[0]) or says_average(item[0])))
    if objects:
        path, value = objects[0]
        return (f"{path}: must be a tensor, got {described(value)}" if advice(value)
                else f"holds no state dict: {path} is {_whole(value)}")
    return f"holds no state dict, only {', '.join(map(short, list(top)[:10])) or 'an empty dict'}"


# ------------------------------------------------------------------------------------------ which names

def _clean(values, contents, exact=False) -> Choice:
    """A state dict's tensors without prefixes, counters and what is not a tensor."""
    tensors, left = {}, []
    for name, value in values.items():
        check_name(name)
        last = name.rpartition(".")[2]
        if last == "_extra_state" or (last in _COUNTS and _is_number(value)):
            left.append(name)
        elif is_array(value):
            tensors[name] = value
        elif not exact and (not _may_hold_weights(value, contents) or says_average(name, _SURELY_AVERAGE)):
            left.append(name)
        else:
            raise CheckpointError(f"{name}: must be a tensor, got {described(value)}")
    shadows = {f"ema_{name.replace('.', '_')}" for name in tensors}  # mmcv keeps raw weights as buffers beside them
    left += [name for name in tensors if name in shadows]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in shadows}
    prefix = ""
    while (first := _shared(tensors)) is not None:
        prefix += f"{first}."
        left += [name for name in tensors if not name.startswith(f"{first}.")]
        tensors = {name.removeprefix(f"{first}."): tensor for name, tensor in tensors.items()
                   if name.startswith(f"{first}.")}
    if _is_number(tensors.get("n_averaged")):
        left.append("n_averaged")
        del tensors["n_averaged"]
    notes = [f"prefix {prefix} cut from every name"] if prefix else []
    inside = [part for part in _INSIDE if any(part in name.split(".") for name in tensors)]
    if inside:
        notes.append(f"{'. and '.join(inside)}. cut from within names")
    plain = {".".join(part for part in name.split(".") if part not in inside): tensor
             for name, tensor in tensors.items()}
    if len(plain) != len(tensors):
        raise CheckpointError(f"some names are there with and without {'. and '.join(inside)}.")
    twice = [name for name in plain if f"module.{name}" in plain]
    if twice:
        raise CheckpointError(f"some names are there with and without the prefix module., first {twice[0]}")
    if not plain:
        raise CheckpointError(f"holds no tensors that could be weights, only {', '.join(left[:10])}")
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        notes.append(f"left out as no weights: {', '.join(left[:5])}{more}")
    return Choice("flat", plain, prefix=prefix, notes=tuple(notes))


def _may_hold_weights(value, contents):
    """Whether something that is not a tensor might hold weights: objects, and collections with tensors in them."""
    if isinstance(value, (Mapping, list, tuple)):
        return contents(value).suspect
    return not isinstance(value, (str, bytes, int, float, type(None)))


def _shared(tensors) -> str | None:
    """The wrapper that all names begin with, but for single numbers at the top and the parts of a loss."""
    firsts = set()
    for name, tensor in tensors.items():
        first, dot, _ = name.partition(".")
        if dot and first not in _LOSSES:
            firsts.add(first)
        elif not dot and not _is_number(tensor):
            return None
    return next(iter(firsts)) if len(firsts) == 1 and firsts <= set(WRAPPERS) else None
