// The page as it opens, and what belongs to no part.
function theme() {
  const dark = state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
}
draws(["theme"], theme);
$("theme").addEventListener("click", () => set({theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark"}));
$("tour-start").addEventListener("click", () => set({tour: 1}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme);
document.querySelectorAll("[data-for]").forEach(part => { if (!has[part.dataset.for]) part.remove(); });

function hero() {
  fill("hero-picture", photograph());
  const {answer, model} = data;
  const said = answer.kind === "classes" ? [el("div", {class: "bars"}, answer.classes.slice(0, 3).flatMap(c => [el("strong", {}, c.label), el("span", {class: "track"}, el("i", {class: "violet", style: `width:${100 * c.probability}%`})), el("span", {}, percent(c.probability))]))] :
    answer.kind === "maps" ? [el("p", {class: "big"}, "Every pixel got a class: ", answer.classes.slice(0, 3).map(c => `${c.label} ${percent(c.share)}`).join(", "), ".")] : [el("p", {class: "big"}, `It gave ${times(answer.shape)} features.`)];
  fill("hero-text", said, el("p", {class: "lead"}, `${count(model.parameters)} parameters, ${count(model.macs)} multiply-adds, ${data.layers.length - 1} layers` + (data.scans.length ? `, ${data.scans.length} selective scans` : "") + ". Every number on this page is from this run; nothing is loaded from anywhere."));
  const cut = [];
  if (data.maps.some(m => m.kept)) cut.push("of large maps those channels that vary most");
  if (data.maps.some(m => m.step > 1)) cut.push("of maps of more than 64 pixels a side every second pixel or fewer");
  if (data.scans.some(s => s.kept < s.D)) cut.push("of each scan its first channels");
  if (data.of !== "*") cut.push(`maps, scans and sub-bands of the layers ${data.of} only`);
  $("about").textContent = `Made by mmref explain from ${model.name}${model.source ? ", weights: " + model.source : ""}${model.notes.length ? " (" + model.notes.join("; ") + ")" : ""}, picture: ${data.picture.name || "unnamed"}.` +
    (cut.length ? " To stay small, this page holds " + cut.join("; ") + ". --layers makes one with all channels of a few layers." : " It holds every channel of every map and scan.") + " Feature maps are held in 256 levels, the scans' numbers exactly.";
}
fill("word-list", Object.entries(data.words).map(([word, gloss]) => el("div", {}, el("dt", {}, word), el("dd", {}, gloss))));
document.querySelectorAll('a[href^="#"]').forEach(link => link.addEventListener("click", event => {
  const target = $(link.getAttribute("href").slice(1));
  if (target) { event.preventDefault(); target.scrollIntoView({block: "start"}); target.setAttribute("tabindex", "-1"); target.focus({preventScroll: true}); }
}));
function open() {
  fromAddress();
  Object.assign(state, parts);
  hero(); theme(); overview(); marks(); drawSelected(); facts(); drawLayer(); drawScan(); drawBranch(); drawAnswer(); drawTour();
}
window.addEventListener("hashchange", () => { if (location.hash.includes("=")) open(); });
// for links that open a place: #...&at=scan
open();
const at = new URLSearchParams(location.hash.slice(1)).get("at");
if (at) visit(at);
window.mmref = {state, set, data, mismatches, sequence, stepOf, stops};
