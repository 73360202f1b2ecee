// The network drawn: the overview from picture to answer, and the chosen layer opened.
const tail = layer => layer.name === "" ? data.model.name : layer.parent === null || layer.parent === "" ? layer.name : layer.name.slice(layer.parent.length + 1);
const isHalf = (before, after) => before.length === 3 && after.length === 3 && (after[1] < before[1] || after[2] < before[2]);

function meter(layer, mostParameters, mostMacs) {
  const bar = (value, most, kind) => el("i", {class: kind, style: `width:${most ? Math.max(0.4, 100 * value / most) : 0}%`});
  return el("div", {class: "meter"},
    el("span", {}, count(layer.parameters) + " parameters"), bar(layer.parameters, mostParameters, "mint"),
    el("span", {}, count(layer.macs) + " mult-adds"), bar(layer.macs, mostMacs, "amber"));
}

function overview() {
  const stages = byName.get("").children.map(name => byName.get(name));
  const mostParameters = Math.max(...stages.map(s => s.parameters)), mostMacs = Math.max(...stages.map(s => s.macs));
  const parts = [el("div", {class: "legend"}, el("span", {}, el("i", {class: "mint"}), term("parameter", "parameters")), el("span", {}, el("i", {class: "amber"}),
    term("multiply-add", "multiply-adds")), el("span", {}, "widths: share of the largest"))];
  parts.push(el("div", {class: "edge"}, el("strong", {}, "picture"), times(data.model.input)));
  for (const stage of stages) {
    const button = el("button", {type: "button", "data-layer": stage.name, onclick: () => choose(stage.name)}, `${tail(stage)} `, el("small", {}, stage.kind));
    const chips = stage.children.length ? el("div", {class: "chips"}, stage.children.map(name => byName.get(name)).map(inner =>
      el("button", {type: "button", "data-layer": inner.name, "aria-label": `${inner.name}, ${inner.kind}`, onclick: () => choose(inner.name)},
        tail(inner), stage.children.length < 9 ? el("small", {}, " " + inner.kind) : null))) : null;
    parts.push(el("div", {class: "stage", "data-stage": stage.name}, button, meter(stage, mostParameters, mostMacs), chips));
    const gives = stage.shapes[1];
    const halves = data.halvings.filter(h => h.layer === stage.name || h.layer.startsWith(stage.name + "."));
    const ratio = isHalf(stage.shapes[0], gives) ? Math.round(stage.shapes[0][1] / gives[1]) : 1;
    if (stage === stages[stages.length - 1]) break;
    parts.push(el("div", {class: "edge"}, times(gives), ratio > 1 ? el("span", {class: "half"}, halves.length > 1 ? `halves ${halves.length} times` : "halves") : null));
  }
  const output = byName.get("").shapes[1];
  parts.push(el("div", {class: "edge"}, el("strong", {}, data.answer.kind === "classes" ? "logits" : "result"), times(output)));
  fill("overview", parts);
}

function marks() {
  for (const stage of document.querySelectorAll(".stage"))
    stage.classList.toggle("on", state.layer === stage.dataset.stage || state.layer.startsWith(stage.dataset.stage + "."));
  for (const button of document.querySelectorAll("#overview [data-layer]")) button.setAttribute("aria-current", String(button.dataset.layer === state.layer));
}

function choose(name) { set({layer: name}); }

// The layer whose drawing is shown: a layer with one layer inside is that layer.
function opened(name) {
  let layer = byName.get(name);
  while (!layer.drawing && layer.children.length === 1) layer = byName.get(layer.children[0]);
  return layer;
}

function crumbs(layer) {
  const path = [];
  for (let one = layer; one; one = one.parent === null ? null : byName.get(one.parent)) path.unshift(one);
  return path.map((one, i) => [i ? el("span", {"aria-hidden": "true"}, "›") : null,
    el("button", {type: "button", "aria-current": String(one === layer), onclick: () => choose(one.name)}, tail(one))]).flat();
}

