// The scan: its path over the photograph, the recurrence at one pixel, the state along the path, what is remembered.
const f32 = Math.fround;
const VEILS = {memory: "how much of every earlier pixel is still in the state", state: "the state h at every pixel so far", decay: "the decay at every pixel", none: "nothing"};

// Everything of one scan, channel and direction, as arrays along the path.
function sequence(scan, k, d, n) {
  const {D, kept, N, L} = scan, f = text => numbers(text, Float32Array), one = (k * kept + d), many = one * N + n;
  const cut = (text, at) => f(text).subarray(at * L, (at + 1) * L);
  return {path: numbers(scan.paths, Int32Array).subarray(k * L, (k + 1) * L), u: cut(scan.u, one), delta: cut(scan.delta, one), y: cut(scan.y, one),
    A: f(scan.A)[many], skip: f(scan.skip)[one], decay: cut(scan.decay, many), h: cut(scan.h, many), B: cut(scan.B, k * N + n), C: cut(scan.C, k * N + n)};
}
// One step in single precision, in the reference's order: h = decay h + (delta u) B.
function stepOf(s, l, before) {
  const drive = f32(f32(s.delta[l] * s.u[l]) * s.B[l]);
  return {drive, h: f32(f32(s.decay[l] * before) + drive)};
}
// y = D u, and C h of every state added to it, in the reference's order; h from the start of the sequence.
function resultOf(scan, k, d, l) {
  let y = null;
  for (let n = 0; n < scan.N; n++) {
    const s = sequence(scan, k, d, n);
    let h = 0;
    for (let i = 0; i <= l; i++) h = stepOf(s, i, h).h;
    if (y === null) y = f32(s.skip * s.u[l]);
    y = f32(y + f32(s.C[l] * h));
  }
  return y === null ? f32(sequence(scan, k, d, 0).skip * sequence(scan, k, d, 0).u[l]) : y;
}
// How many of all steps of a scan come out otherwise than stored: 0.
function mismatches(scan) {
  let wrong = 0;
  for (let k = 0; k < scan.K; k++) for (let d = 0; d < scan.kept; d++) {
    const all = Array.from({length: scan.N}, (_, n) => sequence(scan, k, d, n)), h = new Float32Array(scan.N);
    for (let l = 0; l < scan.L; l++) {
      let y = f32(all[0].skip * all[0].u[l]);
      for (let n = 0; n < scan.N; n++) {
        h[n] = stepOf(all[n], l, h[n]).h;
        if (!Object.is(h[n], all[n].h[l])) wrong++;
        y = f32(y + f32(all[n].C[l] * h[n]));
      }
      if (y !== all[0].y[l]) wrong++;
    }
  }
  return wrong;
}
// The share of the state after every earlier step that is still there at step l: the product of all decays since.
function memory(s, l) {
  const share = new Float64Array(l + 1);
  share[l] = 1;
  for (let i = l - 1; i >= 0; i--) share[i] = share[i + 1] * s.decay[i + 1];
  return share;
}
function rememberedText(s, l) {
  const share = memory(s, l), L = s.decay.length;
  const logs = Array.from(s.decay, v => Math.log(Math.max(v, 1e-38))), mean = logs.reduce((a, b) => a + b, 0) / L;
  const reach = part => mean >= -1e-9 ? Infinity : Math.log(part) / mean;
  const say = n => n >= 1000 ? "more than 1000 pixels" : n < 10 ? n.toFixed(1) + " pixels" : Math.round(n) + " pixels";
  return {half: reach(0.5), hundredth: reach(0.01), first: share[0], text: `On average over this path ${percent(Math.exp(mean))} of the state outlives a pixel: half is forgotten after ${say(reach(0.5))}, all but 1 % after ${say(reach(0.01))}` +
    (reach(0.01) > L ? `, which is longer than the path of ${L}` : ` (the path has ${L})`) + `. At this pixel ${percent(share[0])} of what the first pixel left is still there.`};
}

let timer = null;
function play(on) {
  clearInterval(timer);
  timer = null;
  if (on) timer = setInterval(() => {
    const scan = data.scans[state.scan];
    set({step: (state.step + 1) % scan.L}, true);
  }, Math.max(40, Math.min(450, 7000 / data.scans[state.scan].L)));
  const button = $("play");
  if (button) { button.textContent = on ? "Pause" : "Play"; button.setAttribute("aria-pressed", String(on)); }
}

let scanParts = null;
const buttons = (label, list, key, id) => el("div", {class: "row", role: "group", "aria-label": label, id}, el("span", {}, label), list.map((text, i) =>
  el("button", {type: "button", "data-choice": i, onclick: () => set({[key]: i})}, text)));
