// What tests/test_explain_page.py asks of a page in a browser; each function is called by name.

// Every text that shows with less contrast than WCAG AA asks for (4.5), with what lies behind it where that is plain.
function faintTexts() {
  const parse = text => text.match(/[\d.]+/g).map(Number);
  const part = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * part(c[0] / 255) + 0.7152 * part(c[1] / 255) + 0.0722 * part(c[2] / 255);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest("script, style, option, noscript")) continue;
    const style = getComputedStyle(element), own = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    let behind = [255, 255, 255];
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) { behind = colour; break; }
    }
    const [more, less] = [light(own), light(behind)].sort((a, b) => b - a), ratio = (more + 0.05) / (less + 0.05);
    if (ratio < 4.5) found.push([element.tagName, String(element.className), text.slice(0, 40), ratio]);
  }
  return found;
}

// Every control and picture that shows and has no name for a screen reader.
function unnamed() {
  const named = e => e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.getAttribute("alt") ||
    e.textContent.trim() || e.closest("label") || e.parentElement.closest("[role=img]");
  return [...document.querySelectorAll("button, select, input, a, img, canvas, svg, [role]")]
    .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]") && !named(e)).map(e => e.outerHTML.slice(0, 120));
}

// [name, heading, pictures, lines of text, boxes or words of the drawing] of every layer, each opened.
function everyLayer() {
  const count = what => document.querySelectorAll(what).length;
  return window.mmref.data.layers.map(layer => {
    window.mmref.set({layer: layer.name});
    return [layer.name, document.querySelector("#layer-body .big").textContent, count("#layer-maps canvas"),
      count("#layer-body pre div"), count("#drawing .box, #drawing p")];
  });
}

// Wrong steps of the first scan when one bit of one number is another.
function wrongWithOneBit() {
  const scan = {...window.mmref.data.scans[0]}, raw = atob(scan.u);
  scan.u = btoa(raw.slice(0, 2) + String.fromCharCode(raw.charCodeAt(2) ^ 64) + raw.slice(3));
  return window.mmref.mismatches(scan);
}
