"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chart = document.getElementById("chart"), tip = document.getElementById("tip");
  const rows = new Map([...document.querySelectorAll("tbody tr")].map((row) => [Number(row.dataset.place), row]));
  const shown = data.points.filter((point) => point.kld !== null && point.kld > 0);
  const margin = { left: 58, right: 18, top: 16, bottom: 42 };
  let points = new Map();

  const node = (name, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  };
  const brief = (value) => String(Number(value.toPrecision(3)));
  const size = (bytes) => {
    const [scale, unit] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
    return `${brief(bytes / scale)} ${unit}`;
  };

  // ticks at 1, 2 and 5 times powers of ten, or closer where the range is small
  const ticks = (low, high, most) => {
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], []]) {
      const found = [];
      if (!steps.length) {
        const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
        const step = power * [1, 2, 5, 10].find((each) => each * power >= raw);
        for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
        return found;
      }
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) found.push(step * 10 ** power);
      if (found.length >= 4 && found.length <= most) return found;
    }
  };
  const span = (values, room) => {
    const low = Math.min(...values), high = Math.max(...values), more = Math.max((high / low) ** room, 1.08);
    return [low / more, high * more];
  };
  const scale = ([low, high], from, to) => (value) => from + (to - from) * Math.log(value / low) / Math.log(high / low);

  function draw() {
    chart.replaceChildren();
    points = new Map();
    const width = chart.clientWidth, height = chart.clientHeight;
    if (!shown.length || !width) return;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const sizes = span(shown.map((point) => point.bytes), 0.08);
    const ours = data.ours.filter(([bytes]) => bytes >= sizes[0] && bytes <= sizes[1]);
    const klds = span([...ours.map(([, kld]) => kld),
      ...shown.flatMap((point) => [point.kld, Math.max(point.kld - point.error, point.kld / 3), point.kld + point.error])], 0.06);
    const x = scale(sizes, margin.left, width - margin.right), y = scale(klds, height - margin.bottom, margin.top);
    for (const at of ticks(...sizes, Math.max(3, Math.floor(width / 90)))) {
      node("line", { class: "grid", x1: x(at), x2: x(at), y1: margin.top, y2: height - margin.bottom }, chart);
      node("text", { x: x(at), y: height - margin.bottom + 18, "text-anchor": "middle" }, chart, size(at));
    }
    for (const at of ticks(...klds, 8)) {
      node("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(at), y2: y(at) }, chart);
      node("text", { x: margin.left - 8, y: y(at) + 4, "text-anchor": "end" }, chart, brief(at));
    }
    node("text", { x: margin.left, y: 2 }, chart, "mean KLD, nats a token");
    node("text", { x: width - margin.right, y: height - 4, "text-anchor": "end" }, chart, "size of the file");
    // a recipe in memory and its file have one size: the line is through the better one
    const best = shown.filter((point) => point.stands === "frontier").sort((a, b) => a.bytes - b.bytes || a.kld - b.kld)
      .filter((point, n, all) => all.slice(0, n).every((other) => other.kld > point.kld));
    if (best.length > 1) {
      const path = best.map((point, n) => n ? `H${x(point.bytes)}V${y(point.kld)}` : `M${x(point.bytes)} ${y(point.kld)}`);
      node("path", { class: "steps", d: path.join("") }, chart);
    }
    if (ours.length > 1) {
      const line = (way, column) => way.map((point) => `${x(point[0])} ${within(y(point[column]))}`).join("L");
      const within = (at) => Math.min(Math.max(at, margin.top), height - margin.bottom);
      node("path", { class: "interval", d: `M${line(ours, 2)}L${line([...ours].reverse(), 3)}Z` }, chart);
      node("path", { class: "ours", d: `M${line(ours, 1)}` }, chart);
    }
    for (const point of shown) mark(point, x(point.bytes), y(point.kld), y);
    for (const first of points.values()) {
      const group = near(first.cx, first.cy, 14);
      if (group[0] === first)
        node("text", { class: "place", x: first.cx + 9, y: first.cy - 8 }, chart, group.map(({ point }) => point.place).join(", "));
    }
  }
  const near = (x, y, reach) => [...points.values()].filter(({ cx, cy }) => Math.hypot(cx - x, cy - y) <= reach);

  function mark(point, cx, cy, y) {
    const group = node("g", { class: "point", tabindex: 0, role: "img", "aria-label": words(point).join(", ") }, chart);
    if (point.error > 0)
      node("line", { class: "error", x1: cx, x2: cx, y1: y(point.kld + point.error), y2: y(Math.max(point.kld - point.error, point.kld / 3)) }, group);
    node("circle", { class: "halo", cx, cy, r: 11 }, group);
    if (point.stands === "beaten") node("path", { class: "beaten", d: `M${cx - 4} ${cy - 4}l8 8m-8 0l8-8` }, group);
    else node("circle", { class: point.stands, cx, cy, r: point.stands === "tie" ? 5 : 6 }, group);
    group.addEventListener("focus", () => light([points.get(point.place)]));
    group.addEventListener("blur", dim);
    points.set(point.place, { group, point, cx, cy });
  }

  const words = (point) => [point.name, `${size(point.bytes)}, ${point.bpw.toFixed(3)} bpw`, `KLD ${point.shown}`, ...point.more];

  // the mark nearest to the pointer, and those that lie beneath it
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect(), at = [event.clientX - box.left, event.clientY - box.top];
    const distance = ({ cx, cy }) => Math.hypot(cx - at[0], cy - at[1]);
    const [nearest] = [...points.values()].sort((a, b) => distance(a) - distance(b));
    if (nearest && distance(nearest) < 40) light(near(nearest.cx, nearest.cy, 6));
    else dim();
  });
  chart.addEventListener("pointerleave", dim);

  function light(marks) {
    dim();
    const [{ cx, cy }] = marks;
    for (const { point, group } of marks) {
      rows.get(point.place)?.classList.add("lit");
      group.classList.add("lit");
    }
    tip.replaceChildren(...marks.flatMap(({ point }) => words(point).map((text, line) =>
      Object.assign(document.createElement(line ? "div" : "b"), { textContent: line ? text : `${point.place} ${text}` }))));
    tip.hidden = false;
    const left = Math.min(Math.max(cx - tip.offsetWidth / 2, 0), chart.clientWidth - tip.offsetWidth);
    const above = cy - tip.offsetHeight - 18;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${above > 0 ? above : cy + 18}px`;
  }
  function dim() {
    tip.hidden = true;
    for (const row of rows.values()) row.classList.remove("lit");
    for (const { group } of points.values()) group.classList.remove("lit");
  }

  for (const [place, row] of rows) {
    row.addEventListener("pointerenter", () => {
      dim();
      row.classList.add("lit");
      points.get(place)?.group.classList.add("lit");
    });
    row.addEventListener("pointerleave", dim);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") dim(); });

  const heads = [...document.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
      const compare = (a, b) => {
        const [p, q] = [value(a), value(b)], difference = Number(p) - Number(q);
        return Number.isNaN(difference) ? p.localeCompare(q) : difference;
      };
      const sorted = [...rows.values()].sort((a, b) => (down ? -1 : 1) * compare(a, b));
      document.querySelector("tbody").append(...sorted);
    });
  });
  const missing = data.points.length - shown.length;
  if (missing) {
    const note = document.getElementById("missing");
    note.textContent = `Not in the chart: ${missing} without a divergence above 0 that is finite.`;
    note.hidden = false;
  }
  draw();
  new ResizeObserver(draw).observe(chart);
})();
