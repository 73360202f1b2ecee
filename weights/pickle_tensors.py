"""An interpreter of pickle that builds tensors and nothing else.

Unpickling, as Python does it, calls whatever the file names. This interpreter knows a fixed, short table of names
(an ordered dict, PyTorch's rebuilding functions, its storage classes); it imports nothing and calls nothing but its own
functions. Every other name becomes a `Foreign`: an inert marker that swallows calls and state, so that the tensors
beside it can still be read. Opcodes outside those that `torch.save` writes, with protocols 2 to 5, are refused.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from mmref.errors import CheckpointError

MAX_DEPTH, MAX_NODES, MAX_RANK, MAX_EMPTY = 200, 1_000_000, 64, 1 << 31
MAX_EXPANDED = 1 << 25  # elements of a tensor (or of all of a file's) that share storage; a whole network has 1 << 24

STORAGE_DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "bf16",
                  "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1",
                  "ByteStorage": "|u1", "BoolStorage": "|b1"}
ITEM_SIZE = {code: 2 if code == "bf16" else int(code[-1]) for code in STORAGE_DTYPES.values()}


@dataclass(eq=False, slots=True)
class Foreign:
    """Something a file asked for that is not in the table; remembered by name, never run."""

    name: str
    advice: str = ""  # how to save it instead


@dataclass(frozen=True)
class StorageType:
    dtype: str


@dataclass(frozen=True)
class Storage:
    """`numel` elements of `dtype` in the record data/`key`."""

    dtype: str
    key: str
    numel: int


@dataclass(eq=False, slots=True)
class Tensor:
    """A strided view of a storage; within its bounds, as checked before this object exists.

    `negative`: the view's values are the storage's with the other sign. `subclass`: the class of a tensor that is not
    torch.Tensor's own, by name.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negative: bool = False
    subclass: str | None = None


@dataclass
class Pickle:
    """What a pickle held: its top object, the names it met that are not in the table, and every storage it wants."""

    value: object
    foreign: set[str] = field(default_factory=set)
    storages: dict[str, Storage] = field(default_factory=dict)


class _Mark:
    pass


def _ordered_dict(pairs=()):
    if isinstance(pairs, Foreign):
        return pairs
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise CheckpointError("data.pkl makes an ordered dict of something that is not a list of pairs")
    return _checked_keys(dict, pairs)


def _checked_keys(make, pairs):
    """`make(pairs)` once every key is a plain value: hashing a nest of tuples can take forever."""
    for key, _ in pairs:
        if not all(map(_is_plain, key) if isinstance(key, tuple) and len(key) <= MAX_RANK else [_is_plain(key)]):
            raise CheckpointError(f"data.pkl has a {type(key).__name__} for a key, expected text or a number")
    return make(pairs)


def _is_plain(key):
    """Hashed at once; no integers beyond 64 bits, as those that collide are easily found."""
    small = isinstance(key, int) and -1 << 63 <= key < 1 << 63
    return small or isinstance(key, (str, bytes, float, Foreign, type(None)))


def _rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, backward_hooks, metadata=None):
    if isinstance(storage, Foreign):
        return storage
    if not isinstance(storage, Storage):
        raise CheckpointError(f"data.pkl makes a tensor of {short(storage)}, which is not a storage")
    integers = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_RANK
    if not integers or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)):
        raise CheckpointError(f"tensor in record data/{storage.key}: offset, shape and stride must be integers >= 0 of "
                              f"equal rank, at most {MAX_RANK}, got {short(offset)}, {short(shape)}, "
                              f"{short(stride)}")
    elements = prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    beyond = last >= storage.numel if elements else prod(n or 1 for n in shape) > MAX_EMPTY
    if offset > storage.numel or beyond:
        raise CheckpointError(f"tensor in record data/{storage.key}: shape {short(shape)}, stride {short(stride)}, "
                              f"offset {short(offset)} reach beyond its {storage.numel} elements")
    if elements > max(storage.numel, MAX_EXPANDED):
        raise CheckpointError(f"tensor in record data/{storage.key}: shape {short(shape)} expands {storage.numel} "
                              f"elements beyond {MAX_EXPANDED}")
    used = tuple(s if n > 1 and elements else 0 for n, s in zip(shape, stride, strict=True))
    return Tensor(storage, offset, shape, used, _negative(metadata, storage))


