// One layer: text, formula, shapes, parameters, input and output.
const WORDS_OF_PYTHON = "and as assert break class continue def del elif else except finally for from if import in is lambda not or pass raise return try while with yield None True False self".split(" ");
const PYTHON = new RegExp(`("""[\\s\\S]*?"""|'''[\\s\\S]*?'''|"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*')|(#[^\\n]*)|\\b(${WORDS_OF_PYTHON.join("|")})\\b|(\\b\\d[\\w.]*)`, "g");

// Python text as spans, with line numbers from `first` on.
function highlighted(text, first, from, to) {
  const lines = [[]];
  const put = (part, kind) => part.split("\n").forEach((piece, i) => {
    if (i) lines.push([]);
    if (piece) lines[lines.length - 1].push(kind ? el("span", {class: kind}, piece) : document.createTextNode(piece));
  });
  let last = 0;
  for (const match of text.matchAll(PYTHON)) {
    put(text.slice(last, match.index));
    put(match[0], match[1] ? "s" : match[2] ? "c" : match[3] ? "k" : "n");
    last = match.index + match[0].length;
  }
  put(text.slice(last));
  return el("pre", {tabindex: 0}, lines.map((line, i) => el("div", {class: first + i >= from && first + i <= to ? "here" : null, id: from && first + i === from ? "file-here" : null},
    el("span", {class: "no", "aria-hidden": "true"}, String(first + i).padStart(4) + "  "), line, line.length ? null : " ")));
}
function openFile(file, from, to) {
  const dialog = $("file");
  fill(dialog, el("div", {class: "row"}, el("h3", {id: "file-title"}, file), el("button", {type: "button", onclick: () => dialog.close()}, "Close")), highlighted(data.files[file], 1, from, to));
  dialog.showModal();
  const here = $("file-here");
  if (here) here.scrollIntoView({block: "start"});
}

