"""What several commands share: arguments of models, weights and transforms."""

from __future__ import annotations

import re

from mmref.cli.output import note


def add_model_arguments(parser, positional: bool = False, default: str | None = "mobilemamba_nano") -> None:
    """--model (or a positional MODEL) and --weights with what belongs to it. Without a `default` the help says none."""
    if positional:
        parser.add_argument("model", metavar="MODEL", help="a name that `mmref models` lists")
    else:
        parser.add_argument("--model", "-m", default=default, help="a name that `mmref models` lists (default: "
                            f"{default or 'mobilemamba_nano; to segment or to detect mobilemamba_nano_fpn, _ssdlite'}, "
                            f"whose weights are included)")
    parser.add_argument("--weights", "--checkpoint", metavar="FILE", help=".safetensors or .pth file, an index of one "
                        "in parts, or a folder with one of these (default: the model's own)")
    add_prefer_argument(parser)
    parser.add_argument("--num-classes", type=int, metavar="N", help="checked against the weights; 0 leaves the head "
                        "out (default: what the weights have)")
    parser.add_argument("--in-chans", type=int, metavar="N", help="input channels, checked against the weights "
                        "(default: what the weights have)")


def add_prefer_argument(parser) -> None:
    """--prefer."""
    parser.add_argument("--prefer", default="auto", metavar="NAME", help="which entry of a trainer's file: its name, "
                        "ema (a moving average) or raw (default: the moving average where it is there)")


def add_backend_arguments(parser) -> None:
    """--backend and --threads."""
    parser.add_argument("--backend", default="numpy", choices=("numpy", "numba", "cuda"),
                        help="numpy is the reference, numba compiles for this CPU, cuda runs on an NVIDIA GPU "
                             "(default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="for --backend numba, of each copy of the model "
                        "(default: all cores)")


def add_class_names_argument(parser) -> None:
    """--class-names."""
    parser.add_argument("--class-names", metavar="FILE", help="names of the outputs: one per line, or JSON; or one of "
                        "imagenet, cifar10, ade20k, coco (default: those that the weights or a config.json beside "
                        "them bring)")


def add_transform_arguments(parser) -> None:
    """--img-size, --crop-pct, --mean, --std, --interpolation: what `transform_from` changes."""
    parser.add_argument("--img-size", type=int, metavar="N", help="side of the network's input (default: the weights')")
    parser.add_argument("--crop-pct", "--crop", type=float, metavar="X",
                        help="crop side / resized side (default: the weights')")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"),
                            help=f"{name} of each channel, of pixels in 0..1 (default: the weights'); three equal ones "
                                 f"for a network of one channel")
    parser.add_argument("--interpolation", metavar="NAME", help="bicubic, bilinear, lanczos or nearest (default: the "
                        "weights')")


def transform_from(args, transform):
    """`transform` with what the arguments change. Raises ValueProblem, also for a change that would have no effect."""
    from dataclasses import replace

    from mmref.data.picture import Transform
    from mmref.errors import ValueProblem
    if transform is not None and not isinstance(transform, Transform):
        refuse_options(args, "networks that classify", "crop_pct", "interpolation")
        transform = transform if args.img_size is None else transform.with_size(args.img_size)
        return replace(transform, **_mean_and_std(args, transform))
    if args.crop_pct is not None and transform.shrink_to is not None:
        raise ValueProblem(f"--crop-pct must be left out: these weights' transform shrinks pictures to "
                           f"{transform.shrink_to} pixels and crops nothing more")
    changes = {"size": args.img_size, "crop_ratio": args.crop_pct, "interpolation": args.interpolation}
    return replace(transform, **_mean_and_std(args, transform),
                   **{name: value for name, value in changes.items() if value is not None})


def _mean_and_std(args, transform) -> dict:
    """What --mean and --std say, for as many channels as the transform has. Raises ValueProblem."""
    from mmref.errors import ValueProblem
    changes = {name: tuple(values) for name in ("mean", "std") if (values := getattr(args, name, None)) is not None}
    for name, values in changes.items():
        if transform.channels == 1:
            if len(set(values)) > 1:
                raise ValueProblem(f"--{name} must be three equal numbers for a network of one channel, got {values}")
            changes[name] = values[:1]
    return changes


def weights_options(args) -> dict:
    """What the arguments of `add_model_arguments` and `add_class_names_argument` say, as `mmref.create_model` takes
    it."""
    return {name: getattr(args, name) for name in ("prefer", "num_classes", "in_chans", "class_names", "threads")
            if hasattr(args, name)}


