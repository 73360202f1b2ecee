// What all parts of the page use: the run, elements, numbers, and the state that a link can hold.
const data = JSON.parse(document.getElementById("data").textContent);
const byName = new Map(data.layers.map(layer => [layer.name, layer]));
const $ = id => document.getElementById(id);

// An element; texts are always text. Properties: attributes, on... listeners, class.
function el(tag, properties, ...children) {
  const svg = ["svg", "g", "rect", "path", "text", "line", "circle", "polyline", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}
// New content for an element (or the element of an id); who stood on a control stays on the one in its place.
function fill(id, ...children) {
  const element = typeof id === "string" ? $(id) : id, way = [];
  for (let at = document.activeElement; element.contains(at) && at !== element; at = at.parentNode) way.unshift([...at.parentNode.children].indexOf(at));
  element.replaceChildren(...children.flat(2).filter(child => child !== null && child !== undefined));
  if (way.length) {
    let at = element;
    for (const i of way) at = at && at.children[i];
    if (!at || at.tabIndex < 0) at = element.querySelector("button, select, input, [tabindex='0']");
    if (at) at.focus({preventScroll: true});
  }
  return element;
}
// A line of a docstring, what stands in backquotes as code.
const docLine = text => text.split("`").map((part, i) => i % 2 ? el("code", {}, part) : part);

// base64 of little-endian values as a typed array, decoded once.
const decoded = new Map();
function numbers(text, Type) {
  if (decoded.has(text)) return decoded.get(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  let array;
  if (Type === Uint8Array) array = bytes;
  else {
    const view = new DataView(bytes.buffer), n = bytes.length / 4;
    array = new Type(n);
    for (let i = 0; i < n; i++) array[i] = Type === Float32Array ? view.getFloat32(4 * i, true) : view.getInt32(4 * i, true);
  }
  decoded.set(text, array);
  return array;
}

const times = shape => shape.join(" × ");
const percent = p => p >= 0.9995 ? "100 %" : p >= 0.1 ? (100 * p).toFixed(1) + " %" : p >= 0.0001 ? (100 * p).toFixed(2) + " %" : p > 0 ? "under 0.01 %" : "0 %";
const count = n => n >= 1e9 ? (n / 1e9).toFixed(2) + " G" : n >= 1e6 ? (n / 1e6).toFixed(2) + " M" : n >= 1e3 ? (n / 1e3).toFixed(1) + " k" : String(n);
const short = v => v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(Number(v.toPrecision(4)));
const exact = v => String(Number(v.toPrecision(9)));   // nine digits tell every float32 from its neighbours
const title = name => name || data.model.name;

// A term with its gloss, on hover, focus and tap.
function term(word, text) {
  const gloss = data.words[word];
  if (!gloss) return document.createTextNode(text || word);
  const show = event => {
    const box = event.currentTarget.getBoundingClientRect(), tip = $("gloss");
    tip.textContent = word + ": " + gloss;
    tip.hidden = false;
    const width = Math.min(384, innerWidth * 0.9);
    tip.style.left = Math.max(8, Math.min(innerWidth - width - 8, box.left)) + "px";
    tip.style.top = (box.bottom + 90 > innerHeight ? Math.max(4, box.top - 12 - tip.offsetHeight) : box.bottom + 6) + "px";
  };
  const hide = () => { $("gloss").hidden = true; };
  return el("button", {type: "button", class: "term", "aria-label": (text || word) + ", that is: " + gloss, onclick: show, onmouseenter: show,
    onfocus: show, onmouseleave: hide, onblur: hide, onkeydown: event => { if (event.key === "Escape") hide(); }}, text || word);
}
// "a [word] in a text" with its terms.
function prose(text) {
  return text.split(/(\[[^\]]+\])/).map(part => {
    const match = /^\[(.+)\]$/.exec(part);
    if (!match) return document.createTextNode(part);
    const word = data.words[match[1]] ? match[1] : Object.keys(data.words).find(w => w.replace("-", " ") === match[1]);
    return word ? term(word, match[1]) : document.createTextNode(match[1]);
  });
}

// The state of the page; what is in KEYS stands in the address behind #, so that a link shows the same again.
const KEYS = ["layer", "channel", "scan", "inner", "direction", "state", "step", "veil", "branch", "band", "class", "field", "tour", "theme"];
const state = {layer: "", channel: 0, scan: 0, inner: 0, direction: 0, state: 0, step: 0, veil: "memory", branch: 0, band: 0, class: 0, field: 0,
  tour: 0, theme: "", x: 0.5, y: 0.5};
const drawers = [];  // [keys, function]: what to draw again when one of the keys changes
const draws = (keys, draw) => drawers.push([keys, draw]);
function set(changes, keep) {
  const changed = Object.keys(changes).filter(key => state[key] !== changes[key]);
  Object.assign(state, changes);
  for (const [keys, draw] of drawers) if (keys.some(key => changed.includes(key))) draw();
  if (!keep && changed.some(key => KEYS.includes(key))) remember();
}
let parts = {};
function remember() {
  const shown = new URLSearchParams();
  for (const key of KEYS) if (key in parts || state[key] !== defaults[key]) shown.set(key, state[key]);
  history.replaceState(null, "", "#" + shown);
}
const defaults = {...state};
function fromAddress() {
  parts = {};
  if (!location.hash.includes("=")) return;
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (!KEYS.includes(key)) continue;
    if (key === "scan" || key === "branch") {
      const list = key === "scan" ? data.scans : data.bands, n = list.findIndex(one => one.layer === value || one.layer.startsWith(value + "."));
      parts[key] = n >= 0 ? n : Math.max(0, Math.min(list.length - 1, parseInt(value, 10) || 0));
    } else parts[key] = typeof defaults[key] === "number" ? parseInt(value, 10) || 0 : value;
  }
  if (!byName.has(parts.layer)) delete parts.layer;
}

// A slider and a number for one of several things; `list` names those that are there.
function chooser(label, key, list, change) {
  const at = () => Math.max(0, list.indexOf(state[key]));
  const range = el("input", {type: "range", min: 0, max: Math.max(0, list.length - 1), value: at(), "aria-label": label,
    oninput: () => go(Number(range.value))});
  const number = el("input", {type: "number", min: list[0], max: list[list.length - 1], value: state[key], "aria-label": label + ", number", onchange: () => {
    const wanted = Number(number.value), near = list.reduce((best, v, i) => Math.abs(v - wanted) < Math.abs(list[best] - wanted) ? i : best, 0);
    go(near);
  }});
  function go(i) { range.value = i; number.value = list[i]; change(list[i]); }
  const element = el("label", {class: "grow", "data-chooser": key}, label, range, number);
  element.follow = () => { range.value = at(); number.value = list[at()]; };
  return element;
}
for (const key of ["channel", "inner", "band"]) draws([key], () => document.querySelectorAll(`[data-chooser=${key}]`).forEach(e => e.follow()));