function parameterPicture(record) {
  const [h, w] = record.size, levels = numbers(record.levels, Uint8Array), tall = h === 1 ? 14 : 1;
  const canvas = paint(w, h * tall, i => SIGNED[Math.max(0, Math.min(255, levels[i % w + w * Math.floor(Math.floor(i / w) / tall)]))]);
  canvas.className = "plain";
  const scale = Math.max(1, Math.min(9, Math.floor(220 / w), h * tall > 1 ? Math.floor(170 / (h * tall)) : 9));
  canvas.style.width = Math.min(w * scale, 300) + "px";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${record.name}, ${times(record.shape)}, from ${short(record.min)} to ${short(record.max)}`);
  const [a, b] = record.block;
  return el("figure", {}, canvas, el("figcaption", {}, el("strong", {}, record.name), ` ${times(record.shape)}: ${short(record.min)} to ${short(record.max)}, mean ${short(record.mean)}`,
    record.tile ? `; kernels of ${record.tile} × ${record.tile} side by side` : a * b > 1 ? `; every point the mean of ${a} × ${b}` : ""));
}

// One side of a layer: the chosen channel over its whole width, all kept channels below, and its figures.
function mapPanel(name, map, readouts) {
  const list = names(map), channel = nearest(list, state.channel), [h, w] = map.size;
  const heading = `${name}: ${times(map.shape)}`;
  const figures = `${short(map.min)} to ${short(map.max)}, mean ${short(map.mean)}`;
  if (h * w === 1) {
    const low = numbers(map.low, Float32Array), most = Math.max(...low.map(Math.abs)) || 1;
    const bars = paint(list.length, 60, i => { const v = low[i % list.length] / most, y = 1 - 2 * Math.floor(i / list.length) / 59;
      return (v >= 0 ? y >= 0 && y <= v : y < 0 && y >= v) ? (v >= 0 ? [168, 36, 60] : [36, 81, 168]) : [0, 0, 0, 0]; });
    bars.className = "plain"; bars.style.width = "100%"; bars.style.height = "7rem";
    bars.setAttribute("role", "img"); bars.setAttribute("aria-label", heading + ", as bars, " + figures);
    return el("figure", {}, bars, el("figcaption", {}, el("strong", {}, heading), ` numbers, red above zero, blue below; ${figures}`));
  }
  const readout = el("span", {class: "mono"});
  readouts.push(() => { const at = mapValue(map, channel, state.x, state.y); readout.textContent = ` at row ${at.row}, column ${at.column}: about ${short(at.value)}`; });
  return el("figure", {}, placed(mapCanvas(map, channel), w, h, `${name}, channel ${channel}; arrow keys move the place`),
    el("figcaption", {}, el("strong", {}, heading), `; channel ${channel}`, readout, el("br"), `all channels: ${figures}`, map.step > 1 ? `; shown: every ${map.step}. pixel` : "",
      map.kept ? `; ${list.length} of ${map.channels} channels are on this page, those that vary most` : ""), histogram(map), mosaic(map, list, channel, name));
}

// All channels as one picture of tiles; a click chooses one.
function mosaic(map, list, channel, name) {
  const [h, w] = map.size, n = list.length, across = Math.ceil(Math.sqrt(n * h / w)) || 1, down = Math.ceil(n / across), levels = numbers(map.levels, Uint8Array);
  const W = across * (w + 1) - 1, H = down * (h + 1) - 1, chosen = list.indexOf(channel);
  const canvas = paint(W, H, i => {
    const x = i % W, y = Math.floor(i / W), k = Math.floor(y / (h + 1)) * across + Math.floor(x / (w + 1)), dx = x % (w + 1), dy = y % (h + 1);
    return k >= n || dx === w || dy === h ? [128, 128, 128, 0] : HEATS[levels[k * h * w + dy * w + dx]];
  });
  const frame = el("div", {class: "spot", style: `left:${100 * (chosen % across) * (w + 1) / W}%;top:${100 * Math.floor(chosen / across) * (h + 1) / H}%;width:${100 * w / W}%;height:${100 * h / H}%`});
  const stack = el("div", {class: "stack", role: "img", "aria-label": `${name}: all ${n} channels side by side`, onclick: event => {
    const box = stack.getBoundingClientRect(), k = Math.floor((event.clientY - box.top) / box.height * H / (h + 1)) * across + Math.floor((event.clientX - box.left) / box.width * W / (w + 1));
    if (k < n) set({channel: list[k]});
  }}, canvas, frame);
  stack.style.marginTop = ".4rem";
  return stack;
}

let readouts = [];
function drawMaps() {
  const layer = byName.get(state.layer);
  readouts = [];
  if (layer.input === null) return;
  const input = data.maps[layer.input], output = data.maps[layer.output];
  fill("layer-maps", mapPanel("input", input, readouts), mapPanel("output", output, readouts),
    el("figure", {}, placed(photograph(), input.size[1], input.size[0], "The photograph; arrow keys move the place"), el("figcaption", {}, "the same place in the photograph")));
  readouts.forEach(f => f());
}
function drawLayer() {
  const layer = byName.get(state.layer), kind = data.kinds[layer.kind];
  const doc = kind.doc.split("\n\n")[0];
  const hasMaps = layer.input !== null, input = hasMaps ? data.maps[layer.input] : null, output = hasMaps ? data.maps[layer.output] : null;
  const list = hasMaps ? [...new Set([...names(input), ...names(output)])].sort((a, b) => a - b) : [];
  const scan = data.scans.findIndex(s => s.layer === layer.name || s.layer.startsWith(layer.name + ".")), branch = data.bands.findIndex(b => b.layer === layer.name || b.layer.startsWith(layer.name + "."));
  const source = kind.file ? [el("p", {}, el("a", {href: "#layer", id: "source-link", onclick: event => { event.preventDefault(); openFile(kind.file, kind.line, kind.end); }}, `${kind.file}, line ${kind.line}`), el("span", {class: "small"}, " (opens the file in this page)")),
    highlighted(data.files[kind.file].split("\n").slice(kind.line - 1, kind.end).join("\n"), kind.line)] : [el("p", {class: "small"}, "The text of this class was not at hand.")];
  fill("layer-body",
    el("div", {class: "row"}, crumbs(layer)),
    el("p", {class: "big"}, el("strong", {}, title(layer.name)), " is a ", el("code", {}, layer.kind), `: ${times(layer.shapes[0])} → ${times(layer.shapes[1])}, ${count(layer.parameters)} parameters, ${count(layer.macs)} multiply-adds.`),
    doc ? el("p", {}, docLine(doc)) : null,
    el("div", {class: "row"}, scan >= 0 && layer.name ? el("button", {type: "button", onclick: () => { set({scan}); visit("scan"); }}, "See its scan") : null,
      branch >= 0 && layer.name ? el("button", {type: "button", onclick: () => { set({branch}); visit("bands"); }}, "See its wavelet branch") : null),
    hasMaps ? [el("h3", {}, "What went in and what came out"), list.length > 1 ? el("div", {class: "row"}, chooser("channel", "channel", list, v => set({channel: v}))) : null,
      el("div", {class: "panels wide", id: "layer-maps"})] :
      el("p", {class: "small"}, `The maps of this layer are not on this page, which was made with --layers ${data.of}.`),
    el("div", {class: "columns"}, el("div", {}, el("h3", {}, "Formula"), layer.own.length ? layer.own.map(operation) : el("p", {}, "This layer only calls those inside it, one after another."),
      layer.parameters_of.length ? [el("h3", {}, "Parameters"), el("p", {class: "small"}, "Blue is negative, red positive."), el("div", {class: "panels"}, layer.parameters_of.map(parameterPicture))] : null),
    el("div", {}, el("h3", {}, "Its text"), source)));
  drawMaps();
}
function operation(own) {
  const formula = el("div", {});
  if (data.formulas[own.name]) formula.innerHTML = data.formulas[own.name];  // MathML of our own table, never text of others
  return el("div", {}, el("p", {}, el("code", {}, own.name), ": ", own.reads.map(times).join(" and "), " → ", times(own.shape)), formula,
    own.parameters.length ? el("p", {class: "small"}, "with " + own.parameters.join(", ")) : null);
}
draws(["layer"], drawLayer);
draws(["channel"], drawMaps);
draws(["x", "y"], () => readouts.forEach(f => f()));