def model_from(args, untrained: bool = False, **options):
    """The model that the arguments ask for, and a line on stderr for what was decided in reading its weights.

    `untrained` allows random parameters where no weights are named; `options` are further ones of create_model."""
    from mmref.models.create import create_model
    if hasattr(args, "backend"):
        options.setdefault("backend", args.backend)
    model = create_model(args.model, args.weights, pretrained=args.weights is None and not untrained,
                         **weights_options(args), **options)
    say_notes(model)
    return model


def note_limits(args, model) -> None:
    """One line on stderr for what the included weights, where they are used, do not know."""
    from mmref.models.create import included_weights
    from mmref.models.registry import task_of
    config = model.config
    if args.weights is not None or included_weights(config.name) is None:
        return
    names = ", ".join(name for name in model.class_names if name != "background")
    if task_of(config) == "classify":
        note(f"{config.name} knows ten classes only ({names}) and answers one of them whatever a picture shows")
    else:
        note(f"{config.name} knows ten classes only ({names}), and only small pictures of them pasted on blurred "
             f"ground: it is wrong about most photographs")


def say_notes(model) -> None:
    """One line on stderr for what was decided in reading a model's weights; none where there was nothing to decide."""
    if model.notes:
        note(f"{model.source}: {'; '.join(model.notes)}")


def predictor_from(args, **options):
    """The `mmref.Predictor` that the arguments ask for, its weights read, and a line on stderr for what was decided."""
    from mmref.tasks.predictor import Predictor
    predictor = Predictor(args.model, args.weights, args.backend, args.topk, args.batch_size, exif=args.exif,
                          **weights_options(args), **options)
    model = predictor.load_model()
    if model.transform is not None:
        predictor.transform = transform_from(args, model.transform)
    loaded = predictor.load()
    say_notes(model)
    return predictor, loaded


def add_segmenter_arguments(parser, img_size: bool = True) -> None:
    """--tile, --overlap and --img-size: what `segmenter_from` takes from them."""
    parser.add_argument("--tile", type=int, metavar="N", help="for large pictures: run the network on overlapping "
                        "windows of N x N pixels at the picture's own size, in memory for one of them")
    parser.add_argument("--overlap", type=int, metavar="N", help="what windows share at least (default: a quarter of "
                        "--tile)")
    if img_size:
        parser.add_argument("--img-size", type=int, metavar="N", help="shorter side that pictures are scaled to "
                            "(default: the weights')")


def segmenter_from(args, **options):
    """The `mmref.Segmenter` that the arguments ask for, its weights read, and a line on stderr for what was decided."""
    from mmref.tasks.segmenter import Segmenter
    segmenter = Segmenter(args.model, args.weights, args.backend, img_size=args.img_size, tile=args.tile,
                          overlap=args.overlap, exif=args.exif, **weights_options(args), **options)
    return segmenter, _loaded(segmenter, args)


def detector_from(args, batch_size: int = 1, **options):
    """The `mmref.Detector` that the arguments ask for, its weights read, and a line on stderr for what was decided."""
    from mmref.tasks.detector import Detector
    detector = Detector(args.model, args.weights, args.backend, batch_size=batch_size, img_size=args.img_size,
                        exif=args.exif, **weights_options(args), **options)
    return detector, _loaded(detector, args)


def _loaded(task, args):
    """`task.load()` of a segmenter or detector, with --mean and --std, and what was decided said on stderr."""
    from dataclasses import replace
    model = task.load_model()
    if model.transform is not None and (changes := _mean_and_std(args, model.transform)):
        task.transform = replace(model.transform, **changes)
    loaded = task.load()
    say_notes(loaded.model)
    return loaded


def refuse_options(args, belong_to: str, *names) -> None:
    """Raise ValueProblem for an option of `names` that is given: it belongs to another task and would have no effect.
    A name stands for the default None, (name, default) for another."""
    from mmref.errors import ValueProblem
    for name in names:
        name, default = name if isinstance(name, tuple) else (name, None)
        if getattr(args, name) != default:
            raise ValueProblem(f"--{name.replace('_', '-')} must be left out: it belongs to {belong_to}")


def size_from(option: str, text: str | None) -> tuple[int, int] | None:
    """The (height, width) that the text of an option says, "224x160". Raises ValueProblem."""
    from mmref.errors import ValueProblem
    if text is None:
        return None
    match = re.fullmatch("([0-9]{1,6})x([0-9]{1,6})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if 0 in size:
        raise ValueProblem(f"{option} must read HxW, for instance 224x224, got {text!r}")
    return size
