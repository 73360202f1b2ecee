"""Count right answers on CIFAR-10's test pictures with mmref and with PyTorch, side by side.

    python tests/compare_cifar10.py ../shared/data/cifar10_jpeg.tar.xz [--limit N] [--backend numba]

Both get the same weights (the ones in the box) and the same decoded inputs; PyTorch runs the modules of
mmref/bench/torch_network.py. Prints both counts, how many labels differ, and the largest difference of a logit.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

from mmref.bench import torch_network
from mmref.data.labels import CIFAR10
from mmref.data.picture import open_picture, to_array
from mmref.models.create import create_model, pretrained_weights
from mmref.weights import read_checkpoint


def test_pictures(source: Path, limit: int | None = None):
    """(label, bytes of a JPEG file) of the test split: from the archive, or a folder with test/CLASS/*.jpg.

    With `limit`, the first so many of a fixed shuffle, so that all classes are among them."""
    if source.is_dir():
        files = sorted(source.glob("test/*/*.jpg"))
        pictures = [(CIFAR10.index(path.parent.name), path.read_bytes()) for path in files]
    else:
        with tarfile.open(source) as archive:
            pictures = sorted((member.name, archive.extractfile(member).read()) for member in archive
                              if member.isfile() and "test" in Path(member.name).parts)
        pictures = [(CIFAR10.index(Path(name).parent.name), data) for name, data in pictures]
    order = np.random.default_rng(0).permutation(len(pictures))[:limit]
    return [pictures[i] for i in order]


def torch_model():
    """The PyTorch reference with the weights in the box."""
    state = read_checkpoint(pretrained_weights("mobilemamba_nano")).tensors
    module = torch_network.create("nano", len(CIFAR10)).eval()
    problems = module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    assert not problems.unexpected_keys and all(k.endswith("num_batches_tracked") for k in problems.missing_keys)
    return module


def compare(pictures, backend="numpy", batch=100):
    """Both counts, the number of labels that differ, and the largest difference of a logit over the largest logit."""
    ours, theirs = create_model("mobilemamba_nano", pretrained=True, backend=backend), torch_model()
    counts, differing, error = np.zeros(2, int), 0, 0.0
    for start in range(0, len(pictures), batch):
        chunk = pictures[start:start + batch]
        x = np.stack([to_array(open_picture(io.BytesIO(data))[0], ours.transform) for _, data in chunk])
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x)).numpy()
        logits, labels = ours(x), np.array([label for label, _ in chunk])
        answers = logits.argmax(1), expected.argmax(1)
        counts += [(answer == labels).sum() for answer in answers]
        differing += int((answers[0] != answers[1]).sum())
        error = max(error, float(np.abs(logits - expected).max() / np.abs(expected).max()))
        if sys.stderr.isatty():
            print(f"\r{start + len(chunk)} of {len(pictures)}", end="", file=sys.stderr)
    return int(counts[0]), int(counts[1]), differing, error


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="cifar10_jpeg.tar.xz, or a folder with test/CLASS/*.jpg")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    pictures = test_pictures(args.source, args.limit)
    ours, theirs, differing, error = compare(pictures, args.backend)
    print(f"{len(pictures)} pictures: mmref ({args.backend}) {ours} right, PyTorch {theirs} right, "
          f"{differing} labels differ, largest difference of a logit {error:.1e} of the largest")


if __name__ == "__main__":
    main()
