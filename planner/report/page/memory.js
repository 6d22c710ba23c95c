/* A card's memory: what a recipe takes with a context beside it, and the largest recipe that fits. */

const GIB = 2 ** 30;
const ON_CARD = 128; // bytes that tensors are aligned to there (planner/plan/cards.py)

/** The choice of a card and a context; `ask(size)` is told the size that fits, `least()`
    and `answer(size)` say what there is, both with `pins`, `again()` shows the present answer again. */
function makeMemory(problem, { least, answer, ask, again }) {
  const { memory } = problem.data;
  at("fit").hidden = !memory;
  if (!memory) return { fit: () => false, show() {}, leave() {}, pins: (pins) => pins };
  const inRam = new Set(memory.inRam), [card, context, cache] = ["card", "context", "cache"].map(at);
  const options = (select, entries) => select.replaceChildren(...entries.map(([value, words]) => element("option", { value }, words)));
  const once = (field) => [...new Set(memory.contexts.map((one) => one[field]))];
  options(card, [["", "any"], ...memory.cards.map((size) => [size, `${size} GiB`])]);
  options(context, once("tokens").map((tokens) => [tokens, `${tokens / 1024}k`]));
  options(cache, once("kv").map((kind) => [kind, kind]));
  context.value = String(Math.max(...once("tokens").filter((tokens) => tokens <= 32768)));

  const chosenContext = () => memory.contexts.find((one) => one.tokens === Number(context.value) && one.kv === cache.value);
  const beside = ({ cache: kept, state, compute, reserve }) => kept + state + compute + reserve;

  // what stays in main memory takes nothing of the card: it gets what solve --vram gives it (planner/plan/candidates.py)
  const aside = problem.members.map((tensors, g) => {
    if (!tensors.every((tensor) => inRam.has(tensor.index))) return -1;
    const small = (pick) => 8 * tensors[0].options[pick].bytes <= memory.mostInRam * tensors[0].elements;
    return problem.kept[g].findLast(small) ?? problem.kept[g].at(-1);
  });

  /** Bytes of a recipe's tensors on the card. */
  function onCard(picks) {
    return problem.tensors.reduce((sum, tensor) => (inRam.has(tensor.index) ? sum
      : sum + Math.ceil(chosen(tensor, picks).bytes / ON_CARD) * ON_CARD), 0);
  }

  /** Ask for the largest size whose recipe fits, by bisection: tensors are padded otherwise there than in the file. */
  function fit() {
    if (card.value === "") return false;
    const room = Number(card.value) * GIB - beside(chosenContext());
    const held = (size) => { const found = answer(size); return found.fits && onCard(found.picks) <= room; };
    let low = least(), high = problem.all.at(-1); // the smallest, which may be too large, and the largest
    if (held(high)) low = high;
    while (high - low > 1024) {
      const middle = Math.floor((low + high) / 2);
      if (held(middle)) low = middle; else high = middle;
    }
    ask(low);
    return true;
  }

  for (const select of [card, context, cache]) select.addEventListener("change", () => fit() || again());
  return {
    fit,
    /** A visitor's pins, and where there is a card, what tensors get that stay off it. */
    pins: (pins) => (card.value === "" ? pins : pins.map((pin, g) => (pin < 0 ? aside[g] : pin))),
    /** Say what an answer takes on the card. */
    show({ picks, fits }) {
      const used = chosenContext(), weights = onCard(picks), total = weights + beside(used), room = Number(card.value) * GIB;
      const least = memory.cards.find((size) => size * GIB >= total);
      const parts = [`weights ${inBytes(weights)}`, `keys and values ${inBytes(used.cache)}`,
        ...(used.state ? [`states ${inBytes(used.state)}`] : []), `computing ${inBytes(used.compute)}`, `left free ${inBytes(used.reserve)}`];
      const over = room && (total > room || !fits);
      say("fit-says", element("strong", {}, over ? `Nothing fits ${card.value} GiB. ` : room ? `Fits ${card.value} GiB. `
        : least ? `Needs a card of ${least} GiB. ` : `Needs ${inBytes(total)}. `), `${parts.join(" + ")} = ${inBytes(total)}. `, ...memory.notes.map((note) => `${note} `));
    },
    /** Forget the card: a size was asked for. */
    leave() { card.value = ""; },
  };
}
