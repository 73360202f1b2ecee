"""`mmref compare REFERENCE CANDIDATE`: the first layer that differs, by how much, and why. Status 0 same, 1 differs."""

from __future__ import annotations


def add_arguments(parser):
    parser.add_argument("reference", metavar="REFERENCE", help="what `mmref trace` wrote, or any other recording: your "
                        "own from before, say")
    parser.add_argument("candidate", metavar="CANDIDATE", help=".safetensors, .npz or a folder of .npy")
    parser.add_argument("--map", metavar="FILE", help="lines `candidate's name = reference's name`, or a JSON object")
    parser.add_argument("--weights", metavar="FILE", help="the reference's weights (default: where the trace says)")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "float64", "float16"),
                        help="what the candidate computes in; float16: stores its weights in (default: %(default)s)")
    parser.add_argument("--tolerance", action="append", metavar="[PATTERN=]X", help="how far records may be off, as a "
                        "share of their largest value: 1e-3, or 'blocks1.*=1e-2' for names that a shell pattern fits; "
                        "repeatable, the last that fits counts (default: what rounding does)")
    parser.add_argument("--all", action="store_true", help="every row, not only those around the first difference")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--html", metavar="FILE", help="also write one page with pictures of the differences")


def run(args) -> int:
    from mmref.cli.output import print_json
    from mmref.validate.compare import compare
    from mmref.validate.matching import read_mapping
    from mmref.validate.trace_file import read_trace
    reference, candidate = read_trace(args.reference), read_trace(args.candidate)
    model, missing = model_of_trace(reference.manifest, args.weights)
    mapping = read_mapping(args.map) if args.map else None
    result = compare(reference, candidate, mapping, model, args.precision, tolerance=tolerance_from(args.tolerance))
    if missing:
        result.note = "; ".join(filter(None, (result.note, missing)))
    if args.html:
        from mmref.validate.page import write_page
        write_page(args.html, result, reference, candidate, args.reference, args.candidate)
    if args.json:
        print_json(result.as_dict())
    else:
        print(text(result, args.all))
    return 0 if result.same else 1


def model_of_trace(manifest, weights=None):
    """(float64 model of a trace, "") or (None, why there is none). Weights given explicitly must have its hash."""
    import numpy as np

    from mmref.errors import CheckpointError, MmrefError
    from mmref.models.create import create_model
    from mmref.validate.trace import hash_weights
    source = weights or manifest.get("weights")
    if not source or "model" not in manifest:
        return None, "the trace does not say which weights it was made with: no mistakes tried"
    try:
        chosen = None if source == "pretrained" else source
        model = create_model(manifest["model"], chosen, pretrained=chosen is None, dtype=np.float64,
                             prefer=manifest.get("prefer", "auto") if chosen else "auto",
                             num_classes=manifest.get("num_classes") if chosen else None)
        if manifest.get("folded") and not model.folded:
            model = model.fold_batchnorm()
    except (MmrefError, OSError) as error:
        if weights:
            raise
        return None, f"weights of the reference not found ({error}): no mistakes tried"
    if hash_weights(model) != manifest.get("weights_sha256"):
        if weights:
            raise CheckpointError(f"{weights}: --weights must be those of the trace, got others")
        return None, f"{source}: other weights than those of the trace: no mistakes tried"
    return model, ""


def tolerance_from(texts) -> dict[str, float] | None:
    """{pattern: share} of --tolerance. Raises ValueProblem."""
    from mmref.errors import ValueProblem
    found = {}
    for text in texts or ():
        pattern, equals, share = text.rpartition("=")
        try:
            found[pattern if equals else "*"] = float(share)
        except ValueError as error:
            raise ValueProblem(f"--tolerance must read X or PATTERN=X with a number X, got {text!r}") from error
    return found or None


def text(result, every=False) -> str:
    """The table and the verdict, for people."""
    from mmref.tables import table
    from mmref.text import printable
    from mmref.validate.statistics import said
    rows = result.rows
    if not every and not result.same:
        at = next((i for i, row in enumerate(rows) if row.name == result.first),
                  next((i for i, row in enumerate(rows) if row.verdict not in ("same", "RECORDING")), 0))
        rows = rows[max(0, at - 4):at + 7]
    elif not every:
        rows = rows[:3] + rows[-3:] if len(rows) > 6 else rows
    lines = table([(row.name, "x".join(map(str, row.shape)), row.layout, f"{row.max_abs:.2e}",
                     f"{row.max_relative:.2e}", f"{row.error:.3g}", row.verdict) for row in rows],
                  ("record", "shape", "layout", "max abs", "max rel", "in roundings", "verdict")).split("\n")
    if len(rows) < len(result.rows):
        lines.append(f"({len(result.rows)} records compared, {len(rows)} shown; --all shows the others)")
    lines += [f"  {row.name} = {row.candidate} (by its values)" for row in rows if row.how == "value"]
    if result.guesses:
        shown = list(result.guesses.items())[:5]
        lines.append("guessed by shape and order, for which nothing is claimed: "
                     + ", ".join(f"{ours} = {theirs}" for ours, theirs in shown)
                     + (f", ... ({len(result.guesses)})" if len(result.guesses) > 5 else ""))
    used = len({row.candidate for row in result.rows})
    lines.append(f"{result.matched} of the reference's {result.matched + result.unmatched_reference} records matched, "
                 f"by {result.matched_by}, with {used} of the candidate's {used + len(result.unmatched_candidate)}; "
                 f"judged as {result.precision}")
    if result.same:
        lines.append(f"SAME: all {result.matched} records that were matched agree to rounding; output: {result.output}")
    else:
        lines.append(f"DIFFERS first at {result.first}; last that agrees: {result.last or 'none'}; output: "
                     f"{result.output}")
        if not result.located:
            lines.append(f"  somewhere after {result.last or 'the input'}: records were found by their values, and "
                         f"{result.first} is the first that was not found again, or was not recorded")
        lines += [f"  {row.name}: {said(row.figures)}" for row in result.rows
                  if row.name in (result.first, "output") and row.verdict == "DIFFERS"]
        lines += [f"  reproduced by: {d.text} (at {d.layer or 'the network'}) [{d.key}]" for d in result.diagnoses]
        if len(result.causes) > 1:
            lines.append(f"  {len(result.causes)} records do not follow from the candidate's own before them: "
                         + ", ".join(result.causes[:4]) + (", ..." if len(result.causes) > 4 else ""))
    lines += [f"  exercised: {'; '.join(result.exercised)}"] if result.exercised else []
    lines += [f"  not shown by this input: {text}" for text in result.blind_spots]
    if result.note:
        lines.append(f"  note: {result.note}")
    return "\n".join(map(printable, lines))