def _negative(metadata, storage) -> bool:
    """The bit that the imaginary part of a conjugate has: its storage holds the values with the other sign."""
    metadata = {} if metadata is None else metadata
    known = isinstance(metadata, dict) and set(metadata) <= {"neg", "conj"}
    if not known or not all(type(value) is bool for value in metadata.values()):
        raise CheckpointError(f"tensor in record data/{storage.key}: its metadata must be neg or conj, "
                              f"got {short(metadata)}")
    negative = metadata.get("neg", False)
    if metadata.get("conj") or (negative and storage.dtype not in ("<f4", "<f8", "<f2", "bf16")):
        raise CheckpointError(f"tensor in record data/{storage.key}: numbers of {storage.dtype} cannot be "
                              f"{'negated' if negative else 'conjugate'}")
    return negative


def _rebuild_parameter(data, requires_grad, backward_hooks, state=None):
    """A parameter; `state` are attributes that Python code has set on it, not numbers."""
    if not isinstance(data, (Tensor, Foreign)):
        raise CheckpointError(f"data.pkl makes a parameter of {short(data)}, which is not a tensor")
    return data


def _rebuild_from_type_v2(function, kind, arguments, state):
    """A tensor with attributes, an nn.Buffer, or a subclass, whose numbers are taken if they can mean nothing else."""
    if isinstance(function, Foreign):
        return Foreign(function.name)
    if function is not _rebuild_tensor_v2 or not isinstance(arguments, tuple):
        raise CheckpointError("data.pkl makes a tensor of a type from something that is not a type")
    tensor = _rebuild_tensor_v2(*arguments)
    if isinstance(tensor, Foreign) or kind is _TENSOR_TYPE:
        return tensor
    if not isinstance(kind, Foreign):
        raise CheckpointError(f"data.pkl makes a tensor of the type {short(kind)}, which is not a type")
    if state not in (None, {}, ()):  # attributes such as a scale say what the numbers mean
        return Foreign(kind.name, "a tensor subclass with attributes of its own: save plain tensors, "
                                  "{name: t.as_subclass(torch.Tensor)}")
    tensor.subclass = kind.name
    return tensor


def _torch_size(items=()):
    return tuple(items) if isinstance(items, (list, tuple)) else Foreign("torch.Size")


def _torch_device(*arguments):
    return "device"


_TENSOR_TYPE = object()  # torch.Tensor and what is saved as one
_TABLE: dict[str, object] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch._utils _rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor _rebuild_from_type_v2": _rebuild_from_type_v2,
    **dict.fromkeys(("torch Tensor", "torch.nn.parameter Parameter", "torch.nn.parameter Buffer"), _TENSOR_TYPE),
    "torch Size": _torch_size,
    "torch device": _torch_device,
    **{f"torch {name}": StorageType(code) for name, code in STORAGE_DTYPES.items()},
    **{f"torch {name}": name for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16",
                                          "int8", "uint8", "bool", "float", "double", "half", "long", "int", "short")},
}


# What can stand where a tensor is expected, and how to save it instead.
_ADVICE = {
    "qtensor": "a quantised tensor: save tensor.dequantize()", "QInt": "a quantised tensor: save tensor.dequantize()",
    "QUInt": "a quantised tensor: save tensor.dequantize()", "sparse": "a sparse tensor: save tensor.to_dense()",
    "Complex": "complex numbers, which no network here has", "meta_tensor": "a tensor on the device meta, without data",
    "Uninitialized": "a lazy module's parameter without data: run the model once before saving",
    "_rebuild_tensor_v3": "of a dtype such as uint16 or float8: save tensor.float()",
    "nested_tensor": "a nested tensor: save plain ones", "wrapper_subclass": "a tensor subclass: save plain tensors",
    "multiarray._reconstruct": "a NumPy array: save torch.from_numpy(array)",
    "multiarray.scalar": "a NumPy number: save torch.tensor(number)",
}


