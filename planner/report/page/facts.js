/* What is said of an answer beside the chart and the map: figures, pins, roles, commands, and where all comes from. */

function heading({ data, tensors, groups }) {
  const { model, sensitivity } = data.recipe;
  at("model").textContent = model.name;
  at("summary").textContent = `${model.architecture} · ${inWords(data.elements)} weights in ${tensors.length.toLocaleString("en")} tensors, `
    + `${groups.length.toLocaleString("en")} to choose a type for · every size, solved on this page`;
  const what = data.link ? "KL divergence to expect (nats per token)" : `Loss by ${sensitivity}`;
  at("chart-title").textContent = `${what}, against the size of the ${data.wholeFile ? "file" : "tensors"}`;
  at("loss-name").textContent = data.link ? "KL divergence expected" : `loss by ${sensitivity}`;
}

/** The figures of an answer. */
function reading({ data, overhead, tensors }, { answer, budget, pins }, chart) {
  const [number, unit] = inBytes(answer.size).split(" "), bytes = tensors.reduce((sum, one) => sum + chosen(one, answer.picks).bytes, 0);
  say("size", number, element("small", {}, ` ${unit}`));
  at("bpw").textContent = ((8 * bytes) / data.elements).toFixed(3);
  const expected = data.link && predict(data.link, answer.loss);
  say("loss", short(expected ? expected.kld : answer.loss, 3),
    expected && element("small", {}, `${short(expected.low, 2)} to ${short(expected.high, 2)}`));
  const gap = answer.loss > 0 ? 1 - answer.bound / answer.loss : 0;
  at("gap").textContent = !answer.fits ? "–" : gap < 1e-9 ? "0 %, proven" : `≤ ${gap < 1e-4 ? "0.01 %" : percent(gap, 2)}`;
  at("left").textContent = answer.fits ? inBytes(budget - answer.size, 1) : "–";
  const notice = at("notice");
  notice.hidden = answer.fits;
  if (!answer.fits) {
    const why = pins.some((option) => option >= 0) ? "with these pins" : "of any recipe";
    notice.textContent = `Nothing fits ${inBytes(budget)}: the least ${why} is ${inBytes(answer.size)}, which is shown.`;
  }
  for (const id of ["take-recipe", "take-types"]) at(id).disabled = !answer.fits;
  const boxes = { "size-box": inBytes(budget), "bpw-box": chart.bits(budget).toFixed(3) };
  for (const [id, text] of Object.entries(boxes)) if (document.activeElement !== at(id)) at(id).value = text;
}

/** Pins as buttons that undo them; those of a role to one type are one button. */
function pins({ data, members, groups }, { pins: all }, setPins) {
  const sets = new Map();
  all.forEach((option, group) => {
    if (option < 0) return;
    const key = `${members[group][0].role}=${data.formats[groups[group][option].format].name}`;
    sets.set(key, [...(sets.get(key) ?? []), group]);
  });
  const focused = at("pins").contains(document.activeElement);
  const button = (words, label, of) => element("button", { type: "button", "aria-label": label, onclick: () => setPins((to) => of.forEach((group) => { to[group] = -1; })) }, words);
  say("pins", ...[...sets].map(([key, of]) => {
    const words = of.length > 1 ? `${key} ×${of.length}` : `${members[of[0]][0].name}=${key.split("=").at(-1)}`;
    return button(words, `Remove the pin ${words}`, of);
  }), sets.size > 1 && button("all pins", "Remove all pins", [...sets.values()].flat()));
  if (focused) (at("pins").querySelector("button") ?? at("map-title")).focus();
}

