"""Evaluation on a Dask cluster: the same figures, also when workers are killed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from colour_model import COLOURS, ColourModel, paint

from mmref.errors import MissingBackend, MmrefError
from mmref.evaluate import evaluate, read_folder
from mmref.tasks.predictor import Predictor

distributed = pytest.importorskip("distributed", reason="pip install 'mmref[dask]'")


class Slow(ColourModel):
    """Long enough for a worker to be killed in the middle of a batch."""

    def __call__(self, x):
        time.sleep(0.05)
        return super().__call__(x)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for i, name in enumerate(COLOURS):
        for j in range(20):
            paint(root / name / f"{j:02}.png", "red" if (i + j) % 7 == 0 else name)
    (root / "blue" / "05.png").write_text("<html>")
    return read_folder(root, tuple(COLOURS))


@pytest.fixture(scope="module")
def expected(pictures):
    return evaluate(Predictor(ColourModel(), batch_size=3), pictures)


def same(a, b):
    return (a.answers == b.answers).all() and a.errors == b.errors and a.summary() == b.summary()


def test_local_cluster(pictures, expected):
    """Catches: a batch lost or doubled, the bad picture's error lost on its way back."""
    seen = []
    tally = evaluate(Predictor(ColourModel(), batch_size=3), pictures, scheduler="local:2",
                     progress=lambda _, new: seen.append(new))
    assert same(tally, expected) and sum(seen) == len(pictures) == 120


def test_killed_worker(pictures, expected, tmp_path):
    """Catches: a worker that dies in the middle and takes batches with it, or batches counted twice when Dask runs
    them again."""
    with distributed.LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=":0",
                                  silence_logs=50) as cluster:
        with distributed.Client(cluster, set_as_default=False) as client:
            pids = list(client.run(os.getpid).values())
        assert len(pids) == 2
        added, ran_before = [], tmp_path / "journal"

        def progress(tally, new):
            added.append(new)
            if sum(added) >= 24 and pids:
                os.kill(pids.pop(), signal.SIGKILL)
                pids.clear()

        tally = evaluate(Predictor(Slow(), batch_size=3), pictures, scheduler=cluster.scheduler_address,
                         resume=ran_before, progress=progress)
    assert not pids, "nobody was killed"
    assert same(tally, expected) and sum(added) == len(pictures)
    assert ran_before.read_bytes().count(b"\n") == 1 + 120 // 3  # each batch once
    assert same(evaluate(Predictor(Slow(), batch_size=3), pictures, resume=ran_before), expected)


def test_batch_that_kills_its_workers(pictures):
    """Catches: an evaluation that hangs, or ends in Dask's own error, when a batch kills every worker."""
    with pytest.raises(MmrefError, match="keep dying"):
        evaluate(Predictor(Killer(), batch_size=60), pictures, scheduler="local:2")


class Killer(ColourModel):
    def __call__(self, x):
        os.kill(os.getpid(), signal.SIGKILL)


def test_lost_scheduler(pictures, tmp_path, monkeypatch):
    """Catches: a hang or a traceback when the scheduler goes away; what was done must be in the journal."""
    monkeypatch.setattr("mmref.evaluate.cluster.CONNECT_SECONDS", 1)
    cluster = distributed.LocalCluster(1, threads_per_worker=1, processes=True, dashboard_address=":0",
                                       silence_logs=50)
    with pytest.raises(MmrefError, match="connection lost"):
        evaluate(Predictor(Slow(), batch_size=3), pictures, scheduler=cluster.scheduler_address,
                 resume=tmp_path / "journal", progress=lambda tally, new: new and cluster.close())
    assert (tmp_path / "journal").read_bytes().count(b"\n") > 1


def test_wrong_schedulers(pictures, monkeypatch):
    """Catches: a traceback, or a wait for ever, for a scheduler that is not there."""
    predict = Predictor(ColourModel())
    for scheduler in ("local:0", "local:many", "local:", "nonsense://x:1"):
        with pytest.raises(MmrefError, match="scheduler"):
            evaluate(predict, pictures, scheduler=scheduler)
    for scheduler in ("", "2", "no", "a\0b:1", "tcp://host", "host:port", "a b:1", "x" * 5000):  # before Dask sees it
        with pytest.raises(MmrefError, match="scheduler must be an address such as .*, got"):
            evaluate(predict, pictures, scheduler=scheduler)
    monkeypatch.setattr("mmref.evaluate.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(MmrefError, match="cannot connect"):
        evaluate(predict, pictures, scheduler="tcp://127.0.0.1:9")
    import sys
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingBackend, match=r"pip install 'mmref\[dask\]'"):
        evaluate(predict, pictures, scheduler="local:2")


def test_predictor_in_dask(pictures):
    """Catches: the predictor unusable by itself in somebody's own Dask code."""
    paths = [os.path.join(pictures.root, path) for path in pictures.paths[::7]]
    predict = Predictor(ColourModel(), topk=1)
    with distributed.LocalCluster(1, threads_per_worker=2, processes=True, dashboard_address=":0",
                                  silence_logs=50) as cluster, distributed.Client(cluster) as client:
        there = client.gather(client.map(predict, [paths[:9], paths[9:]]))
    assert there[0] + there[1] == predict(paths)

