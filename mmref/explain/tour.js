// The tour: a card that goes from part to part and sets each up.
const has = {"": true, scan: data.scans.length > 0, bands: data.bands.length > 0, untouched: data.untouched.length > 0};
const stops = data.tour.filter(stop => has[stop.needs]);
const within = (name, layer) => name === layer || name.startsWith(layer + ".");
const firstBlock = () => {
  const inner = data.scans.length ? data.scans[0].layer : data.layers[data.layers.length - 1].name;
  const around = data.layers.filter(l => l.drawing && l.name && within(inner, l.name));
  return around.length ? around[0].name : "";
};
function visit(id) { const target = $(id); if (target) target.scrollIntoView({block: "start"}); return target; }
const light = target => { document.querySelectorAll(".lit").forEach(e => e.classList.remove("lit")); if (target) target.classList.add("lit"); };

const shows = {
  top: () => visit("top"), network: () => { set({layer: ""}); return visit("overview"); },
  block: () => { set({layer: firstBlock()}); visit("network"); return $("drawing"); },
  split: () => { set({layer: data.untouched[0].layer}); visit("network"); return $("drawing"); },
  scan: () => visit("scan"), bands: () => visit("bands"), answer: () => visit("answer"),
};
// What selective looks like: the channel and direction of this scan whose decay varies most along the path.
function mostSelective(scan) {
  let best = [-1, 0, 0];
  for (let k = 0; k < scan.K; k++) for (let d = 0; d < scan.kept; d++) {
    const {decay} = sequence(scan, k, d, 0), mean = decay.reduce((a, b) => a + b, 0) / scan.L, spread = decay.reduce((a, v) => a + (v - mean) ** 2, 0);
    if (spread > best[0]) best = [spread, k, d];
  }
  return {direction: best[1], inner: best[2]};
}
// A channel that remembers long, but not everything.
function longMemory(scan) {
  let best = [Infinity, 0];
  for (let d = 0; d < scan.kept; d++) {
    const first = memory(sequence(scan, 0, d, 0), scan.L - 1)[0], off = Math.abs(first - 0.05);
    if (off < best[0]) best = [off, d];
  }
  return {direction: 0, inner: best[1]};
}
const sets = {
  play: () => { set({scan: 0, step: 0, veil: "state"}); if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play(true); },
  selective: () => set({scan: 0, ...mostSelective(data.scans[0]), step: data.scans[0].L - 1, veil: "decay"}),
  memory: () => set({scan: 0, ...longMemory(data.scans[0]), step: Math.floor(data.scans[0].L * 0.7), veil: "memory"}),
};

function drawTour() {
  const card = $("tour"), n = Math.max(0, Math.min(stops.length, state.tour));
  card.hidden = n === 0;
  document.querySelectorAll(".lit").forEach(e => e.classList.remove("lit"));
  if (!n) return;
  const stop = stops[n - 1], go = to => { play(false); set({tour: to}); };
  const next = el("button", {type: "button", id: "tour-next", onclick: () => go(n < stops.length ? n + 1 : 0)}, n < stops.length ? "Next" : "Done");
  fill(card, el("p", {class: "over"}, `Stop ${n} of ${stops.length}`), el("h3", {id: "tour-title"}, stop.title), el("p", {}, ...prose(stop.text)),
    el("div", {class: "row"}, el("button", {type: "button", id: "tour-back", disabled: n === 1, onclick: () => go(n - 1)}, "Back"), next,
      el("progress", {max: stops.length, value: n, "aria-label": "tour"}), el("button", {type: "button", id: "tour-close", "aria-label": "Leave the tour", onclick: () => { go(0); $("tour-start").focus(); }}, "✕")));
  if (stop.step) sets[stop.step]();
  light(shows[stop.show]());
  next.focus({preventScroll: true});
}
draws(["tour"], drawTour);
document.addEventListener("keydown", event => {
  if (!state.tour || event.target.closest("input, select, .stack, dialog, [role=group]")) return;
  if (event.key === "Escape") set({tour: 0});
  if (event.key === "ArrowRight" && state.tour < stops.length) { play(false); set({tour: state.tour + 1}); }
  if (event.key === "ArrowLeft" && state.tour > 1) { play(false); set({tour: state.tour - 1}); }
});
