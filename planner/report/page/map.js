/* The map: layers across, roles down, a cell for each tensor; and the tensor that is looked at. */

/** Tensors in sections: those of blocks in tables of roles and blocks, and all others beside each other. */
function sections(problem) {
  const towers = new Map(), outside = [];
  for (const tensor of problem.tensors) {
    if (tensor.group < 0) continue;
    if (tensor.block < 0) { outside.push(tensor); continue; }
    const tower = tensor.name.slice(0, tensor.name.indexOf("blk."));
    if (!towers.has(tower)) towers.set(tower, new Map());
    const roles = towers.get(tower);
    if (!roles.has(tensor.role)) roles.set(tensor.role, new Map());
    const blocks = roles.get(tensor.role);
    blocks.set(tensor.block, [...(blocks.get(tensor.block) ?? []), tensor]);
  }
  return { towers, outside };
}

/** The map of a problem; `on` has what happens: `select(tensor)`, `pin(tensor, option)`. */
function makeMap(problem, on) {
  const { data } = problem, tip = at("map-tip"), cells = [], grids = [];
  const { towers, outside } = sections(problem), coarse = matchMedia("(pointer: coarse)").matches;
  let state = null;

  function cell(tensors, grid, row, column) {
    const button = element("button", {
      type: "button", class: "cell", tabindex: "-1", "aria-pressed": "false",
      onclick: () => on.select(tensors[0]), onkeydown: (event) => press(event, made),
      onfocus: () => point(made), onblur: () => point(), onpointerenter: () => point(made), onpointerleave: () => point(),
    });
    const made = { tensors, button, grid, row, column };
    grid.cells[row][column] = made;
    cells.push(made);
    return button;
  }

  function build() {
    const parts = [];
    if (outside.length) {
      const grid = { cells: [[]] };
      grids.push(grid);
      parts.push(element("table", { class: "map outside" }, element("caption", {}, "Outside the blocks"),
        element("thead", {}, element("tr", {}, ...outside.map((tensor) => element("th", { scope: "col", title: tensor.name }, tensor.role)))),
        element("tbody", {}, element("tr", {}, ...outside.map((tensor, column) => element("td", {}, cell([tensor], grid, 0, column)))))));
    }
    for (const [tower, roles] of towers) {
      const blocks = [...new Set([...roles.values()].flatMap((row) => [...row.keys()]))].sort((a, b) => a - b);
      const every = [1, 2, 4, 5, 8, 10, 20, 25, 50, 100].find((step) => blocks.length / step <= 25) ?? 200;
      const grid = { cells: [] };
      grids.push(grid);
      const name = 16 + 7.7 * Math.max(...[...roles.keys()].map((role) => role.slice(tower.length).length));
      const wide = element("col"), table = element("table", { class: "map" },
        element("caption", {}, tower ? `Blocks of ${tower.replace(/\.$/, "")}` : "Blocks"), element("colgroup", {}, wide, ...blocks.map(() => element("col"))),
        element("thead", {}, element("tr", {}, element("td"), ...blocks.map((block) => element("th", { scope: "col" }, block % every ? "" : String(block))))),
        element("tbody", {}, ...[...roles].map(([role, row], r) => {
          grid.cells.push([]);
          return element("tr", {}, element("th", { scope: "row", title: role }, role.slice(tower.length)),
            ...blocks.map((block, column) => element("td", {}, row.has(block) && cell(row.get(block), grid, r, column))));
        })));
      wide.style.width = `${Math.min(name, 170)}px`;
      table.style.minWidth = `${Math.min(name, 170) + (coarse ? 16 : 9) * blocks.length}px`;
      if (blocks.length > 40) table.classList.add("dense");
      parts.push(element("div", { class: "scroll" }, table));
    }
    say("maps", ...parts);
    for (const grid of grids) grid.cells.flat()[0].button.tabIndex = 0;
    say("legend", ...BITS.map((bits) => element("span", {}, element("i"), String(bits))));
  }

  const key = (keys, row, column) => ({ ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column],
    ArrowUp: [row - 1, column], Home: [row, 0], End: [row, Infinity] })[keys];

  /** Where a key leads from a cell: the next that there is, in its grid. */
  function next({ grid, row, column }, pressed) {
    const step = key(pressed, row, column);
    if (!step) return undefined;
    const [r, c] = step, line = grid.cells[r];
    if (!line) return undefined;
    const columns = Object.keys(line).map(Number);
    const fit = r !== row ? columns.sort((a, b) => Math.abs(a - c) - Math.abs(b - c))[0]
      : pressed === "Home" ? columns[0] : pressed === "End" ? columns.at(-1)
        : c > column ? columns.find((other) => other >= c) : columns.findLast((other) => other <= c);
    return line[fit];
  }

  function press(event, from) {
    const tensor = from.tensors[0], group = tensor.group, pick = state.answer.picks[group];
    const to = next(from, event.key);
    if (to) {
      for (const other of from.grid.cells.flat()) other.button.tabIndex = -1;
      to.button.tabIndex = 0;
      to.button.focus();
    } else if (event.key === " ") {
      on.select(tensor);
      on.pin(tensor, state.answer.pins[group] >= 0 ? -1 : pick);
    } else if (["+", "=", "-", "−"].includes(event.key)) {
      const { better, worse } = neighbours(problem, group, pick), step = "+=".includes(event.key) ? better : worse;
      on.select(tensor);
      if (step) on.pin(tensor, step.to);
    } else return;
    event.preventDefault();
  }

  function point(made) {
    tip.hidden = !made;
    if (!made) return;
    say("map-tip", ...describe(made));
    const bounds = made.button.getBoundingClientRect(), room = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(bounds.left, room - tip.offsetWidth - 12)) + scrollX}px`;
    const above = bounds.top - tip.offsetHeight - 8;
    tip.style.top = `${(above > 0 ? above : bounds.bottom + 8) + scrollY}px`;
  }

  function describe({ tensors }) {
    const [tensor] = tensors, { answer } = state, option = chosen(tensor, answer.picks);
    const { better, worse } = neighbours(problem, tensor.group, answer.picks[tensor.group]);
    const line = (words, step) => [element("br"), `${words}: `, step ? `${nameOf(tensor, step.to)} ${stepWords(problem, answer, step)}` : "none"];
    return [element("b", {}, tensor.name), ...(tensors.length > 1 ? [`and ${tensors.length - 1} more`, element("br")] : []),
      `${data.formats[option.format].name} · ${inBytes(option.bytes)} · ${percent(share(option.loss, answer.loss))} of the loss`,
      ...line("better", better), ...line("worse", worse)];
  }

  const nameOf = (tensor, option) => data.formats[tensor.options[option].format].name;

  function paint() {
    const theme = themeNow();
    for (const made of cells) {
      const bytes = made.tensors.reduce((sum, tensor) => sum + chosen(tensor, state.answer.picks).bytes, 0);
      const bpw = (8 * bytes) / made.tensors.reduce((sum, tensor) => sum + tensor.elements, 0);
      const { ground, ink } = colours(bpw, theme), { style } = made.button;
      if (made.ground !== ground || made.ink !== ink) {
        style.setProperty("--cell", made.ground = ground);
        style.setProperty("--on-cell", made.ink = ink);
      }
      const format = data.formats[chosen(made.tensors[0], state.answer.picks).format].name;
      const label = made.width > format.length * 7 + 2 ? format : "";
      if (made.label !== label) made.button.textContent = made.label = label;
      const selected = made.tensors.includes(state.selected);
      if (made.selected !== selected) made.button.classList.toggle("selected", made.selected = selected);
      const pinned = String(made.tensors.some((tensor) => state.answer.pins[tensor.group] >= 0));
      if (made.pinned !== pinned) made.button.setAttribute("aria-pressed", made.pinned = pinned);
    }
    at("legend").querySelectorAll("i").forEach((bar, i) => { bar.style.background = colours(BITS[i], theme).ground; });
  }

  /** Names for readers of the screen: too many to write anew while a slider moves. */
  function name() {
    for (const { tensors: [tensor], button } of cells) {
      const option = chosen(tensor, state.answer.picks), format = data.formats[option.format];
      button.setAttribute("aria-label", `${tensor.name}: ${format.name}, ${inBytes(option.bytes)}, `
        + `${percent(share(option.loss, state.answer.loss))} of the loss`);
    }
  }

  build();
  new ResizeObserver(() => {
    for (const made of cells) made.width = made.button.clientWidth; // all at once: reading after writing is slow
    if (state) paint();
  }).observe(at("maps"));
  return {
    cells,
    show(shown, settled) { state = shown; paint(); if (settled) name(); tip.hidden = true; },
  };
}

const share = (part, whole) => (whole > 0 ? part / whole : 0);
const themeNow = () => (matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches ? "dark" : "light");

/** What a step changes: bytes, and loss in percent of the recipe's. */
function stepWords(problem, answer, step) {
  const change = share(step.loss, answer.loss);
  return `${signedBytes(step.bytes)}, loss ${change < 0 ? "−" : "+"}${percent(Math.abs(change))}`;
}
