"""What an evaluation costs beside the network, per picture: `python tests/time_evaluation.py`.

A network that answers at once takes the place of the real one. Two figures matter: what is done in parallel (reading,
decoding and resizing a photograph; it divides by the number of processes), and what one process, the head, does for
every picture, whichever process computes it (listing, handing out, journal, figures; it does not). The second is
measured with tiny pictures, so that nothing else is waited for. Both are processor time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from mmref.data.picture import Transform
from mmref.evaluate.folder import PictureSet, read_folder
from mmref.evaluate.run import evaluate
from mmref.tasks.predictor import Predictor


class InstantModel:
    """Answers 1000 zeros per picture."""

    config = SimpleNamespace(name="instant", num_classes=1000)
    transform = Transform(size=192)

    def __call__(self, x):
        return np.zeros((len(x), 1000), np.float32)


def measure(pictures: int, batch_size: int, ways: list[str]) -> dict:
    """Microseconds per picture: `prepare` (one thread), `list`, and for each way of running that of the process which
    hands out the work (for local:N, the Dask scheduler's as well); bytes per picture of the list in `list_bytes`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found, figures = _listing(root, pictures)
        figures |= {"prepare": _preparing(root, batch_size)}
        Image.new("RGB", (8, 8)).save(root / "tiny.png")
        work = PictureSet(root, ("tiny.png",) * pictures, found.targets)
        for way in ways:
            options = {"scheduler": way} if way.startswith("local:") else {"processes": int(way)}
            predictor = Predictor(InstantModel(), batch_size=batch_size, transform=Transform(size=8))
            clock = _Clock()
            evaluate(predictor, work, resume=root / f"journal {way}", progress=clock, **options)
            figures[way] = 1e6 * (clock.end - clock.start) / clock.pictures
    return figures


def _listing(root, pictures):
    names = [f"{i // 1000:04}/picture_{i:08}.jpg" for i in range(pictures)]
    for name in names:
        if name.endswith("000.jpg"):
            (root / "listed" / name).parent.mkdir(parents=True)
        (root / "listed" / name).touch()
    labels = [f"class {i}" for i in range((pictures + 999) // 1000)]
    start = time.perf_counter()
    read_folder(root / "listed", labels).digest()
    seconds = time.perf_counter() - start
    tracemalloc.start()  # a second time, since tracing makes it slow
    found = read_folder(root / "listed", labels)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return found, {"list": 1e6 * seconds / pictures, "list_bytes": size / pictures}


def _preparing(root, batch_size):
    """One thread, photographs of 500 x 375 pixels as ImageNet has them."""
    y, x = np.mgrid[:375, :500].astype(np.float32)
    rng = np.random.default_rng(0)
    for i in range(50):
        waves = sum(np.sin(x[..., None] * a + y[..., None] * b + c) for a, b, c in rng.normal(0, 0.1, (6, 3, 3)))
        pixels = 127 + 18 * waves + rng.normal(0, 4, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{i}.jpg", quality=90)
    predictor = Predictor(InstantModel(), batch_size=batch_size)
    paths = [root / f"{i}.jpg" for i in range(50)] * 4
    predictor(paths[:50])
    start = time.process_time()
    predictor(paths)
    return 1e6 * (time.process_time() - start) / len(paths)


class _Clock:
    """Starts with the fifth batch, when all processes run."""

    def __init__(self):
        self.calls = self.pictures = 0

    def __call__(self, tally, new):
        self.calls += 1
        if self.calls == 6:
            self.start = time.process_time()
        elif self.calls > 6:
            self.pictures += new
            self.end = time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--ways", nargs="*", default=["2", "local:2"], help="N processes, or local:N for Dask")
    args = parser.parse_args()
    figures = measure(args.pictures, args.batch_size, args.ways)
    print(f"prepare a picture (read, decode, resize, normalise), one thread  {figures['prepare']:8.0f} us")
    print(f"list a picture                                                   {figures['list']:8.1f} us, "
          f"{figures['list_bytes']:.0f} bytes")
    for way in args.ways:
        name = f"Dask, {way[6:]} processes" if way.startswith("local:") else f"{way} processes"
        print(f"hand out and enter a picture, {name:<35}{figures[way]:8.1f} us")
    return 0


if __name__ == "__main__":
    import time_evaluation  # under its own name, so that other processes find InstantModel
    sys.exit(time_evaluation.main())
