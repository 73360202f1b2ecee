"""`mmref weights list | fetch NAME | verify FILE | path [NAME]`: the published weights and any others."""

from __future__ import annotations

from mmref.cli.common import add_prefer_argument
from mmref.cli.convert import listed
from mmref.cli.output import print_json, say
from mmref.tables import table
from mmref.text import name_fields


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the published files, and which of them are here")
    fetching = actions.add_parser("fetch", help="download published files into the cache")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="mobilemamba_t2, mobilemamba_t2s (dagger), ...")
    fetching.add_argument("--force", action="store_true", help="download again; the recorded sha256 stays in force")
    verifying = actions.add_parser("verify", help="whether a file is a complete checkpoint, and of which network")
    verifying.add_argument("files", nargs="+", metavar="FILE", help=".pth (zip form) or .safetensors")
    verifying.add_argument("--sha256", metavar="HEX", help="what the file's sha256 must be")
    add_prefer_argument(verifying)
    verifying.add_argument("--strict", action="store_true", help="refuse files that name anything but tensors")
    where = actions.add_parser("path", help="the cache folder, or where the weights of NAME lie in it")
    where.add_argument("name", nargs="?", metavar="NAME")
    for action in (listing, fetching, verifying):
        action.add_argument("--json", action="store_true", help="for programs")


def run(args) -> int:
    return {"list": _list, "fetch": _fetch, "verify": _verify, "path": _path}[args.action](args)


def _list(args):
    from mmref.weights.store import cached, manifest
    rows = []
    for name, entry in manifest().items():
        here = [str(path) for path in cached(name) if path.exists()]
        rows.append({"name": name, "model": entry.variant, "top1": entry.top1, "top5": entry.top5, "licence":
                     entry.licence, "url": entry.url, "here": here})
    if args.json:
        print_json(rows)
        return 0
    page = next(iter(manifest().values())).page
    print(table([(r["name"], r["model"], "yes" if r["here"] else "no", f"{r['top1']:.3f}", f"{r['top5']:.3f}")
                 for r in rows], ("name", "model", "here", "top-1 %", "top-5 %"), left=3))
    print(f"\nfrom {page}, licence {rows[0]['licence']}; accuracy as published. An s at the end: dagger weights.")
    return 0


def _fetch(args):
    from mmref.weights.store import fetch, published, recorded_sha256
    names = [published(name).name for name in args.names]
    done = []
    for name in names:
        path = fetch(name, force=args.force)
        done.append({"name": name, **name_fields("path", path), "sha256": recorded_sha256(path)})
        if not args.json:
            say(f"{path}  sha256 {done[-1]['sha256']}")
    if args.json:
        print_json(done)
    return 0


def _verify(args):
    from mmref.errors import CheckpointError
    from mmref.models.parameters import account_of_fit, fitting_variants, is_folded
    from mmref.weights import read_checkpoint
    from mmref.weights.store import fingerprint, recorded_sha256
    done = []
    for file in args.files:
        found = read_checkpoint(file, prefer=args.prefer, strict=args.strict)
        digest = fingerprint(file, described=False)
        expected = args.sha256.lower() if args.sha256 else recorded_sha256(file)
        if expected not in (None, digest):
            raise CheckpointError(f"{file}: sha256 must be {expected}, got {digest}")
        done.append({**name_fields("file", file), "format": found.format, "sha256": digest,
                     "sha256_checked": expected is not None,
                     "tensors": len(found.tensors), "taken": found.source, "others": list(found.others),
                     "prefix": found.prefix, "notes": list(found.notes), "foreign": list(found.foreign),
                     "fits": [variant.name + " (folded)" * is_folded(found.tensors)
                              for variant in fitting_variants(found.tensors)], "fit": account_of_fit(found.tensors)})
        if not args.json:
            _report(done[-1])
    if args.json:
        print_json(done)
    return 0


def _report(found):
    checked = "as recorded" if found["sha256_checked"] else "no hash on record"
    say(f"{found['file']}: whole; {found['tensors']} tensors ({found['format']}, taken: {found['taken']})")
    say(f"  fits    {', '.join(found['fits']) or found['fit'].removeprefix('fits ')}")
    say(f"  sha256  {found['sha256']} ({checked})")
    if found["foreign"]:
        say(f"  passed over, not executed: {listed(found['foreign'])}")
    for note in found["notes"]:
        say(f"  note    {note}")


def _path(args):
    from mmref.home import cache_folder
    from mmref.weights.store import cached
    if args.name is None:
        say(cache_folder() / "weights")
        return 0
    source, converted = cached(args.name)
    say(source if source.exists() and not converted.exists() else converted)
    return 0