def described(value) -> str:
    """What a value of a file is, in words, for where it should have been a tensor."""
    if not isinstance(value, Foreign):
        return type(value).__name__
    words = advice(value)
    return f"something of {value.name}" + f" ({words})" * bool(words)


def advice(value: Foreign) -> str:
    """How to save a tensor of a kind that is not read; empty for what is not a tensor."""
    return value.advice or next((words for part, words in _ADVICE.items() if part in value.name), "")


class _Repr(reprlib.Repr):
    def repr_int(self, value, level):
        return super().repr_int(value, level) if abs(value) < 1 << 10_000 else "an integer of thousands of digits"


_repr = _Repr()
_repr.maxstring = _repr.maxother = 200


def short(value) -> str:
    """A repr bounded in depth and length: a plain one of a nest of tuples can take forever."""
    text = _repr.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def load(data: bytes, strict: bool = False) -> Pickle:
    """Interpret one pickle stream (protocol 2 to 5, as `torch.save` writes it).

    strict: refuse any name outside the table instead of replacing it by a marker.
    Raises CheckpointError for an opcode that `torch.save` does not use, for anything malformed, for more than
    MAX_NODES values or nesting beyond MAX_DEPTH, and for bytes after the end.
    """
    try:
        return _Interpreter(data, strict).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(f"data.pkl is malformed ({type(error).__name__}: {short(str(error))})") from error


