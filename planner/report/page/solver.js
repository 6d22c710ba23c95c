"use strict";

/* The knapsack: of each group one option {format, bytes, loss}, together at most a budget of bytes, the sum of losses as
   small as can be. The greedy walk along the lower hulls of the groups is the best there is for the bytes that it takes,
   and where it stops gives a price of a byte and so a bound that no choice is below; what room is left is filled by the
   few options that cost little at that price. `pins[g]` is the option that group g has to take, or -1. */

const WIDTH = 300; // partial answers that the filling keeps
const DEPTH = 80; // groups that it looks at
const NODES = 20; // walks that are taken up again
const FILLED = 3; // of which so many are filled
const CLOSE = 1e-4; // share of the loss that is not worth looking for

/** Indices of the options that no other beats in bytes and in loss, from small to large. */
function undominated(options) {
  const order = options.map((_, i) => i);
  order.sort((a, b) => options[a].bytes - options[b].bytes || options[a].loss - options[b].loss);
  let least = Infinity;
  return order.filter((i) => options[i].loss < least && ((least = options[i].loss), true));
}

/** Groups made ready: their undominated options, the steps along all hulls, those that save most a byte first, the bytes
    that all groups take after so many of these, and where the steps of each group are among them. */
function prepare(groups) {
  const kept = groups.map(undominated);
  const steps = [];
  groups.forEach((options, group) => {
    const step = (from, to) => {
      const bytes = options[to].bytes - options[from].bytes;
      return { group, from, to, bytes, price: (options[from].loss - options[to].loss) / bytes };
    };
    const hull = [];
    for (const next of kept[group]) {
      while (hull.length && hull.at(-1).price <= step(hull.at(-1).to, next).price) hull.pop();
      hull.push(hull.length ? step(hull.at(-1).to, next) : { ...step(next, next), price: Infinity });
    }
    steps.push(...hull.slice(1));
  });
  steps.sort((a, b) => b.price - a.price);
  const bytes = [groups.reduce((sum, options, g) => sum + options[kept[g][0]].bytes, 0)];
  const own = groups.map(() => []);
  steps.forEach((step, at) => { bytes.push(bytes[at] + step.bytes); own[step.group].push(at); });
  return { groups, kept, steps, bytes, own };
}

/** Bytes and loss of a choice. */
function totals({ groups }, picks) {
  let bytes = 0, loss = 0;
  picks.forEach((pick, g) => { bytes += groups[g][pick].bytes; loss += groups[g][pick].loss; });
  return { picks, bytes, loss };
}

/** The choice of least bytes that keeps the pins. */
function smallest(problem, pins) {
  return totals(problem, problem.kept.map((kept, g) => (pins[g] < 0 ? kept[0] : pins[g])));
}

/** The option that a group takes where all have taken their steps among the first `count`. */
function taken({ kept, steps, own }, group, count) {
  const last = own[group].findLast((at) => at < count);
  return last === undefined ? kept[group][0] : steps[last].to;
}

/** The walk as far as the budget goes, by bisection on the price: `picks` and `bytes` where it stops, in front of the
    step `next`, whose price gives the `bound`. Undefined where nothing fits. */
function relax(problem, budget, pins) {
  const { groups, steps } = problem;
  const pinned = [];
  pins.forEach((pin, g) => { if (pin >= 0) pinned.push(g); });
  const bytesAt = (count) => pinned.reduce(
    (sum, g) => sum + groups[g][pins[g]].bytes - groups[g][taken(problem, g, count)].bytes, problem.bytes[count]);
  if (bytesAt(0) > budget) return undefined;
  let low = 0, high = steps.length; // fits, and the last that may
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (bytesAt(middle) <= budget) low = middle; else high = middle - 1;
  }
  const picks = problem.kept.map((kept) => kept[0]);
  for (let at = 0; at < low; at++) picks[steps[at].group] = steps[at].to;
  for (const g of pinned) picks[g] = pins[g];
  const base = totals(problem, picks), next = steps[low];
  const price = next ? next.price : 0;
  return { ...base, pins, next, count: low, price, room: budget - base.bytes, bound: base.loss - price * (budget - base.bytes) };
}

/** The choice of a walk, and further steps as far as there is room for them. */
function greedy(problem, { picks, pins, count, room }) {
  const filled = [...picks];
  for (let at = count; at < problem.steps.length && room > 0; at++) {
    const { group, from, to, bytes } = problem.steps[at];
    if (bytes <= room && pins[group] < 0 && filled[group] === from) {
      filled[group] = to;
      room -= bytes;
    }
  }
  return totals(problem, filled);
}

/** The best choice within a budget, or one very near it, with its `price` of a byte and the `bound` on all losses.
    `known` are choices that may be better; `quick` answers while a slider moves. Where nothing fits, the smallest, with
    `fits` off. */
