"""Time mmref beside the PyTorch reference: python tests/time_against_torch.py [--model t2] [--batch 1 8]

In one process tree, the same number of threads, unfolded batch norms on both sides, warm, in turn round by round: the
ratio of a round is of two runs next to each other, so a machine whose speed drifts does not distort it. Each side has
a process of its own, because two libraries' thread pools in one process slow each other down.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time

import numpy as np

SIDES = ("mmref", "torch")


def serve(pipe, side, variant, backend, threads):
    """Answer every (batch, size) with the seconds one forward took; the first request of a shape is warm-up."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    if side == "mmref":
        from mmref import create_model
        model = create_model(f"mobilemamba_{variant}", backend=backend, threads=threads)
    else:
        import torch

        from mmref.bench import torch_network
        torch.set_num_threads(threads)
        module = torch_network.create(variant).eval()

        def model(x):
            with torch.no_grad():
                return module(torch.from_numpy(x))
    while (request := pipe.recv()) is not None:
        x = np.random.default_rng(0).standard_normal((request[0], 3, request[1], request[1])).astype(np.float32)
        model(x)
        start = time.perf_counter()
        model(x)
        pipe.send(time.perf_counter() - start)


def main():
    from mmref.bench import torch_network
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="t2", choices=sorted(torch_network.WIDTHS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)
    context, pipes = multiprocessing.get_context("spawn"), {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        settings = (theirs, side, args.model, args.backend, args.threads)
        context.Process(target=serve, args=settings, daemon=True).start()
    size = torch_network.TRAIN_SIZES[args.model]
    print(f"{processor()}, {args.threads} threads, float32, {args.model} at {size}, {args.rounds} rounds")
    for batch in args.batch:
        rounds = []
        for _ in range(args.rounds + 1):  # the first is warm-up
            seconds = []
            for side in SIDES:
                pipes[side].send((batch, size))
                seconds.append(pipes[side].recv())
            rounds.append(seconds)
        rounds = np.array(rounds[1:])
        ours, theirs = 1e3 * np.median(rounds, 0) / batch
        low, ratio, high = np.percentile(rounds[:, 1] / rounds[:, 0], (25, 50, 75))
        print(f"batch {batch}: {args.backend} {ours:.2f} ms, PyTorch eager {theirs:.2f} ms a picture; "
              f"PyTorch / {args.backend}, paired: median {ratio:.2f} (quartiles {low:.2f} to {high:.2f})")
    for pipe in pipes.values():
        pipe.send(None)


def processor():
    """The processor's name, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
