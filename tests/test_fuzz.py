"""The fuzzer itself: it runs, it repeats itself, and it sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_readers
import numpy as np
import pytest

FUZZER = Path(fuzz_readers.__file__)


def command(*argv):
    return subprocess.run([sys.executable, FUZZER, *map(str, argv)], capture_output=True, text=True,
                          check=False)


@pytest.mark.parametrize("kind", fuzz_readers.KINDS)
def test_a_short_run(tmp_path, kind):
    """Catches a reader that fails on damaged files: 1500 of a kind end in a typed error or a right result."""
    done = command("--inputs", 1500, "--kind", kind, "--seed", 7, "--save", tmp_path / "failures")
    failures = "\n".join(p.read_text() for p in tmp_path.glob("failures/*.txt"))
    assert done.returncode == 0 and " 0 failed" in done.stdout, done.stdout + done.stderr + failures
    refused, read = (int(done.stdout.split(word)[0].split()[-1]) for word in (" refused", " read and"))
    assert refused > 100 and read > 10  # neither everything refused nor everything let through


def test_real_files_as_seeds(tmp_path):
    """Catches --extra being ignored: trainer files of torch.save go through the mill as well."""
    torch = pytest.importorskip("torch")
    net = torch.nn.BatchNorm1d(3).state_dict()
    torch.save({"net": net, "net_E": None, "odd": {1, 2}, "optimizer": {"lr": 0.1}}, tmp_path / "t.pth")
    extra, save = tmp_path / "t.pth", tmp_path / "failures"
    done = command("--inputs", 500, "--kind", "checkpoint", "--extra", extra, "--save", save)
    assert done.returncode == 0, done.stdout + done.stderr


def test_same_seed_same_inputs(tmp_path):
    """Catches inputs that cannot be made again from the number of the run."""
    target = fuzz_readers.Checkpoints(tmp_path, [])
    first, again = ([target.make(np.random.default_rng([3, n]))[1] for n in range(20)] for _ in range(2))
    assert first == again and len(set(first)) == 20


PLANTED = """
import sys
sys.path[:0] = [sys.argv[3]]
import fuzz_readers as f
real = f.read_checkpoint
def planted(path):
    found = real(path)
    what = sys.argv[1]
    if what == 'import': import colorsys
    if what == 'run': eval('1')
    if what == 'open': open(sys.executable, 'rb').close()
    if what == 'wrong numbers': found.tensors['blocks.0.weight'] = found.tensors.get('blocks.0.weight', 0) + 1
    if what == 'bare error': raise KeyError('x')
    if what == 'huge': raise MemoryError
    return found
def main():
    import builtins
    good = f.Checkpoints.__init__
    def init(self, *a):
        good(self, *a)
        self.make = lambda rng: ((0, False), self.files[0])
        f._warm_errors = lambda *a: None
        f.Checkpoints.read = lambda self, path: (planted if f._watching['allowed'] else real)(path).tensors
    f.Checkpoints.__init__ = init
    return f.main(['--kind', 'checkpoint', '--inputs', '3', '--save', sys.argv[2]])
sys.exit(main())
"""


@pytest.mark.parametrize("what", ["import", "run", "open", "wrong numbers", "bare error", "huge", "nothing"])
def test_planted_faults_are_seen(tmp_path, what):
    """Catches a fuzzer that looks and sees nothing: each planted fault is counted and its input kept."""
    done = subprocess.run([sys.executable, "-c", PLANTED, what, str(tmp_path / "f"), str(FUZZER.parent)],
                          capture_output=True, text=True, check=False)
    failed = int(done.stdout.split(" failed")[0].split()[-1])
    assert failed == (0 if what == "nothing" else 1 if what == "import" else 3), done.stdout + done.stderr
    assert len(list(tmp_path.glob("f/*.txt"))) == failed
