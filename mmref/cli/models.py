"""`mmref models`: the networks, their sizes and published accuracy."""

from __future__ import annotations

from mmref.cli.output import print_json
from mmref.tables import table


def add_arguments(parser):
    parser.add_argument("pattern", nargs="?", default="*", help="names to list, as in a shell: '*_b*'")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    from mmref.models.create import list_models
    from mmref.models.registry import accuracies, models
    rows = []
    for name in list_models(args.pattern):
        config = models()[name]
        accuracy = accuracies().get(name, {})
        rows.append({"model": name, "img_size": config.img_size, "param_count": config.build().parameter_count(),
                     "num_classes": config.num_classes, **accuracy})
    if args.json:
        print_json(rows)
        return 0
    def accuracy_cell(row, key):
        return f"{row[key]:.2f}" if key in row else "-"
    print(table([(r["model"], r["img_size"], f"{r['param_count'] / 1e6:.2f} M", r["num_classes"],
                  accuracy_cell(r, "top1"), accuracy_cell(r, "top1_dagger")) for r in rows],
                ("model", "pixels", "parameters", "classes", "top-1", "top-1 dagger")))
    print("\ntop-1: percent of ImageNet's validation pictures, as published (mobilemamba_nano: CIFAR-10's test set,\n"
          "measured with `mmref eval`). dagger: longer trained weights, add an s to the name: mobilemamba_t2s.")
    return 0