class _Interpreter:
    def __init__(self, data: bytes, strict: bool):
        self.data, self.strict, self.position = data, strict, 0
        self.stack: list = []
        self.memo: dict[int, object] = {}
        self.depths: dict[int, int] = {}  # id of a container -> how deep it is nested
        self.alive: list = []             # keeps those ids from being used again
        self.nodes = 0
        self.result = Pickle(None)

    def run(self) -> Pickle:
        if self.data[:1] != b"\x80" or self.data[1:2] not in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise CheckpointError("data.pkl must be a pickle of protocol 2 (torch.save's default) to 5, "
                                  f"got the bytes {self.data[:2]!r}")
        self.position, protocol = 2, self.data[1]
        while True:
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                break
            since, operation = _OPERATIONS.get(code, (6, None))
            if since > protocol:
                raise CheckpointError(f"data.pkl uses pickle opcode {code:#04x} at byte {self.position - 1}, which "
                                      f"torch.save never writes with protocol {protocol}: refused")
            self.nodes += 1
            self.count()
            operation(self)
        if len(self.stack) != 1:
            raise CheckpointError(f"data.pkl ends with {len(self.stack)} values instead of one")
        if self.position != len(self.data):
            raise CheckpointError(f"data.pkl continues for {len(self.data) - self.position} bytes after its end")
        self.result.value = self.stack[0]
        return self.result

    def count(self):
        if self.nodes > MAX_NODES:
            raise CheckpointError(f"data.pkl holds more than {MAX_NODES} values")

    # ------------------------------------------------------------------- reading

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.position:
            raise CheckpointError(f"data.pkl ends in the middle of a value: {count} bytes wanted at {self.position}")
        self.position += count
        return self.data[self.position - count:self.position]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.position, self.position + 1000)
        return self.take(end - self.position + 1)[:-1].decode("utf-8")

    def text(self, form: str) -> str:
        return self.take(self.number(form)).decode("utf-8", "surrogatepass")

    # --------------------------------------------------------------------- stack

    def push(self, value) -> None:
        self.stack.append(value)

    def pop(self):
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise CheckpointError("data.pkl takes a value from below a mark")
        return value

    def top(self):
        if isinstance(self.stack[-1], _Mark):
            raise CheckpointError("data.pkl changes a value from below a mark")
        return self.stack[-1]

    def pop_to_mark(self) -> list:
        for start in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[start], _Mark):
                items = self.stack[start + 1:]
                del self.stack[start:]
                return items
        raise CheckpointError("data.pkl asks for a mark that is not there")

    def container(self, value, parts):
        """`value`, nested one deeper than the deepest of `parts`."""
        depth = 1 + max((self.depths.get(id(part), 0) for part in parts), default=0)
        if depth > MAX_DEPTH:
            raise CheckpointError(f"data.pkl nests more than {MAX_DEPTH} deep")
        self.depths[id(value)] = max(depth, self.depths.get(id(value), 0))
        self.alive.append(value)
        return value

    # ---------------------------------------------------------------- operations

    def global_by_line(self):
        module = self.line()
        self.push_global(module, self.line())

    def global_by_stack(self):
        name, module = self.pop(), self.pop()
        if not all(isinstance(part, str) and len(part) <= 1000 for part in (module, name)):
            raise CheckpointError(f"data.pkl names {short((module, name))}, which cannot be a name")
        self.push_global(module, name)

    def push_global(self, module, name):
        name = f"{module} {name}"
        if name in _TABLE:
            self.push(_TABLE[name])
            return
        dotted = name.replace(" ", ".")
        if not dotted.isprintable():  # it is going to be printed, and a terminal obeys control characters
            raise CheckpointError(f"data.pkl names {short(dotted)}, which cannot be a name")
        if self.strict:
            raise CheckpointError(f"data.pkl names {dotted}, which is not a tensor: refused (strict)")
        self.result.foreign.add(dotted)
        self.push(Foreign(dotted))

    def reduce(self):
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise CheckpointError("data.pkl calls something with arguments that are not a tuple")
        if isinstance(function, Foreign):
            self.push(Foreign(function.name, function.advice))
        elif isinstance(function, Callable) and function in _FUNCTIONS:
            for argument in arguments:  # a dict made of a long list, again and again, would fill the memory
                self.nodes += len(argument) if isinstance(argument, (list, tuple)) else 0
            self.count()
            self.push(self.container(function(*arguments), arguments))
        else:
            raise CheckpointError(f"data.pkl calls {short(function)}, which is not a function")

    def new_with_keywords(self):
        """NEWOBJ_EX: a class, arguments, keyword arguments; nothing in the table takes the last."""
        self.pop()
        self.pop()
        function = self.pop()
        if not isinstance(function, Foreign):
            raise CheckpointError(f"data.pkl calls {short(function)} with keywords, which it does not take")
        self.push(Foreign(function.name, function.advice))

    def build(self):
        """State for an object: nothing we read keeps any, so it is dropped, whatever it says."""
        self.pop()
        self.top()

    def persistent(self):
        pid = self.pop()
        valid = (isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[0], str) and pid[0] == "storage"
                 and isinstance(pid[1], (StorageType, Foreign)) and isinstance(pid[2], str) and pid[2].isascii()
                 and pid[2].isdigit() and isinstance(pid[3], str) and type(pid[4]) is int and 0 <= pid[4] < 1 << 63)
        if not valid:
            raise CheckpointError("data.pkl: a persistent id must be ('storage', type, digits, location, count), "
                                  f"got {short(pid)}")
        if isinstance(pid[1], Foreign):  # complex numbers, quantised ones: not ours to read, no reason to stop
            self.push(Foreign(pid[1].name))
            return
        storage = Storage(pid[1].dtype, pid[2], pid[4])
        known = self.result.storages.setdefault(storage.key, storage)
        if known != storage:
            raise CheckpointError(f"data.pkl uses record data/{storage.key} as {known.dtype} x {known.numel} and as "
                                  f"{storage.dtype} x {storage.numel}")
        self.push(known)

    def put(self, index):
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise CheckpointError(f"data.pkl asks for memo {index}, which was never put")
        self.push(self.memo[index])

    def add_items(self):
        """Items of a set, which is a marker: no set holds weights."""
        self.pop_to_mark()
        if not isinstance(self.top(), Foreign):
            raise CheckpointError("data.pkl adds items to something that is not a set")

    def frozen_set(self):
        self.pop_to_mark()
        self.push(Foreign("frozenset"))

    def frame(self):
        size = self.number("<Q")
        if size > len(self.data) - self.position:
            raise CheckpointError(f"data.pkl ends in the middle of a frame: {size} bytes wanted at {self.position}")

    def make_tuple(self, items):
        self.push(self.container(tuple(items), items))

    def set_items(self, items):
        target = self.top()
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise CheckpointError("data.pkl sets items of something that is not a dict")
        _checked_keys(target.update, list(zip(items[::2], items[1::2], strict=True)))
        self.container(target, items)

    def append(self, items):
        target = self.top()
        if isinstance(target, Foreign):
            return
        if not isinstance(target, list):
            raise CheckpointError("data.pkl appends to something that is not a list")
        target.extend(items)
        self.container(target, items)