/** The table of roles; `pin(role, format)` is told what a visitor pins all of a role to, -1 for nothing. */
function makeRoles(problem, pin) {
  const { data, tensors, groups } = problem, roles = new Map(), rows = new Map();
  for (const tensor of tensors) {
    const role = tensor.group < 0 ? "" : tensor.role;
    roles.set(role, [...(roles.get(role) ?? []), tensor]);
  }
  const head = ["role", "tensors", "size", "bpw", "of the bytes", "of the loss"];
  const key = (css, words) => [element("span", { class: `key ${css}` }), words];
  const body = element("tbody");
  say("roles", element("thead", {}, element("tr", {}, ...head.map((word, i) => element("th", { scope: "col", class: i ? (i === 1 || i === 4 ? "wide" : "") : "left" },
    ...(word === "of the bytes" ? key("bytes", word) : word === "of the loss" ? key("loss", word) : [word]))),
  element("th", { class: "left bars" }), element("th", { scope: "col", class: "left" }, "types"), element("th", { scope: "col", class: "pin left" }, "pin all to"))), body);
  for (const [role, members] of roles) {
    const cells = head.slice(1).map(() => element("td")), types = element("td", { class: "left types" });
    const bars = [element("i"), element("i")], first = groups[members[0].group];
    const select = first && element("select", { "aria-label": `Pin all ${role} to`, onchange: (event) => pin(role, Number(event.target.value)) },
      element("option", { value: -1 }, "no pin"), element("option", { value: -2, hidden: true }, "mixed"),
      ...first.map((one) => one.format).sort((a, b) => a - b).map((format) => element("option", { value: format }, data.formats[format].name)));
    const row = element("tr", {}, element("th", { scope: "row" }, role || "left alone"), ...cells,
      element("td", { class: "bars" }, element("div", { class: "bar", "aria-hidden": "true" }, ...bars)), types, element("td", { class: "pin left" }, select));
    cells[0].textContent = members.length;
    for (const i of [0, 3]) cells[i].className = "wide";
    rows.set(role, { members, cells, types, bars, select, row });
  }

  function show({ answer }, settled) {
    const sums = [...rows].map(([role, row]) => {
      const options = row.members.map((tensor) => chosen(tensor, answer.picks));
      const sum = (field) => options.reduce((total, option) => total + option[field], 0);
      return { role, ...row, options, bytes: sum("bytes"), loss: sum("loss") };
    });
    const widest = Math.max(...sums.map(({ bytes, loss }) => Math.max(bytes / answer.size, share(loss, answer.loss))));
    for (const { members, cells, types, bars, select, options, bytes, loss } of sums) {
      const parts = [bytes / answer.size, share(loss, answer.loss)];
      const texts = [inBytes(bytes), ((8 * bytes) / members.reduce((n, tensor) => n + tensor.elements, 0)).toFixed(2), ...parts.map((part) => percent(part))];
      texts.forEach((text, i) => { cells[i + 1].textContent = text; });
      bars.forEach((bar, i) => { bar.style.width = `${(100 * parts[i]) / widest}%`; });
      const counts = new Map();
      for (const { format } of options) counts.set(format, (counts.get(format) ?? 0) + 1);
      types.textContent = [...counts].sort(([a], [b]) => a - b).map(([format, n]) => data.formats[format].name + (counts.size > 1 ? `×${n}` : "")).join("  ");
      if (settled && select) {
        const pinned = new Set(members.map((tensor) => (answer.pins[tensor.group] < 0 ? -1 : tensor.options[answer.pins[tensor.group]].format)));
        select.value = pinned.size === 1 ? [...pinned][0] : -2;
      }
    }
    if (settled && !body.contains(document.activeElement)) {
      body.replaceChildren(...sums.sort((a, b) => (a.role === "") - (b.role === "") || b.loss - a.loss).map(({ row }) => row));
    }
  }

  return { show };
}

/** How to make the file of a recipe, and where everything comes from. */
function provenance(problem, recipe) {
  const { data } = problem, { model, imatrix, covariance } = recipe;
  say("commands", ...commands(problem, recipe).map((line) => element("div", { class: "command" }, element("code", {}, line),
    element("button", { type: "button", onclick: (event) => { navigator.clipboard?.writeText(line); event.target.textContent = "copied"; } }, "copy"))));
  const facts = [
    ["Model", `${model.path} (${model.digest.slice(0, 16)}…)`],
    ["Importance matrix", imatrix ? `${imatrix.path} (${imatrix.digest.slice(0, 16)}…)` : "none"],
    ...(covariance ? [["Covariances", `${covariance.path} (${covariance.digest.slice(0, 16)}…)`]] : []),
    ["Sensitivities", recipe.sensitivity + (data.link ? `; divergences fitted to ${data.files} evaluated files` : "")],
    ["Errors", `sampled to ${percent(recipe.tolerance, 0)}, seed ${recipe.seed}, in ${data.formats.length} types, state ${data.state}`],
    ["Made by", `planner ${recipe.planner}, ggml ${recipe.ggml}`],
    ...(data.given ? [["Opens with", `a recipe of ${inBytes(data.given.size)}, planned for ${data.given.budget}`]] : []),
    ...(data.command ? [["This page", data.command]] : []),
  ];
  say("origin", ...facts.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]));
  at("caveats").textContent = "Sizes are those of the file, to the byte. Only they are explored here: limits by device or by what a token reads, "
    + "and which files run fast where, are planner's to solve for. Loss is an estimate that ranks recipes of this model; it compares with no other model's.";
}
