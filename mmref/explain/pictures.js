// Maps as pictures: colours, canvases, and the place that all of them show.
const HEAT = [[26, 18, 64], [72, 46, 140], [50, 112, 160], [60, 176, 140], [190, 216, 80], [253, 240, 160]];
function ramp(stops, t) {
  const x = Math.max(0, Math.min(1, t)) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x)), f = x - i;
  return stops[i].map((v, c) => v + f * (stops[i + 1][c] - v));
}
const HEATS = Array.from({length: 256}, (_, i) => ramp(HEAT, i / 255));
const SIGNED = Array.from({length: 256}, (_, i) => ramp([[24, 70, 160], [120, 165, 220], [245, 243, 238], [226, 140, 110], [160, 24, 40]], i / 255));

// A canvas of w x h points; colour(i) gives [r, g, b, a] of the i-th.
function paint(w, h, colour, canvas) {
  canvas = canvas || el("canvas", {});
  canvas.width = w; canvas.height = h;
  const context = canvas.getContext("2d"), image = context.createImageData(w, h);
  for (let i = 0; i < w * h; i++) {
    const c = colour(i);
    image.data.set([c[0], c[1], c[2], c.length > 3 ? c[3] : 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// A map of the run: its channels as they were kept, and the value at a place.
const names = map => map.kept || Array.from({length: map.channels}, (_, i) => i);
function nearest(list, value) { return list.reduce((best, v) => Math.abs(v - value) < Math.abs(best - value) ? v : best, list[0]); }
function mapCanvas(map, channel) {
  const k = names(map).indexOf(channel), [h, w] = map.size, levels = numbers(map.levels, Uint8Array);
  return paint(w, h, i => HEATS[levels[k * h * w + i]]);
}
function mapValue(map, channel, x, y) {
  const k = names(map).indexOf(channel), [h, w] = map.size, levels = numbers(map.levels, Uint8Array);
  const row = Math.min(h - 1, Math.floor(y * h)), column = Math.min(w - 1, Math.floor(x * w));
  const low = numbers(map.low, Float32Array)[k], high = numbers(map.high, Float32Array)[k];
  return {row: row * map.step, column: column * map.step, value: low + (high - low) * levels[(k * h + row) * w + column] / 255};
}

// A picture that shows the place (state.x, state.y) on a grid of w x h, and takes it from pointer and arrow keys.
const spots = [];
function placed(picture, w, h, label, extra) {
  const spot = el("div", {class: "spot"});
  const stack = el("div", {class: "stack", tabindex: 0, role: "img", "aria-label": label, onpointermove: point, onpointerdown: point, onkeydown: event => {
    const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    set({x: Math.max(0, Math.min(1 - 1e-6, state.x + move[0] / w)), y: Math.max(0, Math.min(1 - 1e-6, state.y + move[1] / h))});
  }}, picture, extra || [], spot);
  stack.style.aspectRatio = w + " / " + h;
  function point(event) {
    const box = stack.getBoundingClientRect();
    set({x: Math.max(0, Math.min(1 - 1e-6, (event.clientX - box.left) / box.width)), y: Math.max(0, Math.min(1 - 1e-6, (event.clientY - box.top) / box.height))});
  }
  const move = () => {
    const column = Math.floor(state.x * w), row = Math.floor(state.y * h);
    Object.assign(spot.style, {left: 100 * column / w + "%", top: 100 * row / h + "%", width: 100 / w + "%", height: 100 / h + "%"});
  };
  move();
  spots.push([stack, move]);
  return stack;
}
draws(["x", "y"], () => {
  for (let i = spots.length - 1; i >= 0; i--) spots[i][0].isConnected ? spots[i][1]() : spots.splice(i, 1);
});
const photograph = alt => el("img", {src: data.picture.photograph, alt: alt || "The part of the picture that the network sees", draggable: "false"});

// Bars of a histogram as one SVG path.
function histogram(map) {
  const most = Math.max(...map.histogram, 1), n = map.histogram.length, width = 320, height = 84;
  const path = map.histogram.map((c, i) => `M${(i + 0.5) * width / n} ${height}v${-Math.max(c ? 1 : 0, (height - 6) * Math.sqrt(c / most))}`).join("");
  const svg = el("svg", {viewBox: `0 0 ${width} ${height + 18}`, class: "strip", role: "img",
    "aria-label": `Histogram from ${short(map.min)} to ${short(map.max)}, mean ${short(map.mean)}`},
  el("path", {d: path, stroke: "var(--accent)", "stroke-width": width / n * 0.8}),
  el("text", {x: 0, y: height + 14, "font-size": 11, class: "soft"}, short(map.min)),
  el("text", {x: width, y: height + 14, "font-size": 11, class: "soft", "text-anchor": "end"}, short(map.max)));
  if (map.min < 0 && map.max > 0) {
    const zero = -map.min / (map.max - map.min) * width;
    svg.append(el("line", {x1: zero, x2: zero, y1: 0, y2: height, stroke: "var(--soft)", "stroke-dasharray": "3 3"}),
      el("text", {x: Math.min(width - 40, Math.max(40, zero)), y: height + 14, "font-size": 11, class: "soft", "text-anchor": "middle"}, "0"));
  }
  return svg;
}
