// The answer: classes or a label map, what it rests on, why the second is second, how far a value sees.
const hue = i => { const h = (i * 0.618034) % 1 * 6, x = 1 - Math.abs(h % 2 - 1), c = [[1, x, 0], [x, 1, 0], [0, 1, x], [0, x, 1], [x, 0, 1], [1, 0, x]][Math.floor(h)]; return c.map(v => Math.round(60 + 160 * v)); };

// Values of cells over the photograph: colour(value) gives [r, g, b, a].
function cellsOver(values, colour, label, mark) {
  const n = data.answer.cells, veil = paint(n, n, i => colour(values[i])), stack = el("div", {class: "stack", role: "img", "aria-label": label}, photograph(), veil);
  if (mark) stack.append(el("svg", {viewBox: "0 0 100 100", "aria-hidden": "true"}, el("path", {d: `M${mark[0] - 4} ${mark[1]}h8M${mark[0]} ${mark[1] - 4}v8`, stroke: "#ffcc33", "stroke-width": 1.6})));
  return stack;
}
const place = (i, n) => { const y = Math.floor(i / n) / n, x = i % n / n; return `${y < 1 / 3 ? "upper" : y < 2 / 3 ? "middle" : "lower"} ${x < 1 / 3 ? "left" : x < 2 / 3 ? "centre" : "right"}`; };

