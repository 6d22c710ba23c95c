/* The chart: what every size loses, the size that is asked for, and mixes of others beside it. */

const PAD = { left: 62, right: 18, top: 12, bottom: 40 };
const THUMB = 24; // pixels that the slider's knob is wide
const NICE = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 10];
const MARKED_BITS = [1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16];

/** In what order names are written, where not all have room: files, the mixes that people know best, others. */
const known = (mark) => (mark.mix || mark.all ? (/(_M|IQ4_XS|Q6_K|Q8_0)$/i.test(mark.name) ? 1 : 2) : 0);

/** A chart of a problem; `measure` is what its height shows of a loss, `pick` is told sizes that a visitor points to. */
function makeChart(problem, measure, pick) {
  const { data, elements = data.elements } = problem, svg = at("chart"), slider = at("slider"), tip = at("chart-tip");
  const all = frontier(problem, problem.groups.map(() => -1)).map((corner) => problem.overhead + corner.bytes);
  problem.all = all;
  const least = all[0], usual = Math.max(data.header + (9 * elements) / 8, (data.start.bytes ?? 0) * 1.1, 1.2 * least);
  const most = Math.min(all.at(-1), usual);
  let log = true, box = { width: 0, height: 0 }, corners = [], range = [1e-6, 1], now = null;

  const part = (size) => (most <= least ? 0
    : log ? Math.log(size / least) / Math.log(most / least) : (size - least) / (most - least));
  const sizeAt = (share) => (share <= 0 ? least : share >= 1 ? most
    : Math.round(log ? least * (most / least) ** share : least + (most - least) * share));
  const x = (size) => PAD.left + part(size) * (box.width - PAD.left - PAD.right);
  const y = (value) => PAD.top + (Math.log(range[1] / value) / Math.log(range[1] / range[0])) * (box.height - PAD.top - PAD.bottom);
  const bits = (size) => (8 * (size - data.header)) / elements;
  const sizeOf = (bpw) => data.header + (bpw * elements) / 8;

  function ticks() {
    const spaced = (places, label, gap) => {
      let last = -Infinity;
      return places.filter(([size]) => size >= least * 0.999 && size <= most * 1.001 && x(size) >= last + gap && (last = x(size), true))
        .map(([size, value]) => [x(size), label(size, value)]);
    };
    const tens = Array.from({ length: 14 }, (_, i) => 10 ** i);
    const round = [...new Set(tens.flatMap((ten) => NICE.map((nice) => nice * ten)))].sort((a, b) => a - b);
    return [
      spaced(round.map((size) => [size]), (size) => inBytes(size, 1).replace(".0 ", " "), 62),
      spaced(MARKED_BITS.map((bpw) => [sizeOf(bpw), bpw]), (_, bpw) => `${bpw}`, 34),
    ];
  }

  function levels() {
    const found = [];
    for (let ten = Math.floor(Math.log10(range[0])); ten <= Math.log10(range[1]); ten++) {
      for (const nice of range[1] / range[0] < 300 ? [1, 2, 5] : [1]) found.push(Number(`${nice}e${ten}`));
    }
    return found.filter((value) => value >= range[0] && value <= range[1]);
  }

  function path() {
    const points = [];
    for (const corner of corners) {
      const place = [x(problem.overhead + corner.bytes), y(Math.max(measure(corner.loss), range[0]))];
      if (place[0] > box.width - PAD.right + 1) break;
      if (!points.length || place[0] - points.at(-1)[0] > 0.8) points.push(place);
    }
    return points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`);
  }

  function text(place, words, attributes = {}) {
    return element("svg:text", { x: place[0].toFixed(1), y: place[1].toFixed(1), ...attributes }, words);
  }

  function marks() {
    const given = data.given && { name: "the recipe", given: true, size: data.given.size, loss: problem.givenLoss };
    return [...(given ? [given] : []), ...data.marks, ...(data.marks.some((mark) => mark.mix) ? [] : problem.uniform)]
      .filter((mark) => mark.loss > 0 && mark.size >= least && mark.size <= most).sort((a, b) => known(a) - known(b));
  }

  /** Where the name of a mark has room: {x, y, wide}, its upper left corner; undefined where it has none. */
  function cornerOf(mark, [a, b], dots, used, right) {
    const wide = mark.name.length * 6.1 + 2, above = b - 15, below = b + 3, aside = a + 7, before = a - 6 - wide;
    const places = [[aside, above], [aside, b - 6], [aside, below], [before, below]].slice(0, known(mark) < 2 ? 4 : 2);
    const corners = places.map(([x, y]) => ({ x, y, wide }))
      .filter((one) => one.x + wide < right + PAD.right && one.x > PAD.left
        && !used.some((other) => Math.abs(other.y - one.y) < 12 && one.x < other.x + other.wide && other.x < one.x + wide));
    if (mark.given) corners.reverse(); // the curve falls: before and below a point there is room
    const clear = (one) => !dots.some(([c, d]) => c > one.x - 3 && c < one.x + wide && d > one.y - 2 && d < one.y + 13);
    return corners.find(clear) ?? (known(mark) < 2 ? corners[0] : undefined);
  }

  function draw() {
    box = { width: svg.clientWidth, height: svg.clientHeight };
    if (!box.width) return;
    const right = box.width - PAD.right, foot = box.height - PAD.bottom, [sizes, bpws] = ticks(), points = path();
    slider.style.left = `${PAD.left - THUMB / 2}px`;
    slider.style.width = `${right - PAD.left + THUMB}px`;
    const dots = marks().map((mark) => [x(mark.size), y(measure(mark.loss))]), used = [];
    const names = marks().map((mark, i) => {
      const place = dots[i], corner = cornerOf(mark, place, dots, used, right);
      if (corner) used.push(corner);
      return [
        element("svg:circle", { class: mark.all ? "uniform" : "mark", cx: place[0], cy: place[1], r: mark.all ? 2.6 : 4 }),
        corner && text([corner.x, corner.y + 10], mark.name, { class: mark.all ? "uniform-name" : "mark-name" }),
      ];
    });
    svg.replaceChildren(...[
      ...levels().flatMap((value) => [
        element("svg:line", { class: "grid", x1: PAD.left, x2: right, y1: y(value), y2: y(value) }),
        text([PAD.left - 8, y(value) + 4], short(value, 2), { "text-anchor": "end" }),
      ]),
      ...sizes.map(([place, words]) => text([place, foot + 17], words, { "text-anchor": "middle" })),
      ...bpws.map(([place, words]) => text([place, foot + 33], words, { "text-anchor": "middle" })),
      text([PAD.left - 8, foot + 33], "bpw", { "text-anchor": "end" }),
      element("svg:line", { class: "grid", x1: PAD.left, x2: right, y1: foot, y2: foot }),
      element("svg:path", { class: "area", d: `M${points[0].split(" ")[0]} ${foot} L${points.join("L")} L${points.at(-1).split(" ")[0]} ${foot}Z` }),
      element("svg:path", { class: "curve", d: `M${points.join("L")}` }),
      ...names.flat(),
      element("svg:g", { id: "chart-hover" }),
      element("svg:g", { id: "chart-here" }),
    ].filter(Boolean));
    mark();
  }

  function mark() {
    const group = document.getElementById("chart-here");
    if (!group || !now) return;
    const place = [x(Math.min(now.size, most)), y(Math.min(Math.max(measure(now.loss), range[0]), range[1]))];
    group.replaceChildren(
      element("svg:line", { class: "here-line", x1: place[0], x2: place[0], y1: place[1], y2: box.height + 15 }),
      element("svg:circle", { class: "here", cx: place[0], cy: place[1], r: 6.5 }),
    );
  }

  /** The loss that the curve has at a size. */
  function lossAt(size) {
    const after = corners.findIndex((corner) => problem.overhead + corner.bytes > size);
    if (after <= 0) return corners.at(after).loss;
    const [a, b] = [corners[after - 1], corners[after]], share = (size - problem.overhead - a.bytes) / (b.bytes - a.bytes);
    return a.loss + (b.loss - a.loss) * share;
  }

  function hover(event) {
    const bounds = svg.getBoundingClientRect(), group = document.getElementById("chart-hover");
    const place = event && event.clientX - bounds.left;
    if (!event || place < PAD.left - THUMB / 2 || place > bounds.width - PAD.right / 2) { tip.hidden = true; group?.replaceChildren(); return undefined; }
    const near = marks().find((mark) => Math.hypot(x(mark.size) - place, y(measure(mark.loss)) - event.clientY + bounds.top) < 14);
    const size = near ? near.size : sizeAt((place - PAD.left) / (bounds.width - PAD.left - PAD.right));
    const loss = near ? near.loss : lossAt(size), height = y(Math.max(measure(loss), range[0]));
    group.replaceChildren(
      element("svg:line", { class: "hover", x1: x(size), x2: x(size), y1: PAD.top, y2: box.height - PAD.bottom }),
      element("svg:circle", { class: "mark", cx: x(size), cy: height, r: 4 }),
    );
    tip.replaceChildren(...(near ? [element("b", {}, near.all ? `all ${near.name}` : near.name)] : []),
      `${inBytes(size)} · ${bits(size).toFixed(2)} bpw`, element("br"), `${problem.measureName} ${short(measure(loss), 3)}`);
    tip.hidden = false;
    const aside = x(size) > box.width / 2 ? x(size) - tip.offsetWidth - 12 : x(size) + 12;
    tip.style.left = `${Math.max(0, aside)}px`;
    tip.style.top = `${Math.max(0, height - tip.offsetHeight - 10)}px`;
    return size;
  }

  svg.addEventListener("pointerdown", (event) => {
    const size = hover(event);
    if (size === undefined) return;
    if (event.pointerType !== "touch") svg.setPointerCapture(event.pointerId);
    pick(size, true);
  });
  svg.addEventListener("pointermove", (event) => {
    const size = hover(event);
    if (event.buttons && size !== undefined && svg.hasPointerCapture(event.pointerId)) pick(size, true);
  });
  svg.addEventListener("pointerup", () => pick(undefined, false));
  svg.addEventListener("pointerleave", () => hover());
  new ResizeObserver(draw).observe(svg);

  return {
    least, most, sizeOf, bits, draw,
    /** The size that a position of the slider means. */
    sizeAt: (value) => sizeAt(value / Number(slider.max)),
    scale(kind) { log = kind === "log"; draw(); },
    /** Show what the walk under these pins loses. */
    frontier(pins) {
      corners = frontier(problem, pins);
      const end = measure(lossAt(most)), start = measure(corners[0].loss);
      range = [Math.max(end, start * 1e-9) / 1.15, Math.max(start, end * 10) * 1.15];
      draw();
    },
    /** Show where an answer is, and where its budget. */
    show(size, loss, budget) {
      now = { size, loss };
      const share = Math.min(Math.max(part(budget), 0), 1);
      slider.value = String(Math.round(share * Number(slider.max)));
      slider.style.setProperty("--part", `${(100 * share).toFixed(2)}%`);
      slider.setAttribute("aria-valuetext", `${inBytes(budget)}, ${bits(budget).toFixed(2)} bits per weight`);
      mark();
    },
  };
}
