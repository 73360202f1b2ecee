"""Fuzz the readers: python tests/fuzz_readers.py --inputs 200000 --seed 0 --kind KIND

KIND is checkpoint, safetensors, index (a file in parts), config (timm's config.json) or picture. Every input is a good
file, damaged: bytes flipped, cut, doubled, moved, and for checkpoints also the pickle or a record damaged inside an
intact zip file, and for PNG pictures every checksum put right again, so that checksums do not shield what lies behind
them. Each must end in a typed error or in a right result:

    checkpoint   damage to the file as a whole: the very tensors of the good file; damage inside: well-formed tensors
    safetensors  the arrays that the safetensors library reads
    index        the whole file's tensors if the index was damaged, well-formed ones if a part was
    config       a transform and class names, or neither
    picture      a (3, size, size) float32 array without NaN

An audit hook watches that reading neither executes, imports nor opens anything; limits watch that it takes at most
SECONDS of processor time and MEMORY beside what the process has when it begins. Inputs that fail are kept in the folder
--save. The same seed makes the same inputs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pickletools
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mmref.errors import CheckpointError, MmrefError, PictureError
from mmref.weights.checkpoint import Checkpoint, read_checkpoint
from mmref.weights.pth_writer import write_pth
from mmref.weights.state_dicts import choose

SECONDS, MEMORY = 2.0, 1 << 30  # of processor time an input, of address space beside what the process has at its start
# What the interpreter tells an audit hook when code is run, loaded or let out; `open` is added for all but the input.
FORBIDDEN = ("exec", "compile", "import", "marshal.loads", "pickle.find_class", "os.system", "os.exec", "os.fork",
             "os.posix_spawn", "subprocess.Popen", "socket.connect", "shutil.rmtree", "os.remove", "os.rename",
             "ctypes.dlopen", "ctypes.dlsym")
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
_watching: dict = {"allowed": None, "seen": []}


class Fault(Exception):
    """A result that is not right, or a thing done that must not be done."""


def _audit(event, arguments):
    allowed = _watching["allowed"]
    if allowed is None:
        return
    if event in FORBIDDEN or (event == "open" and str(arguments[0]) not in allowed):
        _watching["seen"].append(f"{event} {arguments[0]!r:.80}")


# ------------------------------------------------------------------------------------------------ damage

def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to four pieces of damage."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        at, kind = int(rng.integers(len(out))), int(rng.integers(8))
        length = min(int(rng.integers(1, 1 + min(64, len(out)))), len(out) - at)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice(INTERESTING))
        elif kind == 2:
            out[at] = int(rng.integers(256))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at:at + length]
        elif kind == 5:
            out[at:at] = out[at:at + length]
        elif kind == 6:
            source = int(rng.integers(len(out)))
            out[at:at + length] = out[source:source + length]
        else:
            out[at:at + length] = rng.bytes(length)
    return bytes(out)


def damage_inside(data: bytes, rng: np.random.Generator) -> bytes:
    """A zip file with one record damaged, left out, doubled or swapped, and every checksum right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            info.CRC = info.CRC or None  # a file without checksums
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind, victim = int(rng.integers(10)), int(rng.integers(len(records)))
    names = [name.rpartition("/")[2] for name, _ in records]
    if kind < 7:  # mostly the pickle, which is where the reading is
        victim = names.index("data.pkl")
    name, content = records[victim]
    if kind < 8:
        records[victim] = name, damage(content, rng)
    elif kind == 8:
        del records[victim]
    else:
        other = int(rng.integers(len(records)))
        records[victim], records[other] = (name, records[other][1]), (records[other][0], content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------- right results

def check_well_formed(tensors, size: int) -> None:
    """Raise Fault unless these are arrays that a reader may return for a file of `size` bytes."""
    total = 0
    for name, array in tensors.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise Fault(f"{name!r}: {type(array)}")
        if array.dtype.kind == "f" and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise Fault(f"{name}: {array.dtype} or not finite")
        if array.dtype.kind not in "fiub" or not array.flags.c_contiguous or not array.dtype.isnative:
            raise Fault(f"{name}: {array.dtype}, {array.flags}")
        total += array.nbytes
    if total > max(8 * size, 8 << 20):
        raise Fault(f"{total} bytes out of a file of {size}")


def same(a, b) -> bool:
    """Whether two {name: array} are equal to the last bit."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape
                                        and a[n].tobytes() == b[n].tobytes() for n in a)


class Target:
    """A kind of file: `files` are good ones, `input` the path that is read, `error` what reading may raise."""

    error: type[Exception] = CheckpointError

    def place(self, origin, data: bytes) -> None:
        """Put an input where it is read."""
        self.input.write_bytes(data)

    @property
    def allowed(self) -> set[str]:
        """The files that reading may open."""
        return {str(self.input)}


def later_protocol(pickle: bytes, protocol: int) -> bytes:
    """A protocol-2 pickle as a later protocol writes it: names from the stack, short text, memo by count, a frame."""
    out = bytearray()
    for code, argument, position in pickletools.genops(pickle):
        if code.name == "GLOBAL":
            for part in argument.split(" "):
                out += b"\x8c" + bytes([len(part)]) + part.encode() + b"\x94"
            out += b"\x93\x94"
        elif code.name == "BINUNICODE" and len(argument) < 60:
            text = argument.encode("utf-8", "surrogatepass")
            out += b"\x8c" + bytes([len(text)]) + text + b"\x94"
        elif code.name != "PROTO":
            out += pickle[position:position + 1] + pickle[position + 1:_end(pickle, position)]
    return b"\x80" + bytes([protocol]) + b"\x95" + len(out).to_bytes(8, "little") + bytes(out)


def _end(pickle, position):
    return next((p for _, _, p in pickletools.genops(pickle) if p > position), len(pickle))


def with_pickle(data: bytes, change) -> bytes:
    """A zip file with change(its data.pkl), every checksum right."""
    return rewritten(data, lambda name, content: change(content) if name.endswith("data.pkl") else content)


def rewritten(data: bytes, change) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as out:
        for info in archive.infolist():
            out.writestr(info.filename, change(info.filename, archive.read(info)))
    return buffer.getvalue()


def without_checksums(data: bytes) -> bytes:
    """A zip file as PyTorch writes it when it is told to compute none: zero in every header."""
    out = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        position = data.find(mark)
        while position >= 0:
            out[position + at:position + at + 4] = bytes(4)
            position = data.find(mark, position + 4)
    return bytes(out)


_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def odd_tensors(pickle: bytes) -> bytes:
    """The same tensors as parameters with attributes: a call around the first call."""
    start = pickle.index(_TENSOR)
    end = pickle.index(b")RtR", start) + 4
    state = b"}X\x10\x00\x00\x00_no_weight_decay\x88s"
    return (pickle[:start] + b"ctorch._utils\n_rebuild_parameter_with_state\n(" + pickle[start:end]
            + b"\x88ccollections\nOrderedDict\n)R" + state + b"tR" + pickle[end:])


class Checkpoints(Target):
    """Zip-form files: flat, trainer and folded into one, odd shapes, all dtypes."""

    def __init__(self, folder: Path, extra):
        rng = np.random.default_rng(0)
        state = {f"blocks.{i}.weight": rng.standard_normal((3, i + 1)).astype(np.float32) for i in range(4)}
        state |= {"bn.running_var": np.ones(5, np.float64), "bn.num_batches_tracked": np.int64(7),
                  "half": np.float16([1, 2]), "mask": np.array([True, False]), "none": np.zeros((0, 3), np.float32)}
        write_pth(folder / "flat.pth", state)
        write_pth(folder / "module.pth", {f"module.{name}": array for name, array in state.items()})
        self.files = [path.read_bytes() for path in (folder / "flat.pth", folder / "module.pth", *extra)]
        self.unchecked = len(self.files)
        self.files += [without_checksums(self.files[0])]
        self.files += [with_pickle(self.files[0], lambda data, p=p: later_protocol(data, p)) for p in (4, 5)]
        self.files += [with_pickle(self.files[0], lambda data: b"\x80\x03" + data[2:]),
                       with_pickle(self.files[0], odd_tensors),
                       with_pickle(self.files[0], lambda data: data.replace(b")RtR", b")R}X\x03\0\0\0neg\x88stR", 1))]
        self.input = folder / "input.pth"
        self.good = []
        for data in self.files:
            self.input.write_bytes(data)
            self.good.append(read_checkpoint(self.input).tensors)

    def make(self, rng):
        which = int(rng.integers(len(self.files)))
        inside = bool(rng.integers(3))
        return (which, inside), (damage_inside if inside else damage)(self.files[which], rng)

    def read(self, path):
        return read_checkpoint(path).tensors

    def check(self, origin, data, tensors):
        which, inside = origin
        check_well_formed(tensors, len(data))
        if not inside and which != self.unchecked and not same(tensors, self.good[which]):
            raise Fault("other tensors than the good file's, though every record has a checksum")


class Safetensors(Target):
    """Safetensors files, with and without metadata."""

    def __init__(self, folder: Path, extra):
        from safetensors.numpy import load, save
        self.load = load
        rng = np.random.default_rng(0)
        state = {"a.weight": rng.standard_normal((3, 4)).astype(np.float32), "b": np.arange(5), "c": np.float16([1, 2]),
                 "scalar": np.array(3, np.float32), "none": np.zeros((0, 2), np.float32), "mask": np.array([True])}
        self.files = [save(state), save(state, {"licence": "MIT"}), *(path.read_bytes() for path in extra)]
        self.input = folder / "input.safetensors"

    def make(self, rng):
        data = self.files[int(rng.integers(len(self.files)))]
        if rng.integers(2):  # the header alone, its length put right again
            size = int.from_bytes(data[:8], "little")
            header = damage(data[8:8 + size], rng)
            return None, len(header).to_bytes(8, "little") + header + data[8 + size:]
        return None, damage(data, rng)

    def read(self, path):
        return read_checkpoint(path).tensors

    def check(self, origin, data, tensors):
        check_well_formed(tensors, len(data))
        library = {}
        for name, array in self.load(data).items():
            library[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
            if array.dtype == bool:  # the library lets bytes other than 0 and 1 through
                library[name] = array.view(np.uint8) != 0
        if not same(tensors, choose(library).tensors):
            raise Fault("other tensors than the safetensors library reads")


class Indices(Target):
    """Files in two parts and their index; the index is damaged, or one of the parts."""

    def __init__(self, folder: Path, extra):
        from safetensors.numpy import save
        rng = np.random.default_rng(0)
        self.state = {f"blocks.{i}.weight": rng.standard_normal((3, i + 1)).astype(np.float32) for i in range(4)}
        self.folder, self.input = folder, folder / "model.safetensors.index.json"
        names = [f"model-{part:05}-of-00002.safetensors" for part in (1, 2)]
        chosen = [list(self.state)[:2], list(self.state)[2:]]
        index = {"metadata": {"total_size": 120}, "weight_map": {n: part for part, c in zip(names, chosen, strict=True)
                                                                 for n in c}}
        self.names = [self.input.name, *names]
        self.files = [json.dumps(index, indent=1).encode(), *(save({n: self.state[n] for n in c}) for c in chosen)]
        self.broken = None
        for name, data in zip(self.names, self.files, strict=True):
            (folder / name).write_bytes(data)

    def make(self, rng):
        which = int(rng.choice([0, 0, 0, 1, 2]))
        return which, damage(self.files[which], rng)

    def place(self, origin, data):
        if self.broken is not None:
            (self.folder / self.names[self.broken]).write_bytes(self.files[self.broken])
        self.broken = origin or 0
        (self.folder / self.names[self.broken]).write_bytes(data)

    @property
    def allowed(self):
        return {str(self.folder / name) for name in self.names}

    def read(self, path):
        return read_checkpoint(path).tensors

    def check(self, origin, data, tensors):
        check_well_formed(tensors, 4096)
        if not origin and any(name not in self.state or not same({name: array}, {name: self.state[name]})
                              for name, array in tensors.items()):
            raise Fault("other tensors than the parts hold")


class Configs(Target):
    """timm-style config.json files beside weights of ten classes."""

    def __init__(self, folder: Path, extra):
        from mmref.models.description import describe_weights
        from mmref.models.variants import VARIANTS
        self.describe, self.network = describe_weights, VARIANTS["mobilemamba_nano"]
        self.error = MmrefError
        inner = {"input_size": [3, 96, 96], "interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "center",
                 "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 1.0], "num_classes": 1000, "first_conv": "stem"}
        outer = {"architecture": "mobilemamba_nano", "num_classes": 10, "label_names": [f"kind {i}" for i in range(10)]}
        ids = [f"n{i:08}" for i in range(10)]
        values = [{**outer, "pretrained_cfg": inner}, {**outer, **inner, "num_classes": 10},
                  {**outer, "label_names": ids, "label_descriptions": {n: f"thing {n}" for n in ids}}]
        self.files = [json.dumps(value, indent=indent).encode() for value in values for indent in (None, 1)]
        self.files += [path.read_bytes() for path in extra]
        self.input, self.weights = folder / "config.json", folder / "weights.pth"

    def make(self, rng):
        return None, damage(self.files[int(rng.integers(len(self.files)))], rng)

    def read(self, path):
        return self.describe(Checkpoint(self.weights, "zip", {}), self.network)

    def check(self, origin, data, found):
        names, transform = found.class_names, found.transform
        if names is not None and (len(names) != 10 or not all(n and n.isprintable() for n in names)):
            raise Fault(f"class names {names!r}")
        if transform is not None and not (1 <= transform.size <= 4096 and min(transform.std) > 0
                                          and np.isfinite([*transform.mean, *transform.std]).all()):
            raise Fault(f"{transform}")


class Pictures(Target):
    """JPEG, PNG, WEBP and BMP in the forms that their decoders tell apart."""

    error = PictureError

    def __init__(self, folder: Path, extra):
        from PIL import Image

        from mmref.data.picture import Transform, open_picture, to_array
        self.open, self.to_array, self.transform = open_picture, to_array, Transform(32)
        rng = np.random.default_rng(0)
        colour = Image.fromarray(rng.integers(0, 256, (24, 33, 3), np.uint8))
        alpha, grey, deep = colour.convert("RGBA"), colour.convert("L"), rng.integers(0, 65536, (9, 7), np.uint16)
        frames = {"save_all": True, "append_images": [grey.convert("RGB"), colour.rotate(90)]}
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "a camera"
        pictures = [("JPEG", colour, {}), ("JPEG", colour.convert("CMYK"), {}), ("JPEG", grey, {"progressive": True}),
                    ("JPEG", colour, {"progressive": True, "exif": exif, "comment": b"hello"}),
                    ("JPEG", colour, {"subsampling": 0, "quality": 100, "restart_marker_blocks": 2}),
                    ("PNG", colour, {"exif": exif, "dpi": (72, 72)}), ("PNG", colour.convert("P"), {}),
                    ("PNG", colour.quantize(7), {"transparency": bytes(7)}), ("PNG", alpha, {}), ("PNG", grey, {}),
                    ("PNG", grey.convert("1"), {}), ("PNG", Image.fromarray(deep), {}), ("PNG", colour, frames),
                    ("PNG", colour.convert("LA"), {}), ("WEBP", colour, {}), ("WEBP", alpha, {"lossless": True}),
                    ("WEBP", alpha, {"exif": exif}), ("WEBP", colour, frames), ("BMP", colour, {}),
                    ("BMP", colour.convert("P"), {}), ("BMP", grey.convert("1"), {})]
        self.files = [path.read_bytes() for path in extra]
        for form, picture, options in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, form, **options)
            self.files.append(buffer.getvalue())
        self.files += [_run_length_bmp(8, b"\4\5\0\3abc\0\1\1\0\0\7\3\1\4\0\0\3\7\0\2\5\0\0\1"),
                       _run_length_bmp(4, b"\x08\x12\0\0\x08\x34\0\0\0\4\x12\x34\4\x56\0\0\0\1")]
        self.input = folder / "input.picture"

    def make(self, rng):
        data = damage(self.files[int(rng.integers(len(self.files)))], rng)
        return None, _png_put_right(data) if rng.integers(2) else data

    def read(self, path):
        return self.to_array(self.open(path)[0], self.transform)

    def check(self, origin, data, array):
        if array.shape != (3, 32, 32) or array.dtype != np.float32 or not np.isfinite(array).all():
            raise Fault(f"{array.shape} {array.dtype}")


def _run_length_bmp(bits, body):
    palette = b"".join(bytes([i, i, 255 - i, 0]) for i in range(1 << bits))
    start = 54 + len(palette)
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", start + len(body), 0, 0, start, 40, 8, 3, 1, bits,
                               {8: 1, 4: 2}[bits], len(body), 1, 1, 1 << bits, 0) + palette + body


def _png_put_right(data):
    """A damaged PNG with right checksums, as far as its chunks can be followed; anything else as it is."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 12 + int.from_bytes(out[at:at + 4], "big")
        if end > len(out):
            break
        out[end - 4:end] = struct.pack(">I", zlib.crc32(out[at + 4:end - 4]))
        at = end
    return bytes(out)


KINDS = {"checkpoint": Checkpoints, "safetensors": Safetensors, "index": Indices, "config": Configs,
         "picture": Pictures}


# --------------------------------------------------------------------------------------------------- run

def attempt(target, origin, data: bytes) -> str:
    """Read one input: "refused" or "read". Raises whatever should not have happened."""
    target.place(origin, data)
    modules = set(sys.modules)
    started = time.process_time()
    _watching.update(allowed=target.allowed, seen=[])
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        try:
            result = target.read(target.input)
        finally:
            _watching["allowed"] = None
            signal.setitimer(signal.ITIMER_PROF, 0)
    except target.error as error:
        if "not enough memory" in str(error) or "\n" in str(error) or len(str(error)) > 2000:
            raise Fault(f"an error out of bounds: {str(error)[:300]!r}") from error
        outcome = "refused"
    else:
        target.check(origin, data, result)
        outcome = "read"
    if time.process_time() - started > SECONDS:  # an alarm waits for the end of what is not Python
        _too_slow()
    if _watching["seen"] or set(sys.modules) != modules:
        raise Fault(f"reading did {_watching['seen']} and imported {set(sys.modules) - modules}")
    return outcome


def _too_slow(*_):
    raise Fault(f"took more than {SECONDS} seconds of processor time")


def fuzz(kind: str, inputs: int, seed: int, save: Path, extra=(), every: float = 60) -> collections.Counter:
    """Try `inputs` damaged files of a kind; returns how many were "read", "refused" and "failed"."""
    outcomes, shown = collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        target = KINDS[kind](Path(folder), [Path(path) for path in extra])
        for which, data in enumerate(target.files):  # once through all, so that lazy imports do not look like attacks
            target.place(which, data)
            target.read(target.input)
            _warm_errors(target, data)
        sys.addaudithook(_audit)
        signal.signal(signal.SIGPROF, _too_slow)
        _limit_memory()
        for number in range(inputs):
            rng = np.random.default_rng([seed, number])
            origin, data = target.make(rng)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                outcomes[attempt(target, origin, data)] += 1
            except Exception:
                outcomes["failed"] += 1
                save.mkdir(parents=True, exist_ok=True)
                (save / f"{kind}-{seed}-{number}").write_bytes(data)
                (save / f"{kind}-{seed}-{number}.txt").write_text(traceback.format_exc())
            if time.monotonic() - shown > every:
                shown = time.monotonic()
                print(f"{number + 1} of {inputs}: {dict(outcomes)}", file=sys.stderr, flush=True)
    return outcomes


def _limit_memory():
    """Of address space, beside what is in use: libraries that are loaded take their share of that, used or not."""
    try:
        import resource
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError) as error:
        print(f"no limit on memory here: {error}", file=sys.stderr)


def _warm_errors(target, data):
    for damaged in (data[:-1], data[:len(data) // 2], data[:20], b"", b"x", b"<html>"):
        target.place(None, damaged)
        with contextlib.suppress(target.error):
            target.read(target.input)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("fuzz_readers.py", description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept")
    parser.add_argument("--extra", type=Path, nargs="*", default=[], metavar="FILE", help="more good files to damage")
    args = parser.parse_args(argv)
    started = time.monotonic()
    outcomes = fuzz(args.kind, args.inputs, args.seed, args.save, args.extra)
    print(f"{args.kind}: {args.inputs} inputs, seed {args.seed}: {outcomes['refused']} refused, {outcomes['read']} "
          f"read and right, {outcomes['failed']} failed; {time.monotonic() - started:.0f} s")
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
