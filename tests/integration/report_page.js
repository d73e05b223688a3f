// What is wrong with how a report is laid out: a list of lines, empty where all is well. Runs in the browser of the tests;
// its argument is the width of the screen, which a phone's `innerWidth` is not where the page is wider.
return (() => {
  const faults = [], wide = arguments[0], root = document.documentElement;
  const say = (text) => { if (faults.length < 20) faults.push(text); };
  const name = (element) => `${element.tagName.toLowerCase()}.${element.className.baseVal ?? element.className} ${element.textContent.trim().slice(0, 40)}`;
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;
  const inside = (inner, outer, slack) => inner.left >= outer.left - slack && inner.right <= outer.right + slack
    && inner.top >= outer.top - slack && inner.bottom <= outer.bottom + slack;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;

  if (root.scrollWidth > wide) say(`the page scrolls sideways: ${root.scrollWidth} px in ${wide}`);

  const plots = [...document.querySelectorAll("svg.plot")];
  for (const plot of plots) {
    const box = plot.getBoundingClientRect();
    const drawn = plot.querySelectorAll("polyline, circle.marker");
    if (box.width < 200 || box.height < 100 || !drawn.length) say(`plot not drawn: ${plot.getAttribute("aria-label")}`);
    for (const part of plot.querySelectorAll("*")) {
      if (part.tagName !== "title" && part.tagName !== "g" && !inside(part.getBoundingClientRect(), box, 1)) say(`outside its plot: ${name(part)} ${part.outerHTML}`);
    }
    const texts = [...plot.querySelectorAll("text")].map((text) => [text, text.getBoundingClientRect()]);
    texts.forEach(([text, one], place) => texts.slice(place + 1).forEach(([other, two]) => {
      if (meet(one, two)) say(`overlap in a plot: ${text.textContent} and ${other.textContent}`);
    }));
  }

  const canvas = document.getElementById("matrix");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const colours = new Set();
  for (let at = 0; at < pixels.length; at += 4) colours.add((pixels[at] << 16) | (pixels[at + 1] << 8) | pixels[at + 2]);
  if (colours.size < 3) say(`the matrix has only ${colours.size} colours`);
  if (canvas.offsetWidth < 60 || canvas.offsetHeight < 60) say("the matrix is too small");

  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) say(`image not drawn: ${image.alt}`);
    if (Math.max(image.naturalWidth, image.naturalHeight) > 160) say(`image too large: ${image.alt}`);
  }

  for (const row of document.querySelectorAll(".forest li:not(.scale)")) {
    const [label, track, value] = [...row.children].map((child) => child.getBoundingClientRect());
    const dot = row.querySelector(".dot").getBoundingClientRect();
    if (dot.left < track.left - 6 || dot.right > track.right + 6) say(`dot outside its track: ${name(row)}`);
    if (meet(label, track) || meet(track, value) || meet(label, value)) say(`overlap in the verdict: ${name(row)}`);
  }

  const luminance = (colour) => {
    const [red, green, blue] = colour.map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const paper = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  for (const element of document.body.querySelectorAll("*")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !isShown(element) || ["SCRIPT", "STYLE", "NOSCRIPT", "TITLE"].includes(element.tagName) || element.tagName === "title") continue;
    if (element.classList.contains("skip") || element.closest("caption")) continue;
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const ink = luminance(parse(element instanceof SVGElement ? style.fill : style.color).slice(0, 3)), ground = luminance(paper(element));
    const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (contrast < 4.5) say(`contrast ${contrast.toFixed(2)}: ${name(element)}`);
    if (element instanceof SVGElement) continue;
    if (style.display !== "inline" && element.scrollWidth > element.clientWidth + 1) say(`text cut: ${name(element)}`);
    if (!element.closest(".scroll") && (box.left < -1 || box.right > wide + 1)) say(`beyond the edge: ${name(element)}`);
  }

  const fetched = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:"));
  for (const entry of fetched) say(`fetched: ${entry.name}`);
  return { faults, plots: plots.length, images: document.images.length, classes: document.querySelectorAll("#class-table tbody tr").length };
})();
