/* The page: what a visitor asks for, and what is shown of the answer. */

const SETTLE = 140; // milliseconds without a change, after which the answer is looked for in full

function explore(data) {
  const problem = unpack(data), { groups } = problem;
  const given = data.given ? [data.given.picks] : [];
  if (data.given) problem.givenLoss = totals(problem, data.given.picks).loss;
  problem.measureName = data.link ? "expected KLD" : "loss";
  const measure = data.link ? (loss) => predict(data.link, loss).kld : (loss) => loss;
  const view = { budget: 0, pins: groups.map(() => -1), answer: null, selected: null };
  for (const [group, option] of data.pins) view.pins[group] = option;
  const opening = [...view.pins];
  problem.uniform = uniform(problem);
  let frame = 0, timer = 0;

  const chart = makeChart(problem, measure, (size, moving) => (size === undefined ? settle() : setBudget(size, moving)));
  const act = { select, pin };
  const map = makeMap(problem, act);
  const solvedFor = (size, quick) => solve(problem, size - problem.overhead, memory.pins(view.pins), given, quick);
  const memory = makeMemory(problem, {
    least: () => problem.overhead + smallest(problem, memory.pins(view.pins)).bytes, answer: (size) => solvedFor(size),
    ask: (size) => { view.budget = size; settle(); }, again: () => show(true),
  });
  const table = makeRoles(problem, (role, format) => {
    setPins((pins) => problem.tensors.forEach((tensor) => {
      if (tensor.group < 0 || tensor.role !== role) return;
      const option = format < 0 ? -1 : groups[tensor.group].findIndex((one) => one.format === format);
      if (format < 0 || option >= 0) pins[tensor.group] = option;
    }));
  });

  function solved(quick) {
    const answer = solvedFor(view.budget, quick);
    view.answer = { ...answer, pins: [...view.pins], size: problem.overhead + answer.bytes };
    return view.answer;
  }

  /** Answer at once, and in full when nothing moves any more. */
  function change() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => { solved(true); show(false); });
    clearTimeout(timer);
    timer = setTimeout(settle, SETTLE);
  }

  function settle() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    solved(false);
    show(true);
  }

  function setBudget(size, moving) {
    memory.leave();
    view.budget = Math.floor(size);
    moving ? change() : settle();
  }

  function setPins(edit) {
    edit(view.pins);
    chart.frontier(view.pins);
    if (!memory.fit()) settle();
  }

  function pin(tensor, option) {
    setPins((pins) => { pins[tensor.group] = option; });
  }

  function select(tensor) {
    view.selected = tensor;
    show(true);
  }

  function show(settled) {
    const { answer, budget } = view;
    chart.show(answer.size, answer.loss, budget);
    reading(problem, view, chart);
    map.show(view, settled);
    table.show(view, settled);
    memory.show(answer);
    if (settled) {
      inspect(problem, view, act);
      pins(problem, view, setPins);
      provenance(problem, recipeOf(problem, answer, title(budget)));
      at("back").hidden = !data.given || (budget === data.start.bytes && view.pins.every((option, g) => option === opening[g]));
    }
  }

  const title = (budget) => (budget >= 1000 ? `${inBytes(budget)} (${budget} bytes)` : inBytes(budget));
  const sized = (box, parse) => box.addEventListener("change", () => {
    const size = parse(box.value);
    box.setAttribute("aria-invalid", String(!(size > 0)));
    if (size > 0) setBudget(size, false);
  });
  sized(at("size-box"), (text) => parseSize(text, view.budget));
  sized(at("bpw-box"), (text) => chart.sizeOf(Number(text.replace(",", "."))));
  at("slider").addEventListener("input", (event) => setBudget(chart.sizeAt(Number(event.target.value)), true));
  at("slider").addEventListener("change", settle);
  for (const radio of document.querySelectorAll("[name=scale]")) {
    radio.addEventListener("change", () => { chart.scale(radio.value); show(false); });
  }
  at("take-recipe").addEventListener("click", () => download("recipe.json", recipeText(recipeOf(problem, view.answer, title(view.budget))), "application/json"));
  at("take-types").addEventListener("click", () => download("recipe.types.txt", typeFile(problem, view.answer), "text/plain"));
  at("back").addEventListener("click", () => {
    memory.leave();
    view.budget = data.start.bytes;
    setPins((pins) => opening.forEach((option, g) => { pins[g] = option; }));
  });
  const repaint = () => view.answer && map.show(view, false);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", repaint);
  addEventListener("beforeprint", () => { repaint(); chart.draw(); });

  heading(problem);
  at("take-types").hidden = !data.typeFile;
  chart.frontier(view.pins);
  const least = problem.overhead + smallest(problem, view.pins).bytes;
  view.budget = Math.floor(data.start.bytes ?? Math.min(Math.max(chart.sizeOf(data.start.bpw ?? 4.5), least), chart.most));
  solved(false);
  view.selected = problem.tensors.filter((tensor) => tensor.group >= 0)
    .reduce((a, b) => (chosen(b, view.answer.picks).loss > chosen(a, view.answer.picks).loss ? b : a));
  settle();
  return { problem, view, chart, map, table, setBudget, setPins, settle };
}

const explorer = explore(JSON.parse(at("data").textContent));
performance.mark("ready");