function classesPart() {
  const {classes, of} = data.answer, n = data.answer.cells, at = Math.max(0, Math.min(classes.length - 1, state.class)), covered = numbers(data.answer.covered, Float32Array).subarray(at * n * n, (at + 1) * n * n);
  const chosen = classes[at], change = Array.from(covered, v => chosen.probability - v), most = Math.max(1e-9, ...change.map(Math.abs)), best = change.indexOf(Math.max(...change));
  return [el("div", {class: "columns"},
    el("div", {}, el("p", {}, `${of} classes; ${classes.length === of ? "all" : "the first " + classes.length} are listed, with `, term("logit"), " and ", term("probability"), ". Choose one to see which parts of the picture it rests on."),
      el("table", {"aria-label": "Classes"}, el("thead", {}, el("tr", {}, ["class", "", "probability", "logit"].map(t => el("th", {scope: "col"}, t)))), el("tbody", {}, classes.map((c, i) => el("tr", {},
        el("td", {}, el("button", {type: "button", "aria-pressed": String(i === at), "data-class": c.class, onclick: () => set({class: i})}, c.label)),
        el("td", {style: "width:34%"}, el("div", {class: "bars", style: "display:block"}, el("div", {class: "track"}, el("i", {class: "violet", style: `width:${100 * c.probability}%`})))), el("td", {}, percent(c.probability)), el("td", {class: "mono"}, c.logit.toFixed(3))))))),
    el("div", {}, el("h3", {}, `What “${chosen.label}” rests on`), el("div", {style: "max-width:26rem"}, cellsOver(change, v => v >= 0 ? [150, 60, 255, 220 * v / most] : [30, 190, 150, 220 * -v / most], `Over the picture: what covering each of ${n} x ${n} cells changes`)),
      el("div", {class: "legend"}, el("span", {}, el("i", {class: "violet"}), "covered, the probability falls: it was needed"), el("span", {}, el("i", {class: "mint"}), "covered, it rises: it spoke for something else")),
      el("p", {}, ...prose(`By [covering] the square that matters most (${place(best, n)}), its [probability] goes from ${percent(chosen.probability)} to ${percent(covered[best])}. The fullest colour is a change of ${percent(most)}; each of ${n} × ${n} cells stands for a square of three by three around it.`)))), secondPart()];
}
function secondPart() {
  const {classes, gap, cells: n} = data.answer;
  if (classes.length < 2) return null;
  const [a, b] = classes, covered = numbers(data.answer.covered, Float32Array), difference = a.logit - b.logit;
  const odds = Array.from({length: n * n}, (_, i) => Math.log(Math.max(1e-12, covered[i]) / Math.max(1e-12, covered[n * n + i])));
  const change = odds.map(v => difference - v), most = Math.max(1e-9, ...change.map(Math.abs)), up = change.indexOf(Math.max(...change)), down = change.indexOf(Math.min(...change));
  const parts = gap ? [el("p", {}, `The last layer, ${gap.layer}, makes this difference from ${gap.features} features: those for “${a.label}” add ${gap.for.toFixed(2)}, those for “${b.label}” take ${Math.abs(gap.against).toFixed(2)} away, the bias gives ${gap.bias.toFixed(2)}. The largest parts:`),
    el("div", {class: "bars"}, gap.parts.flatMap(p => [el("span", {}, `feature ${p.feature} = ${short(p.value)}`), el("span", {class: "track"}, el("i", {class: p.part > 0 ? "violet" : "mint", style: `width:${100 * Math.abs(p.part) / Math.abs(gap.parts[0].part)}%`})),
      el("span", {class: "mono"}, (p.part > 0 ? "+" : "−") + Math.abs(p.part).toFixed(3))]))] : [];
  return el("div", {class: "card", id: "second"}, el("h3", {}, `Why “${b.label}” is second`), el("p", {}, `“${a.label}” has a logit of ${a.logit.toFixed(3)}, “${b.label}” of ${b.logit.toFixed(3)}: a difference of ${difference.toFixed(3)}, which makes the first exp(${difference.toFixed(3)}) = ${short(Math.exp(difference))} times as probable`,
    classes[2] ? `; the third, “${classes[2].label}”, is ${(b.logit - classes[2].logit).toFixed(3)} behind the second.` : "."),
  el("div", {class: "columns"}, el("div", {}, parts), el("div", {}, el("div", {style: "max-width:22rem"}, cellsOver(change, v => v >= 0 ? [150, 60, 255, 220 * v / most] : [30, 190, 150, 220 * -v / most], "Which cells put the first class before the second")),
    el("p", {class: "small"}, `Violet cells put “${a.label}” before “${b.label}” (most: ${place(up, n)}, by ${change[up].toFixed(2)}); green ones speak for “${b.label}”`, change[down] < 0 ? ` (most: ${place(down, n)}, by ${(-change[down]).toFixed(2)}).` : ": there are none."))));
}
function mapPart() {
  const {size: [h, w], classes, cells: n} = data.answer, levels = numbers(data.answer.map, Uint8Array), change = numbers(data.answer.covered, Float32Array), most = Math.max(1e-9, ...change);
  return el("div", {class: "columns"}, el("figure", {}, el("div", {class: "stack"}, paint(w, h, i => hue(levels[i]))), el("figcaption", {}, "The class of every pixel", data.answer.step > 1 ? `, every ${data.answer.step}. pixel` : "")),
    el("div", {}, el("div", {class: "bars"}, classes.slice(0, 20).flatMap((c, i) => [el("span", {}, el("i", {style: `display:inline-block;width:.9rem;height:.9rem;border-radius:.2rem;margin-right:.4rem;background:rgb(${hue(i)})`}), c.label), el("span", {class: "track"}, el("i", {class: "violet", style: `width:${100 * c.share}%`})), el("span", {}, percent(c.share))])),
      classes.length > 20 ? el("p", {class: "small"}, `and ${classes.length - 20} more`) : null),
    el("figure", {}, cellsOver(change, v => [150, 60, 255, 220 * v / most], "What covering each cell changes"), el("figcaption", {}, ...prose(`[covering] a square changes the class of up to ${percent(most)} of all pixels (full violet).`))));
}
function featuresPart() {
  const change = numbers(data.answer.covered, Float32Array), most = Math.max(1e-9, ...change);
  return [el("p", {}, `This network names no classes: it gives ${times(data.answer.shape)} features.`), el("div", {style: "max-width:26rem"}, cellsOver(change, v => [150, 60, 255, 220 * v / most], "What covering each cell changes")),
    el("p", {class: "small"}, ...prose(`[covering] a square changes the features by up to ${percent(most)} of their length (full violet).`))];
}
function fieldPart() {
  const {fields, cells: n} = data.answer;
  if (!fields.length) return null;
  const at = Math.max(0, Math.min(fields.length - 1, state.field)), field = numbers(fields[at].field, Float32Array), most = Math.max(...field) || 1, [cy, cx] = fields[at].centre;
  const squares = Array.from(field, v => v * v).sort((a, b) => b - a), total = squares.reduce((a, b) => a + b, 0) || 1;
  const area = part => { let sum = 0, i = 0; while (i < squares.length && sum < part * total) sum += squares[i++]; return i / squares.length; };
  return el("div", {class: "card", id: "field"}, el("h3", {}, "How far a value sees: the effective ", term("receptive field")),
    el("div", {class: "row", role: "group", "aria-label": "receptive field of"}, fields.map((f, i) => el("button", {type: "button", "aria-pressed": String(i === at), onclick: () => set({field: i})}, f.layer))),
    el("div", {class: "columns"}, el("div", {style: "max-width:26rem"}, cellsOver(field, v => [255, 150, 30, 235 * Math.sqrt(v / most)], `Effective receptive field of the centre of ${fields[at].layer}`, [100 * cx / data.model.input[2], 100 * cy / data.model.input[1]])),
      el("div", {}, el("p", {}, `How much each of ${n} × ${n} cells of the picture moves the centre (cross) of the map that ${fields[at].layer} gives: the size of the gradient, measured by moving pixels a little.`),
        el("p", {}, `Half of the squared gradient comes from ${percent(area(0.5))} of the picture, 90 % from ${percent(area(0.9))}, 99 % from ${percent(area(0.99))}.`))));
}
function drawAnswer() {
  fill("answer-body", {classes: classesPart, maps: mapPart, features: featuresPart}[data.answer.kind](), fieldPart());
}
draws(["class", "field"], drawAnswer);
