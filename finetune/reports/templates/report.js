"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const redraws = [];
  const redraw = () => redraws.forEach((draw) => draw());

  const themeButton = document.getElementById("theme");
  const nameTheme = () => { themeButton.textContent = isDark() ? "Light theme" : "Dark theme"; };
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
    redraw();
  });
  prefersDark.addEventListener("change", () => { nameTheme(); redraw(); });
  nameTheme();

  let themeBefore;
  window.addEventListener("beforeprint", () => {
    themeBefore = root.dataset.theme;
    root.dataset.theme = "light";
    redraw();
  });
  window.addEventListener("afterprint", () => {
    if (themeBefore) root.dataset.theme = themeBefore; else delete root.dataset.theme;
    redraw();
  });

  // Tables: a click on a heading sorts by it, numbers from the largest, text from A; a second click reverses the order.
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const collator = new Intl.Collator("en", { numeric: true });
  function sortTable(table, heading) {
    const column = heading.cellIndex, body = table.tBodies[0], rows = [...body.rows];
    const isText = rows.some((row) => valueOf(row, column) !== "" && Number.isNaN(Number(valueOf(row, column))));
    const before = heading.getAttribute("aria-sort");
    const direction = before ? (before === "ascending" ? "descending" : "ascending") : isText ? "ascending" : "descending";
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const first = valueOf(a, column), second = valueOf(b, column);
      if (first === "" || second === "") return (first === "") - (second === "");
      return sign * (isText ? collator.compare(first, second) : Number(first) - Number(second));
    };
    rows.sort(compare).forEach((row) => body.append(row));
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
  }
  for (const button of document.querySelectorAll("table.sortable .sort")) {
    button.addEventListener("click", () => sortTable(button.closest("table"), button.closest("th")));
  }

  // The confusion matrix.
  const data = JSON.parse(document.getElementById("matrix-data").textContent);
  const canvas = document.getElementById("matrix"), readout = document.getElementById("readout");
  const box = canvas.parentElement, tip = document.getElementById("tip");
  const n = data.classes.length, context = canvas.getContext("2d");
  const counts = new Map(data.cells.map(([t, p, count]) => [t * n + p, count]));
  const given = [...data.classes.keys()];
  const orders = {
    given: given,
    errors: given.slice().sort((a, b) => data.recall[a] - data.recall[b] || data.support[b] - data.support[a]),
    support: given.slice().sort((a, b) => data.support[b] - data.support[a]),
    chain: data.chain,
  };
  const LABELLED = 40, LEAST_LABELLED = 14, LEAST = 3, MOST = 40, WIDEST = 760, LABEL = 110;
  let order = orders.given, place = [], cell = 0, margin = 0, chosen = null;

  const elide = (text, width) => {
    if (context.measureText(text).width <= width) return text;
    let end = text.length;
    while (end > 1 && context.measureText(text.slice(0, end) + "\u2026").width > width) end -= 1;
    return text.slice(0, end) + "\u2026";
  };
  function measure() {
    const room = Math.min(WIDEST, box.parentElement.clientWidth - 20);
    margin = n <= LABELLED ? Math.min(LABEL, Math.round(room * 0.28)) : 0;
    const least = n <= LABELLED ? LEAST_LABELLED : LEAST;
    cell = Math.max(least, Math.min(MOST, Math.floor((room - margin) / n)));
  }
  function draw() {
    measure();
    const style = getComputedStyle(root), colour = (name) => style.getPropertyValue(name).trim();
    const ratio = window.devicePixelRatio || 1, side = margin + n * cell + 1;
    canvas.width = canvas.height = Math.round(side * ratio);
    canvas.style.width = canvas.style.height = `${side}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = colour("--paper");
    context.fillRect(0, 0, side, side);
    place = [];
    order.forEach((index, position) => { place[index] = position; });
    if (cell >= 10) drawGrid(colour("--rule"), side);
    drawCells(colour);
    if (margin) drawLabels(colour("--ink"));
    context.strokeStyle = colour("--strong-rule");
    context.lineWidth = 1;
    context.strokeRect(margin + 0.5, margin + 0.5, n * cell, n * cell);
    if (chosen) drawChosen(colour("--ink"));
  }
  function drawGrid(line, side) {
    context.strokeStyle = line;
    context.lineWidth = 1;
    context.beginPath();
    for (let i = 1; i < n; i += 1) {
      const at = margin + i * cell + 0.5;
      context.moveTo(margin, at); context.lineTo(side, at);
      context.moveTo(at, margin); context.lineTo(at, side);
    }
    context.stroke();
  }
  function drawCells(colour) {
    const right = colour("--right"), wrong = colour("--wrong"), ink = colour("--ink"), paper = colour("--paper");
    const gap = cell >= 6 ? 1 : 0;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [t, p, count] of data.cells) {
      const share = count / data.support[t], x = margin + place[p] * cell, y = margin + place[t] * cell;
      const strength = 0.18 + 0.82 * Math.sqrt(share);
      context.globalAlpha = strength;
      context.fillStyle = t === p ? right : wrong;
      context.fillRect(x + gap, y + gap, cell - gap, cell - gap);
      context.globalAlpha = 1;
      if (cell >= 24) {
        const text = String(count), size = Math.min(13, cell * 0.9 / (text.length * 0.68));
        context.font = `600 ${size}px system-ui, sans-serif`;
        context.fillStyle = strength > 0.62 ? paper : ink;
        context.fillText(text, x + cell / 2 + 0.5, y + cell / 2 + 0.5);
      }
    }
  }
  function drawLabels(ink) {
    const size = Math.min(12, cell - 2);
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = ink;
    context.textBaseline = "middle";
    order.forEach((index, position) => {
      const text = elide(data.classes[index], margin - 8), at = margin + (position + 0.5) * cell;
      context.textAlign = "right";
      context.fillText(text, margin - 6, at);
      context.save();
      context.translate(at, margin - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(text, 0, 0);
      context.restore();
    });
  }
  function drawChosen(ink) {
    const [row, column] = chosen, x = margin + column * cell, y = margin + row * cell;
    context.strokeStyle = ink;
    context.lineWidth = 1;
    context.globalAlpha = 0.35;
    context.strokeRect(margin + 0.5, y + 0.5, n * cell, cell);
    context.strokeRect(x + 0.5, margin + 0.5, cell, n * cell);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.strokeRect(x, y, cell + 1, cell + 1);
  }
  function describe() {
    const t = order[chosen[0]], p = order[chosen[1]], count = counts.get(t * n + p) || 0, of = data.support[t];
    const share = of ? ` (${(100 * count / of).toFixed(1)}\u00a0%)` : "";
    const what = t === p ? `${data.classes[t]}, found` : `${data.classes[t]}, taken for ${data.classes[p]}`;
    return `${what}: ${count} of ${of}${share}`;
  }
  function choose(row, column) {
    chosen = [row, column];
    readout.textContent = describe();
    draw();
  }
  function cellAt(event) {
    const bounds = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - bounds.left - margin) / cell);
    const row = Math.floor((event.clientY - bounds.top - margin) / cell);
    return row >= 0 && row < n && column >= 0 && column < n ? [row, column] : null;
  }
  function point(event) {
    const found = cellAt(event);
    tip.hidden = !found;
    if (!found) return;
    if (!chosen || found[0] !== chosen[0] || found[1] !== chosen[1]) choose(...found);
    tip.textContent = describe();
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12}px`;
  }
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("focus", () => { if (!chosen && canvas.matches(":focus-visible")) choose(0, 0); });
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = chosen || [0, 0], within = (value) => Math.max(0, Math.min(n - 1, value));
    choose(within(row + step[0]), within(column + step[1]));
    const x = margin + chosen[1] * cell, y = margin + chosen[0] * cell;
    if (x < box.scrollLeft + margin || x > box.scrollLeft + box.clientWidth - 40) box.scrollLeft = x - box.clientWidth / 2;
    if (y < box.scrollTop + margin || y > box.scrollTop + box.clientHeight - 40) box.scrollTop = y - box.clientHeight / 2;
  });
  const controls = document.querySelector("#confusion .controls");
  controls.hidden = false;
  for (const button of controls.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      for (const other of controls.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      order = orders[button.dataset.order];
      chosen = null;
      readout.textContent = "No cell is selected.";
      draw();
    });
  }
  redraws.push(draw);
  draw();
  let width = box.parentElement.clientWidth;
  new ResizeObserver(() => {
    if (box.parentElement.clientWidth === width) return;
    width = box.parentElement.clientWidth;
    draw();
  }).observe(box.parentElement);
})();
