"""`mmref weights list | fetch NAME | verify FILE | path`: published weights on this machine."""

from __future__ import annotations

from mmref.cli.common import print_json, table


def add_arguments(parser):
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    listing = actions.add_parser("list", help="the published files, and which are here")
    listing.add_argument("--json", action="store_true", help="for programs")
    fetching = actions.add_parser("fetch", help="download, verify and convert one")
    fetching.add_argument("name", metavar="NAME")
    fetching.add_argument("--url", help="another place to get the same file from")
    verifying = actions.add_parser("verify", help="read a file completely and say what it is")
    verifying.add_argument("file", metavar="FILE")
    verifying.add_argument("--strict", action="store_true", help="refuse files that name anything but tensors")
    actions.add_parser("path", help="where weights are kept")


def run(args) -> int:
    from mmref.weights import store
    if args.action == "path":
        print(store.cache_folder())
    elif args.action == "fetch":
        print(store.fetch(args.name, args.url))
    elif args.action == "verify":
        verify(args.file, args.strict)
    else:
        rows = [{"name": name, **entry, "path": str(path) if (path := store.weights_path(name)).exists() else None}
                for name, entry in store.manifest().items()]
        if args.json:
            print_json(rows)
        else:
            print(table([(r["name"], r["file"], f"{r['top1']:.2f}", f"{r['top5']:.2f}", "here" if r["path"] else "-")
                         for r in rows], ("name", "file", "top-1", "top-5", "here"), left=2))
            print(f"\nfrom {rows[0]['source']} ({rows[0]['licence']}); kept in {store.cache_folder()}")
    return 0


def verify(file, strict):
    """What a file is, that it is whole, and which variant it fits."""
    from mmref.parameters import fitting_variants
    from mmref.weights import read_checkpoint
    from mmref.weights.store import sha256_of
    found = read_checkpoint(file, strict=strict)
    fits = fitting_variants(found.tensors)
    print(f"{found.path}: whole, {found.format}, {len(found.tensors)} tensors, taken: {found.source}")
    print(f"fits: {', '.join(fits) if fits else 'no variant mmref knows'}")
    if found.foreign:
        print(f"passed over, not run: {', '.join(found.foreign)}")
    print(f"sha256: {sha256_of(found.path)}")
