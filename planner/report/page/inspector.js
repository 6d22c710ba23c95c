/* The tensor that is looked at: its options, its next steps, and its pin. */

/** Show a tensor of an answer; `pin(tensor, option)` is told what a visitor chooses, -1 for the planner's choice. */
function inspect(problem, { answer, selected: tensor }, { select, pin }) {
  const panel = at("inspector"), { data } = problem;
  if (!tensor) {
    panel.replaceChildren(element("p", {}, "No tensor is selected. Each has a type of its own; select one to see what others would cost."));
    return;
  }
  const { group } = tensor, pick = answer.picks[group], pinned = answer.pins[group], option = chosen(tensor, answer.picks);
  const others = problem.members[group].filter((other) => other !== tensor);
  const same = problem.tensors.filter((other) => other.group >= 0 && other.role === tensor.role && other.block === tensor.block);
  const focused = panel.contains(document.activeElement) ? document.activeElement.value ?? document.activeElement.dataset.step : undefined;
  const top = panel.querySelector(".options")?.scrollTop ?? 0;
  panel.replaceChildren(...[
    element("h3", {}, tensor.name),
    element("p", {}, `${tensor.shape.join(" × ")} · ${data.formats[option.format].name} · ${inBytes(option.bytes)} · `
      + `${percent(share(option.loss, answer.loss))} of the loss, ${percent(share(option.bytes, answer.bytes))} of the bytes`),
    same.length > 1 && element("label", {}, "Tensor", element("select", { "aria-label": "Tensor", onchange: (event) => select(problem.tensors[event.target.value]) },
      ...same.map((other) => element("option", { value: other.index, selected: other === tensor }, other.name)))),
    others.length > 0 && element("p", {}, `Tied to ${others.map((other) => other.name).join(", ")}: figures of steps are of all together.`),
    steps(problem, answer, tensor, pin),
    element("p", { class: "net" }, "Net counts what its bytes would save elsewhere: above 0, the step is a bad bargain."),
    element("div", { class: "options", role: "radiogroup", "aria-label": `Type of ${tensor.name}` },
      choice("-1", "auto", pinned < 0, pinned < 0 ? "planner's choice" : "let planner choose", null),
      ...rows(problem, tensor, pick, pinned)),
  ].filter(Boolean));
  panel.querySelector(".options").scrollTop = top;
  if (focused !== undefined) {
    [...panel.querySelectorAll("input, button")].find((one) => (one.dataset.step ?? one.value) === focused)?.focus();
  }

  function choice(value, name, checked, note, bar, css = "") {
    return element("label", { class: css }, element("input", { type: "radio", name: "type", value, checked, onchange: () => pin(tensor, Number(value)) }),
      element("span", { class: "mono" }, name), element("span", {}, bar), element("span", {}, note));
  }

  function rows() {
    const options = tensor.options.map((one, i) => ({ ...one, i, kept: problem.kept[group].includes(i) }));
    const most = Math.max(...options.map((one) => one.loss));
    return options.sort((a, b) => a.bytes - b.bytes || a.loss - b.loss).map((one) => {
      const bar = element("i");
      bar.style.width = `${most > 0 ? 100 * Math.sqrt(one.loss / most) : 0}%`;
      return choice(String(one.i), data.formats[one.format].name, pinned === one.i, inBytes(one.bytes), bar,
        `${one.i === pick ? "now" : ""} ${one.kept ? "" : "dominated"}`);
    });
  }
}

/** The next better and worse type of a tensor, each a button that pins it. */
function steps(problem, answer, tensor, pin) {
  const { better, worse } = neighbours(problem, tensor.group, answer.picks[tensor.group]);
  const button = (word, step) => {
    if (!step) return element("button", { type: "button", disabled: true }, element("small", {}, `next ${word}`), "none");
    const net = step.loss + answer.price * step.bytes; // what a byte is worth elsewhere included
    return element("button", { type: "button", "data-step": word, onclick: () => pin(tensor, step.to) },
      element("small", {}, `next ${word}`), element("b", {}, problem.data.formats[tensor.options[step.to].format].name),
      signedBytes(step.bytes), element("br"), `loss ${stepWords(problem, answer, step).split("loss ")[1]}`,
      element("small", {}, answer.fits ? `net ${net < 0 ? "−" : "+"}${percent(Math.abs(share(net, answer.loss)), 2)}` : ""));
  };
  return element("div", { class: "steps" }, button("better", better), button("worse", worse));
}
