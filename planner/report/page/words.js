/* Numbers in words, colours of bits per weight, and elements with text in them; text is never read as HTML. */

const UNITS = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];
const BITS = [1.5, 2, 3, 4, 5, 6.5, 8.5, 16]; // where the colours of the scale stand, evenly spaced
const RAMPS = { // lightness falls, or rises, all the way: it can be read without seeing hues
  light: ["#f6dcae", "#e3d79a", "#b2d2a0", "#77bc9f", "#429ea0", "#2f7898", "#2f5086", "#1e2853"],
  dark: ["#40345a", "#3d4b78", "#34698d", "#2f8797", "#48a694", "#80c491", "#c1dc9b", "#f7f0c4"],
};

/** Bytes in words, as planner writes them. */
function inBytes(bytes, digits = 2) {
  const unit = UNITS.find(([, size]) => Math.abs(bytes) >= size);
  return unit ? `${(bytes / unit[1]).toFixed(digits)} ${unit[0]}` : `${bytes} bytes`;
}

/** Bytes with a sign: a difference. */
function signedBytes(bytes) {
  return `${bytes < 0 ? "−" : "+"}${inBytes(Math.abs(bytes))}`;
}

/** A number to so many significant digits, without an exponent unless it is tiny. */
function short(value, digits = 4) {
  if (value === 0) return "0";
  return (Math.abs(value) < 1e-4 ? value.toExponential(digits - 1) : Number(value.toPrecision(digits)).toString()).replace("-", "−");
}

/** A count in words: 27.4 billion. */
function inWords(count) {
  const [name, size] = [["trillion", 1e12], ["billion", 1e9], ["million", 1e6]].find(([, one]) => count >= one) ?? ["", 1];
  return `${short(count / size, 3)} ${name}`.trim();
}

/** A share in percent. */
function percent(share, digits = 1) {
  return share > 0 && share < 0.0005 ? "<0.1 %" : `${(100 * share).toFixed(digits)} %`;
}

/** Bytes of what a visitor wrote: `23.85GB`, `22GiB`, or a number, which has the unit of `near` if it is small. */
function parseSize(text, near) {
  const found = /^\s*(\d+(?:[.,]\d*)?|[.,]\d+)\s*(?:([kmgt]?)(i?)b?)\s*$/i.exec(text);
  if (!found) return undefined;
  const value = Number(found[1].replace(",", ".")), power = " kmgt".indexOf(found[2].toLowerCase() || " ");
  if (power > 0) return Math.round(value * (found[3] ? 1024 : 1000) ** power);
  return Math.round(value * (value < 1000 ? (UNITS.find(([, size]) => near >= size)?.[1] ?? 1) : 1));
}

/** Where on the scale of colours a number of bits is, from 0 to 1. */
function onScale(bpw) {
  const at = BITS.findIndex((bits) => bpw < bits);
  if (at <= 0) return at < 0 ? 1 : 0;
  const part = Math.log(bpw / BITS[at - 1]) / Math.log(BITS[at] / BITS[at - 1]);
  return (at - 1 + part) / (BITS.length - 1);
}

/** The colour of a number of bits, and that of text upon it. */
function colours(bpw, theme) {
  const at = onScale(bpw) * (BITS.length - 1), low = Math.min(Math.floor(at), BITS.length - 2);
  const [from, to] = [RAMPS[theme][low], RAMPS[theme][low + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const mixed = from.map((part, i) => Math.round(part + (to[i] - part) * (at - low)));
  const [r, g, b] = mixed.map((part) => ((part / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return { ground: `rgb(${mixed.join(" ")})`, ink: luminance > 0.19 ? "#16130e" : "#ffffff" };
}

/** An element with attributes (`on…` are listeners) and children: elements, or what becomes text. */
function element(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter(shown));
  return made;
}

const shown = (child) => child !== undefined && child !== null && child !== false;
const at = (id) => document.getElementById(id);
const say = (id, ...children) => at(id).replaceChildren(...children.filter(shown));