function solve(problem, budget, pins, known = [], quick = false) {
  const root = relax(problem, budget, pins);
  if (!root) return { ...smallest(problem, pins), fits: false, price: 0, bound: Infinity };
  let best = greedy(problem, root);
  const better = (other) => { if (other.loss < best.loss) best = other; };
  known.filter((picks) => picks.every((pick, g) => pins[g] < 0 || pick === pins[g]))
    .map((picks) => totals(problem, picks)).filter((other) => other.bytes <= budget).forEach(better);
  better(fill(problem, root, best));
  const answer = () => ({ ...best, fits: true, price: root.price, bound: Math.min(root.bound, best.loss) });
  if (quick) return answer();
  // what is left is the matter of few large groups: try their options one by one, where the bound is lowest
  const open = [root];
  for (let n = 0; n < NODES && open.length; n++) {
    const node = open.splice(open.reduce((a, _, b) => (open[b].bound < open[a].bound ? b : a), 0), 1)[0];
    if (!node.next || node.bound >= best.loss * (1 - CLOSE)) continue;
    for (const option of problem.kept[node.next.group]) {
      const child = relax(problem, budget, node.pins.with(node.next.group, option));
      if (!child || child.bound >= best.loss * (1 - CLOSE)) continue;
      better(greedy(problem, child));
      open.push(child);
    }
  }
  open.sort((a, b) => a.bound - b.bound);
  for (const node of open.slice(0, FILLED)) better(fill(problem, node, best));
  return answer();
}

/** Use the room beside `base`: exchanges that cost least at the price, tried together, as far as they may beat `best`.
    An exchange's cost is its loss and the price of its bytes, never negative; so is that of room that stays empty. */
function fill({ groups, kept }, base, best) {
  const { pins, price, room, bound } = base;
  let gap = best.loss - bound;
  const near = [];
  if (gap > CLOSE * best.loss) {
    groups.forEach((options, group) => {
      if (pins[group] >= 0) return;
      const here = options[base.picks[group]], moves = [];
      for (const to of kept[group]) {
        const bytes = options[to].bytes - here.bytes, cost = options[to].loss - here.loss + price * bytes;
        if (bytes && cost < gap) moves.push({ group, to, bytes, cost });
      }
      if (moves.length) near.push({ moves, least: Math.min(...moves.map((move) => move.cost)) });
    });
  }
  near.sort((a, b) => a.least - b.least);
  let states = [{ bytes: 0, cost: 0, move: null, before: null }], found = null;
  for (const { moves, least } of near.slice(0, DEPTH)) {
    if (least >= gap) break;
    const more = [];
    for (const before of states) {
      for (const move of moves) {
        const bytes = before.bytes + move.bytes, cost = before.cost + move.cost;
        if (cost < gap) more.push({ bytes, cost, move, before });
      }
    }
    let lowest = Infinity;
    states = states.concat(more).sort((a, b) => a.bytes - b.bytes || a.cost - b.cost).filter((state) => {
      const loss = state.cost - price * state.bytes;
      return loss < lowest && ((lowest = loss), true);
    });
    for (const state of states) {
      const over = state.cost + price * (room - state.bytes);
      if (state.bytes <= room && over < gap) [gap, found] = [over, state];
    }
    states = states.filter((state) => state.cost < gap);
    if (states.length > WIDTH) states = states.sort((a, b) => a.cost - b.cost).slice(0, WIDTH);
  }
  if (!found) return best;
  const picks = [...base.picks];
  for (let state = found; state.move; state = state.before) picks[state.move.group] = state.move.to;
  return totals({ groups }, picks);
}

/** Corners {bytes, loss} of the walk from the smallest choice to the best: the trade of bytes for loss. */
function frontier(problem, pins) {
  const corners = [{ ...smallest(problem, pins) }];
  const free = problem.steps.filter((step) => pins[step.group] < 0);
  let bytes = corners[0].bytes;
  for (const step of free) corners.push({ bytes: (bytes += step.bytes), loss: step.price * step.bytes });
  // summed from the lossless end, so that small losses are not lost in the difference of large ones
  const last = [...corners[0].picks];
  for (const step of free) last[step.group] = step.to;
  let loss = totals(problem, last).loss;
  for (let i = corners.length - 1; i >= 0; i--) {
    const saved = corners[i].loss;
    corners[i] = { bytes: corners[i].bytes, loss };
    loss += saved;
  }
  return corners;
}

/** The nearest options with less and with more loss than `pick`, and what they change. */
function neighbours({ groups, kept }, group, pick) {
  const options = groups[group], here = options[pick];
  const step = (to) => to === undefined ? null
    : { to, bytes: options[to].bytes - here.bytes, loss: options[to].loss - here.loss };
  return {
    better: step(kept[group].find((to) => options[to].loss < here.loss)),
    worse: step(kept[group].findLast((to) => options[to].loss > here.loss)),
  };
}
