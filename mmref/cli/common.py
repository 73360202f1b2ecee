"""What several commands share: model arguments, JSON."""

from __future__ import annotations

import json
import sys


def add_model_arguments(parser, positional: bool = False) -> None:
    """--model (or a positional MODEL), --weights, --num-classes, --backend, --threads."""
    if positional:
        parser.add_argument("model", metavar="MODEL", help="a name that `mmref models` lists")
    else:
        parser.add_argument("--model", default="mobilemamba_nano", help="a name that `mmref models` lists "
                            "(default: %(default)s, whose weights are in the box)")
    parser.add_argument("--weights", metavar="FILE", help=".safetensors or .pth file (default: the model's own)")
    parser.add_argument("--num-classes", type=int, help="checked against the weights")
    add_backend_arguments(parser)


def add_backend_arguments(parser) -> None:
    parser.add_argument("--backend", default="numpy", choices=("numpy", "numba", "cuda"),
                        help="numpy is the reference, numba compiles for this CPU, cuda runs on an NVIDIA GPU "
                             "(default: %(default)s)")
    parser.add_argument("--threads", type=int, help="for --backend numba (default: all cores)")


def model_from(args, untrained: bool = False):
    """The model that the arguments ask for; `untrained` allows random parameters where no weights are named."""
    from mmref.models.create import create_model
    pretrained = args.weights is None and not untrained
    return create_model(args.model, args.weights, pretrained=pretrained, num_classes=args.num_classes,
                        backend=args.backend, threads=args.threads)


def print_json(value) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()
