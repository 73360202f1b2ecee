"""Write a state dict as `torch.save` would, without PyTorch: for examples, tests and the fuzzer.

A zip file of stored records, one pickle of protocol 2 that names PyTorch's rebuilding function for every tensor, and
one record of raw numbers per tensor.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np

from mmref.errors import ValueProblem

_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage",
             "int32": "IntStorage", "uint8": "ByteStorage", "bool": "BoolStorage"}


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(values) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _tensor(key: int, array: np.ndarray) -> bytes:
    """Opcodes for _rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())."""
    storage = _STORAGES.get(array.dtype.name)
    if storage is None:
        raise ValueProblem(f"tensors must be of dtype {', '.join(_STORAGES)}, got {array.dtype}")
    strides = [stride // array.itemsize for stride in array.strides]
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage") + f"ctorch\n{storage}\n".encode()
            + _text(str(key)) + _text("cpu") + _integer(array.size) + b"tQ" + _integer(0) + _integers(array.shape)
            + _integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def write_pth(path, state: dict[str, np.ndarray]) -> None:
    """Write {name: array} as a zip-form `.pth` file that PyTorch and `read_checkpoint` read.

    Raises ValueProblem for dtypes that PyTorch's storages do not have."""
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in state.items()}
    items = b"".join(_text(name) + _tensor(key, array) for key, (name, array) in enumerate(arrays.items()))
    pickle = b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."
    folder = Path(path).stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{folder}/data.pkl", pickle)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"{folder}/data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        archive.writestr(f"{folder}/version", "3\n")