const BOX = {w: 176, h: 74, dx: 206, dy: 118};
function drawSelected() {
  const layer = byName.get(state.layer), shown = opened(state.layer);
  fill("crumbs", crumbs(layer));
  if (!shown.drawing) {
    const parent = layer.parent === null ? null : byName.get(layer.parent);
    fill("drawing", el("p", {}, layer.own.length ? "Nothing to open: this layer is " + layer.own.map(o => o.name).join(", ") + "." :
      layer.children.length ? "The layers inside, one after another:" : "Nothing to open."),
    el("div", {class: "chips"}, layer.children.map(name => el("button", {type: "button", onclick: () => choose(name)}, name.slice(layer.name.length ? layer.name.length + 1 : 0)))),
    parent ? el("button", {type: "button", onclick: () => choose(parent.name)}, "Back to " + title(parent.name)) : null);
    return;
  }
  fill("drawing", el("div", {class: "scroll"}, svgOf(shown)), el("p", {class: "small"}, "Violet boxes are layers, to be opened; the others are operations of ",
    el("strong", {}, shown.kind), ". On the arrows: channels × rows × columns. Dashed: past other boxes."));
}

function svgOf(layer) {
  const {boxes, arrows} = layer.drawing, across = Math.max(...boxes.map(b => b.x)), down = Math.max(...boxes.map(b => b.y));
  const width = (across + 1) * BOX.dx + 130, height = (down + 1) * BOX.dy + 6;
  const svg = el("svg", {class: "drawing", viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${title(layer.name)}, opened`});
  const X = b => 65 + b.x * BOX.dx + BOX.w / 2 + (BOX.dx - BOX.w) / 2, Y = b => 12 + b.y * BOX.dy;
  const inner = boxes.filter(b => b.layer !== null).map(b => byName.get(b.layer));
  const most = [Math.max(1, ...inner.map(l => l.parameters)), Math.max(1, ...inner.map(l => l.macs))];
  const head = (x, y) => el("path", {class: "head", d: `M${x - 4} ${y - 8}L${x + 4} ${y - 8}L${x} ${y}Z`});
  const labels = [], written = new Set();
  // An arrow past other boxes goes down where no box is: below its start, above its end, or in the nearest gap.
  const gaps = Array.from({length: Math.ceil(2 * across) + 4}, (_, i) => i / 2 - 0.6 + (i % 2 ? 0.1 : 0));
  const lanes = (from, to) => [from.x, to.x, ...gaps.sort((a, b) => Math.abs(a - to.x) - Math.abs(b - to.x))];
  const free = (column, from, to) => !boxes.some(b => b.y > from.y && b.y < to.y && Math.abs(b.x - column) < 0.48);
  for (const arrow of arrows) {
    const from = boxes[arrow.from], to = boxes[arrow.to], x0 = X(from), y0 = Y(from) + (from.given ? 30 : BOX.h), x = X(to), y = Y(to);
    let d = `M${x0} ${y0}C${x0} ${y0 + 22},${x} ${y - 26},${x} ${y}`, label = [(x0 + x) / 2 + 6, y - 18], end = x, past = to.y - from.y > 1;
    if (past) {
      const lane = X({x: lanes(from, to).find(column => free(column, from, to)) ?? across + 0.6});
      end = x + Math.sign(Math.round(lane - x)) * 52;
      d = `M${x0} ${y0}C${x0} ${y0 + 24},${lane} ${y0 + 10},${lane} ${y0 + 44}L${lane} ${y - 44}C${lane} ${y - 16},${end} ${y - 30},${end} ${y}`;
      label = [lane + 6, y - 52];
    }
    svg.append(el("path", {class: past ? "arrow skip" : "arrow", d}), head(end, y));
    if (!written.has(label.join())) { written.add(label.join()); labels.push(el("text", {x: label[0], y: label[1], "font-size": 11, class: "soft"}, times(arrow.shape))); }
  }
  boxes.forEach((box, i) => {
    if (box.given) {
      svg.append(el("text", {x: X(box), y: Y(box) + 22, "text-anchor": "middle", "font-size": 13, "font-weight": 650}, layer.name ? "input" : "picture"));
      return;
    }
    const x = X(box) - BOX.w / 2, y = Y(box), inside = box.layer === null ? null : byName.get(box.layer);
    const name = inside ? box.layer.slice(layer.name.length ? layer.name.length + 1 : 0) : box.operation;
    const cut = text => text.length > 19 ? text.slice(0, 8) + "…" + text.slice(-10) : text;
    const g = el("g", inside ? {role: "button", tabindex: 0, "data-open": box.layer, "aria-label":
      `Open ${name}, ${inside.kind}, gives ${times(box.shape)}, ${count(inside.parameters)} parameters, ${count(inside.macs)} multiply-adds`,
    onclick: () => choose(box.layer), onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(box.layer); } }} :
      {role: "img", "aria-label": `operation ${name} ${box.note}, gives ${times(box.shape)}`},
    el("title", {}, inside ? `${box.layer}: ${inside.kind}` : `${name}: ${data.operations[name] || ""}`),
    el("rect", {class: "box", x, y, width: BOX.w, height: BOX.h, rx: 12}),
    el("text", {x: x + BOX.w / 2, y: y + 23, "text-anchor": "middle", "font-weight": 650, "font-size": 14}, cut(name)),
    el("text", {x: x + BOX.w / 2, y: y + 41, "text-anchor": "middle", "font-size": 11.5, class: "soft"}, inside ? cut(inside.kind) : cut(box.note || "operation")));
    if (inside) for (const [k, value, kind] of [[0, inside.parameters, "var(--mint)"], [1, inside.macs, "var(--amber)"]])
      g.append(el("rect", {x: x + 14, y: y + 50 + 9 * k, height: 6, rx: 3, width: Math.max(2, (BOX.w - 28) * value / most[k]), fill: kind}));
    svg.append(g);
    if (!boxes.some((_, j) => arrows.some(a => a.from === i && a.to === j)))
      svg.append(el("path", {class: "arrow", d: `M${x + BOX.w / 2} ${y + BOX.h}v20`}), head(x + BOX.w / 2, y + BOX.h + 22),
        el("text", {x: x + BOX.w / 2 + 8, y: y + BOX.h + 16, "font-size": 11, class: "soft"}, times(box.shape)));
  });
  svg.append(...labels);
  return svg;
}

function facts() {
  const link = name => el("button", {type: "button", class: "term", onclick: () => { choose(name); }}, title(name));
  fill("facts",
    el("div", {class: "card"}, el("h3", {}, "Where the map halves"), data.halvings.length ? el("ul", {}, data.halvings.map(h =>
      el("li", {}, times(h.from), " → ", times(h.to), " in ", link(h.layer)))) : el("p", {}, "Nowhere: every map has the picture's size.")),
    data.untouched.length ? el("div", {class: "card", id: "untouched"}, el("h3", {}, "Channels that skip the ", term("mixer")), el("ul", {}, data.untouched.map(u =>
      el("li", {}, `channels ${u.from} to ${u.to} of ${u.of} in `, link(u.layer)))), el("p", {class: "small"}, "Cut off and joined again, nothing computed on them: the ", term("identity"), ".")) : null,
    el("div", {class: "card"}, el("h3", {}, "In all"), el("ul", {}, el("li", {}, count(data.model.parameters), " ", term("parameter", "parameters")), el("li", {}, count(data.model.macs), " ",
      term("multiply-add", "multiply-adds"), " for one picture of ", times(data.model.input)), el("li", {}, `${data.layers.length - 1} layers of ${Object.keys(data.kinds).length} kinds`),
    data.scans.length ? el("li", {}, `${data.scans.length} scans, the longest of ${Math.max(...data.scans.map(s => s.L))} pixels`) : null)));
}
draws(["layer"], () => { marks(); drawSelected(); });
