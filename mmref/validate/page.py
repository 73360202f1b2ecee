"""A comparison as one HTML page: table, verdict, and pictures of the differences, all in one file."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

from mmref.text import printable
from mmref.validate.layouts import arranged

PICTURES = 12


def write_page(path, result, reference, candidate, reference_name="", candidate_name="") -> None:
    """Write the page, whole or not at all."""
    from mmref.files import replacing
    with replacing(path) as temporary:
        temporary.write_text(page(result, reference, candidate, reference_name, candidate_name), encoding="utf-8")


def page(result, reference, candidate, reference_name="", candidate_name="") -> str:
    """The HTML text. Names come from files, so every one of them is escaped."""
    e = _escape
    verdict = ("Same: every record agrees to rounding" if result.same else f"Differs first at {result.first}")
    rows = "".join(
        f'<tr class="{"same" if row.verdict == "same" else "differs"}{" first" if row.name == result.first else ""}">'
        f"<td>{e(row.name)}</td><td>{'&times;'.join(map(str, row.shape))}</td><td>{e(row.layout)}</td>"
        f"<td>{row.max_abs:.2e}</td><td>{row.max_relative:.2e}</td><td>{row.error:.3g}</td><td>{e(row.verdict)}</td></tr>"
        for row in result.rows)
    reasons = "".join(f"<li>{e(d.text)} <small>at {e(d.layer)}, [{e(d.key)}]</small></li>" for d in result.diagnoses)
    blind = "".join(f"<li>{e(text)}</li>" for text in result.blind_spots)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mmref compare: {e(verdict)}</title>
<style>{STYLE}</style></head><body>
<h1 class="{'same' if result.same else 'differs'}">{e(verdict)}</h1>
<p>Reference <code>{e(str(reference_name))}</code>, candidate <code>{e(str(candidate_name))}</code>; matched by
{e(result.matched_by)}, judged as {e(result.precision)}.</p>
{f'<h2>What reproduces it</h2><ul>{reasons}</ul>' if reasons else ''}
{f'<p>{e(result.note)}</p>' if result.note else ''}
{f'<h2>Not shown by this input</h2><ul>{blind}</ul>' if blind else ''}
{_gallery(result, reference, candidate)}
<h2>Records in network order</h2>
<p>Errors in roundings: largest absolute error over what float32 rounding alone makes of this record.</p>
<table><thead><tr><th>record<th>shape<th>layout<th>max abs<th>max rel<th>in roundings<th>verdict</tr></thead>
<tbody>{rows}</tbody></table></body></html>
"""


STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
h1{font-size:1.5rem;overflow-wrap:anywhere}h1.same{color:#116329}h1.differs{color:#a40e26}h2{font-size:1.1rem}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:.15rem .5rem;text-align:right;
border-bottom:1px solid #e3e6ea}td:first-child,th:first-child{text-align:left;overflow-wrap:anywhere}
tr.differs td{background:#fff0f0}tr.first td{background:#ffd5d5;font-weight:600}
.gallery{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}figure div{display:flex;gap:4px}
img{width:144px;height:144px;object-fit:contain;image-rendering:pixelated;background:#f2f4f6}
figcaption{font-size:12px;max-width:27.5rem;overflow-wrap:anywhere}small{color:#57606a}"""


def _escape(text) -> str:
    """Text of others as HTML: no markup, and nothing that turns the page's text around or is no Unicode."""
    return html.escape(printable(text))


def _gallery(result, reference, candidate):
    wrong = [row for row in result.rows if row.verdict == "DIFFERS" and len(row.shape) == 4][:PICTURES]
    figures = []
    for row in wrong:
        ours = np.asarray(reference.records[row.name], np.float64)
        theirs, _ = arranged(ours, candidate.records[row.candidate])
        difference = np.abs(theirs - ours)
        sample = int(difference.max(axis=(1, 2, 3)).argmax())
        channel = int(difference[sample].max(axis=(1, 2)).argmax())
        low, high = ours[sample, channel].min(), ours[sample, channel].max()
        images = "".join(_image(array[sample, channel], *limits, word) for array, limits, word in (
            (ours, (low, high), "reference"), (theirs, (low, high), "candidate"),
            (difference, (0, difference[sample, channel].max()), "difference")))
        figures.append(f"<figure><div>{images}</div><figcaption>{_escape(row.name)}<br><small>sample {sample}, "
                       f"channel {channel}; reference, candidate, absolute difference</small></figcaption></figure>")
    return f'<h2>Where they differ</h2><div class="gallery">{"".join(figures)}</div>' if figures else ""


def _image(plane, low, high, word):
    from PIL import Image
    grey = np.clip((plane - low) / max(high - low, 1e-30), 0, 1)
    dark = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])  # viridis in five
    colours = np.stack([np.interp(grey, np.linspace(0, 1, 5), dark[:, c]) for c in range(3)], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "PNG")
    return f'<img alt="{word}" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