const pressed = (id, chosen) => document.querySelectorAll(`#${id} [data-choice]`).forEach(b => b.setAttribute("aria-pressed", String(Number(b.dataset.choice) === chosen)));
function drawScan() {
  if (!data.scans.length) return;
  play(false);
  state.scan = Math.max(0, Math.min(data.scans.length - 1, state.scan));
  const scan = data.scans[state.scan];
  state.inner = Math.max(0, Math.min(scan.kept - 1, state.inner));
  state.direction = Math.max(0, Math.min(scan.K - 1, state.direction));
  state.state = Math.max(0, Math.min(scan.N - 1, state.state));
  state.step = Math.max(0, Math.min(scan.L - 1, state.step));
  fill("scan-body",
    el("div", {class: "row"}, el("label", {}, "scan of", el("select", {id: "scan-choice", "aria-label": "which scan", onchange: event => set({scan: Number(event.target.value), step: 0})},
      data.scans.map((one, i) => el("option", {value: i, selected: i === state.scan}, `${one.layer} (${one.size.join(" × ")})`))))),
    el("div", {class: "row"}, chooser(scan.kept < scan.D ? `inner channel (${scan.kept} of ${scan.D} are on this page)` : `inner channel, of ${scan.D}`, "inner", Array.from({length: scan.kept}, (_, i) => i), v => set({inner: v}))),
    buttons("direction", scan.directions, "direction", "directions"),
    scan.N > 1 ? buttons("state", Array.from({length: scan.N}, (_, n) => String(n)), "state", "states") : null,
    el("div", {id: "scan-view"}));
  fill("scan-lead", ...prose(`A [scan] reads the map of ${times(scan.size)} pixels as a [sequence]. At each [pixel], each of ${scan.D} [inner channel]s updates its [state]: it keeps a share, the [decay], and takes the pixel in. [selective] means that the pixel decides.`));
  drawSequence();
}
function drawSequence() {
  if (!data.scans.length) return;
  play(false);
  const scan = data.scans[state.scan];
  pressed("directions", state.direction); pressed("states", state.state);
  const s = sequence(scan, state.direction, state.inner, state.state), [h, w] = scan.size;
  const veil = el("canvas", {}), line = pathLine(s.path, w, h);
  const stack = el("div", {class: "stack", id: "scan-photo", role: "img", tabindex: 0, "aria-label": "The photograph with the scan's path; arrow keys go along it", onclick: event => {
    const box = stack.getBoundingClientRect(), pixel = Math.floor((event.clientY - box.top) / box.height * h) * w + Math.floor((event.clientX - box.left) / box.width * w), l = s.path.indexOf(pixel);
    if (l >= 0) { play(false); set({step: l}); }
  }, onkeydown: event => {
    const move = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -scan.L, End: scan.L}[event.key];
    if (move) { event.preventDefault(); play(false); set({step: Math.max(0, Math.min(scan.L - 1, state.step + move))}); }
  }}, photograph(), veil, line);
  stack.style.aspectRatio = `${data.picture.size[1]} / ${data.picture.size[0]}`;
  const slider = el("input", {type: "range", id: "scan-step", min: 0, max: scan.L - 1, value: state.step, "aria-label": "step along the path", oninput: () => { play(false); set({step: Number(slider.value)}); }});
  const table = el("tbody"), trace = el("div"), remembered = el("p", {id: "remembered", class: "big"});
  fill("scan-view",
    el("div", {class: "columns"},
      el("div", {}, stack, el("div", {class: "row"}, el("button", {type: "button", id: "play", "aria-pressed": "false", onclick: () => play(!timer)}, "Play"),
        el("button", {type: "button", "aria-label": "one pixel back", onclick: () => { play(false); set({step: Math.max(0, state.step - 1)}); }}, "‹"), el("button", {type: "button", "aria-label": "one pixel on", onclick: () => { play(false); set({step: Math.min(scan.L - 1, state.step + 1)}); }}, "›"),
        el("label", {class: "grow"}, "step", slider)),
      el("label", {class: "row"}, "over the picture", el("select", {id: "veil", "aria-label": "what is drawn over the picture", onchange: event => set({veil: event.target.value})}, Object.entries(VEILS).map(([key, text]) => el("option", {value: key, selected: key === state.veil}, text)))),
      el("div", {id: "veil-legend", class: "legend"})),
      el("div", {}, el("div", {class: "scroll"}, el("table", {"aria-label": "The recurrence at this pixel"}, el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "at this pixel"), el("th", {scope: "col"}, "in the run"), el("th", {scope: "col"}, "done again here"))), table)),
        el("p", {id: "scan-equal", class: "small"}))),
    el("h3", {}, "The state along the path"), el("div", {class: "scroll", tabindex: 0, role: "group", "aria-label": "the state along the path"}, trace), el("h3", {}, `How far channel ${state.inner} remembers`), remembered, el("div", {class: "scroll"}, everyDirection(scan)),
    el("h3", {}, "Orders that a scan can have"), el("p", {class: "small"}, "Read on this map's pixels; from the dot on. This run's: ", scan.directions.join(", "), "."), el("div", {class: "panels"}, everyOrder(scan)));
  scanParts = {scan, s, veil, line, slider, table, trace, remembered};
  drawStep();
}
function everyDirection(scan) {
  return el("table", {"aria-label": "Memory in every direction"}, el("thead", {}, el("tr", {}, ["direction", "mean decay", "half gone after", "99 % gone after"].map(text => el("th", {scope: "col"}, text)))),
    el("tbody", {}, scan.directions.map((name, k) => {
      const s = sequence(scan, k, state.inner, state.state), r = rememberedText(s, scan.L - 1), say = v => v >= 1000 ? "over 1000 pixels" : v.toFixed(1) + " pixels";
      return el("tr", {}, el("td", {}, name), el("td", {}, short(Math.exp(Array.from(s.decay, v => Math.log(Math.max(v, 1e-38))).reduce((a, b) => a + b, 0) / scan.L))), el("td", {}, say(r.half)), el("td", {}, say(r.hundredth)));
    })));
}
// The paths of every order's directions, small.
function everyOrder(scan) {
  const [h, w] = scan.size;
  return data.orders[`${h} x ${w}`].map(({order, directions, paths, L}) => el("figure", {}, el("div", {class: "row tight"}, directions.map((name, k) => {
    const path = Array.from(numbers(paths, Int32Array).subarray(k * L, (k + 1) * L)).filter(p => p >= 0), line = pathLine(path, w, h);
    line.querySelector(".now").remove();
    line.querySelector("polyline").setAttribute("stroke-opacity", 1);
    if (path.length) line.append(el("circle", {cx: path[0] % w + 0.5, cy: Math.floor(path[0] / w) + 0.5, r: Math.max(w, h) / 18, fill: "#ffcc33"}));
    return el("div", {class: "stack", role: "img", "aria-label": `${order}: ${name}`}, photograph(""), line);
  })), el("figcaption", {}, el("strong", {}, order), ": " + directions.join("; "))));
}
function pathLine(path, w, h) {
  const at = p => `${(p % w + 0.5).toFixed(2)},${(Math.floor(p / w) + 0.5).toFixed(2)}`, points = Array.from(path).filter(p => p >= 0);
  return el("svg", {viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none", "aria-hidden": "true"},
    el("polyline", {points: points.map(at).join(" "), fill: "none", stroke: "#ffffff", "stroke-opacity": 0.45, "stroke-width": Math.max(w, h) / 400}),
    el("polyline", {class: "walked", points: "", fill: "none", stroke: "#ffffff", "stroke-width": Math.max(w, h) / 200}),
    el("rect", {class: "now", width: 1, height: 1, fill: "none", stroke: "#ffcc33", "stroke-width": Math.max(w, h) / 110}));
}
function drawStep() {
  if (!scanParts) return;
  const {scan, s, veil, line, slider, table, trace, remembered} = scanParts, [h, w] = scan.size, l = Math.max(0, Math.min(scan.L - 1, state.step));
  slider.value = l;
  const before = l ? s.h[l - 1] : 0, again = stepOf(s, l, before), y = resultOf(scan, state.direction, state.inner, l), pixel = s.path[l];
  const rows = [[["step size", "delta"], s.delta[l]], [["A"], s.A], [["decay", "decay = exp(delta A)"], s.decay[l], Math.exp(f32(s.delta[l] * s.A)), "about"], [["u"], s.u[l]], [["B"], s.B[l]],
    [["u", "taken in = delta u B"], again.drive, again.drive], [["state", "h before"], before], [["state", "h after = decay h + taken in"], s.h[l], again.h], [["C"], s.C[l]], [["D"], s.skip], [["state", scan.N > 1 ? "y = D u + sum of C h" : "y = D u + C h"], s.y[l], y]];
  fill(table, rows.map(([[word, text], stored, done, about]) => el("tr", {}, el("td", {}, term(word, text || word)), el("td", {class: "mono"}, exact(stored)),
    done === undefined ? el("td") : about ? el("td", {class: "mono"}, Number(done.toPrecision(7)) + "") : el("td", {class: "mono " + (Object.is(done, stored) || done === stored ? "ok" : "bad")}, exact(done) + (done === stored ? " ✓" : " ✗")))));
  const equal = again.h === s.h[l] && y === s.y[l];
  fill("scan-equal", equal ? "Your browser did this step again in single precision, in the reference's order: the same numbers to the last bit." : "Not the same numbers: this page is wrong, please report it.",
    el("br"), pixel >= 0 ? `Step ${l} of ${scan.L}: row ${Math.floor(pixel / w)}, column ${pixel % w}.` : `Step ${l} of ${scan.L}: a pixel of zeros that fills the last window.`);
  // over the picture
  const values = {memory: () => memory(s, l), state: () => s.h.subarray(0, l + 1), decay: () => s.decay, none: () => []}[state.veil]();
  const most = state.veil === "state" ? Math.max(...Array.from(s.h, Math.abs)) || 1 : 1, at = new Float64Array(w * h).fill(NaN);
  for (let i = 0; i < values.length; i++) if (s.path[i] >= 0) at[s.path[i]] = values[i];
  paint(w, h, i => {
    const v = at[i];
    if (Number.isNaN(v)) return state.veil === "none" || state.veil === "decay" ? [0, 0, 0, 0] : [10, 10, 20, 120];
    if (state.veil === "state") { const c = SIGNED[Math.round(127.5 + 127.5 * v / most)]; return [c[0], c[1], c[2], 40 + 190 * Math.abs(v) / most]; }
    if (state.veil === "decay") { const c = HEATS[Math.round(255 * v)]; return [c[0], c[1], c[2], 185]; }
    return [128, 70, 255, 225 * v];
  }, veil);
  fill("veil-legend", {memory: [el("i", {class: "violet"}), "the fuller the violet, the more of that pixel's share is still in h; dark: not yet seen"],
    state: [el("i", {class: "crimson"}), "red: positive, blue: negative, full: " + short(most)], decay: ["bright: 1, everything is kept; dark: 0, all is forgotten here"], none: [""]}[state.veil]);
  const points = Array.from(s.path.subarray(0, l + 1)).filter(p => p >= 0).map(p => `${p % w + 0.5},${Math.floor(p / w) + 0.5}`).join(" ");
  line.querySelector(".walked").setAttribute("points", points);
  const now = line.querySelector(".now");
  now.setAttribute("visibility", pixel >= 0 ? "visible" : "hidden");
  now.setAttribute("x", pixel % w); now.setAttribute("y", Math.floor(pixel / w));
  fill(trace, traceOf(s, l));
  remembered.textContent = rememberedText(s, l).text;
}
function traceOf(s, l) {
  const L = s.h.length, width = 900, height = 150, x = i => 8 + (width - 16) * (i + 0.5) / L, low = Math.min(0, ...s.h), high = Math.max(0, ...s.h), span = high - low || 1, y = v => 8 + (height - 16) * (high - v) / span;
  const share = memory(s, l), bar = (width - 16) / L;
  const strip = (name, value, top, colour) => [el("text", {x: 8, y: top - 4, "font-size": 12, class: "soft"}, name),
    ...Array.from({length: L}, (_, i) => value(i) > 0.002 ? el("rect", {x: x(i) - bar / 2, y: top + 26 * (1 - value(i)), width: Math.max(0.5, bar * 0.92), height: 26 * value(i), fill: colour}) : null)].filter(Boolean);
  return el("svg", {viewBox: `0 0 ${width} 262`, class: "strip", role: "img", "aria-label": `The state along ${L} steps, from ${short(low)} to ${short(high)}; below it the decay at every pixel and what is left now of every earlier pixel`},
    el("line", {x1: 8, x2: width - 8, y1: y(0), y2: y(0), stroke: "var(--line)"}),
    el("polyline", {points: Array.from(s.h, (v, i) => `${x(i)},${y(v)}`).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 2}),
    el("line", {x1: x(l), x2: x(l), y1: 0, y2: 250, stroke: "var(--amber)", "stroke-width": 2}), el("circle", {cx: x(l), cy: y(s.h[l]), r: 5, fill: "var(--amber)"}),
    el("text", {x: 12, y: 14, "font-size": 12, class: "soft"}, `h, from ${short(low)} to ${short(high)}`),
    strip("decay at every pixel (full: keeps everything)", i => s.decay[i], 172, "var(--mint)"), strip("still in the state now, of every earlier pixel", i => i <= l ? share[i] : 0, 224, "var(--accent)"));
}
draws(["scan"], drawScan);
draws(["inner", "direction", "state"], drawSequence);
draws(["step", "veil"], drawStep);