def _integer(machine, form):
    machine.push(int.from_bytes(machine.take(machine.number(form)), "little", signed=True))


_FUNCTIONS = {value for value in _TABLE.values() if callable(value)}
_BY_PROTOCOL = {2: {
    "}": lambda m: m.push({}),
    "]": lambda m: m.push([]),
    ")": lambda m: m.push(()),
    "(": lambda m: m.push(_Mark()),
    "q": lambda m: m.put(m.number("<B")),
    "r": lambda m: m.put(m.number("<I")),
    "h": lambda m: m.get(m.number("<B")),
    "j": lambda m: m.get(m.number("<I")),
    "X": lambda m: m.push(m.text("<I")),
    "c": _Interpreter.global_by_line,
    "R": _Interpreter.reduce,
    "b": _Interpreter.build,
    "\x81": _Interpreter.reduce,  # NEWOBJ: a class and its arguments, called alike
    "t": lambda m: m.make_tuple(m.pop_to_mark()),
    "\x85": lambda m: m.make_tuple([m.pop()]),
    "\x86": lambda m: m.make_tuple([m.pop(), m.pop()][::-1]),
    "\x87": lambda m: m.make_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    "J": lambda m: m.push(m.number("<i")),
    "K": lambda m: m.push(m.number("<B")),
    "M": lambda m: m.push(m.number("<H")),
    "\x8a": lambda m: _integer(m, "<B"),
    "\x8b": lambda m: _integer(m, "<I"),
    "G": lambda m: m.push(m.number(">d")),
    "N": lambda m: m.push(None),
    "\x88": lambda m: m.push(True),
    "\x89": lambda m: m.push(False),
    "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    "u": lambda m: m.set_items(m.pop_to_mark()),
    "a": lambda m: m.append([m.pop()]),
    "e": lambda m: m.append(m.pop_to_mark()),
    "Q": _Interpreter.persistent,
}, 3: {
    "B": lambda m: m.push(m.take(m.number("<I"))),
    "C": lambda m: m.push(m.take(m.number("<B"))),
}, 4: {
    "\x8c": lambda m: m.push(m.text("<B")),
    "\x8d": lambda m: m.push(m.text("<Q")),
    "\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    "\x8f": lambda m: m.push(Foreign("set")),
    "\x90": _Interpreter.add_items,
    "\x91": _Interpreter.frozen_set,
    "\x92": _Interpreter.new_with_keywords,
    "\x93": _Interpreter.global_by_stack,
    "\x94": lambda m: m.put(len(m.memo)),
    "\x95": _Interpreter.frame,
}, 5: {
    "\x96": lambda m: m.push(m.take(m.number("<Q"))),  # BYTEARRAY8
}}
_OPERATIONS = {ord(code): (protocol, operation) for protocol, operations in _BY_PROTOCOL.items()
               for code, operation in operations.items()}
