// The wavelet branch: sub-bands of picture and channel, before and after their convolution.
const BANDS = [["low-low", "the average of 2 × 2 pixels: the map, smaller"], ["high along H", "what changes downwards: horizontal edges"],
  ["high along W", "what changes sideways: vertical edges"], ["high-high", "what changes both ways at once: corners, dots, checks; plain edges leave it empty"]];

function signedCanvas(plane, k, grey) {
  const [h, w] = plane.size, levels = numbers(plane.levels, Uint8Array);
  let low = 255, high = 0;
  for (let i = k * h * w; i < (k + 1) * h * w; i++) { low = Math.min(low, levels[i]); high = Math.max(high, levels[i]); }
  return paint(w, h, i => {
    const v = levels[k * h * w + i];
    return grey ? HEATS[Math.round(255 * (v - low) / Math.max(1, high - low))] : SIGNED[v];
  });
}
function drawBranch() {
  if (!data.bands.length) return;
  state.branch = Math.max(0, Math.min(data.bands.length - 1, state.branch));
  const branch = data.bands[state.branch];
  state.band = nearest(branch.channels, state.band);
  fill("bands-body",
    el("div", {class: "row"}, el("label", {}, "branch of", el("select", {"aria-label": "which branch", onchange: event => set({branch: Number(event.target.value)})}, data.bands.map((b, i) => el("option", {value: i, selected: i === state.branch}, b.layer + (b.level ? `, level ${b.level + 1}` : ""))))),
      chooser(branch.channels.length < branch.of ? `channel (${branch.channels.length} of ${branch.of}: those that vary most)` : "channel", "band", branch.channels, v => set({band: v}))),
    el("div", {id: "bands-view"}));
  fill("bands-lead", ...prose("Beside the scan: each [channel] is taken apart by a [wavelet] into four [sub-band]s of half the size, each is convolved and scaled by itself, and they are put together again. Blue is negative, red positive."));
  drawBands();
}
function drawBands() {
  if (!data.bands.length) return;
  const branch = data.bands[state.branch], channel = nearest(branch.channels, state.band), k = branch.channels.indexOf(channel), energy = branch.energy[k];
  const panel = (plane, index, name, caption, grey) => {
    const [h, w] = plane.size, largest = numbers(plane.largest, Float32Array)[index];
    return el("figure", {}, placed(signedCanvas(plane, index, grey), w, h, name + "; arrow keys move the place"), el("figcaption", {}, el("strong", {}, name.split(": ").pop()), el("br"), caption, el("br"), `largest ${short(largest)}`));
  };
  const row = (heading, first, plane, at) => [el("h3", {}, heading), el("div", {class: "bands", tabindex: 0, role: "group", "aria-label": heading}, first, BANDS.map(([name, text], s) => panel(plane, at * 4 + s, `${heading}: ${name}`, text, s === 0)))];
  const most = Math.max(...energy.flat()) || 1;
  fill("bands-view",
    row("The photograph's own sub-bands", el("figure", {}, placed(photograph(), branch.x.size[1], branch.x.size[0], "The photograph; arrow keys move the place"), el("figcaption", {}, el("strong", {}, "photograph"))), branch.picture, 0),
    row(`Channel ${channel} before the convolution`, panel(branch.x, k, "Before: the channel", "what the branch reads", true), branch.before, k),
    row(`Channel ${channel} after convolution and scale`, panel(branch.y, k, "After: put together again", "what the branch adds to the scan's result", true), branch.after, k),
    el("h3", {}, "How strong each ", term("sub-band"), " is (root of its mean square)"),
    el("div", {class: "bars"}, BANDS.flatMap(([name], s) => [0, 1].flatMap(i => [el("span", {}, `${name}, ${i ? "after" : "before"}`),
      el("span", {class: "track"}, el("i", {class: i ? "amber" : "violet", style: `width:${100 * energy[i][s] / most}%`})), el("span", {class: "mono"}, short(energy[i][s]))]))),
    el("p", {id: "high-high"}, ...prose(`The [high-high] sub-band of channel ${channel}: ${percent(energy[0][3] ** 2 / (energy[0].reduce((a, v) => a + v * v, 0) || 1))} of the channel's energy is in it before the convolution, ` +
      `${percent(energy[1][3] ** 2 / (energy[1].reduce((a, v) => a + v * v, 0) || 1))} of the branch's after it. It shows where the map changes downwards and sideways at once: corners, dots and checks; a plain edge or an even area leaves it at 0.`)));
}
draws(["branch"], drawBranch);
draws(["band"], drawBands);
