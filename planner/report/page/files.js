/* What a visitor takes along: recipes as planner writes them, and tensor-type files as llama-quantize reads them. */

/** The recipe of an answer, as an object (docs/recipe.schema.json). */
function recipeOf(problem, answer, budget) {
  const { data, tensors } = problem;
  const weights = [new Map(), new Map()]; // of formats: tensors that are left alone, and all others
  const entries = tensors.map((tensor) => {
    const option = chosen(tensor, answer.picks), free = tensor.group >= 0;
    weights[+free].set(option.format, (weights[+free].get(option.format) ?? 0) + tensor.elements);
    const pin = free && answer.pins[tensor.group] >= 0;
    return {
      name: tensor.name, format: data.formats[option.format].name, bytes: option.bytes, shape: tensor.shape,
      err: option.err, loss: option.loss,
      why: free ? (pin ? `pinned: ${tensor.name}=${data.formats[option.format].name}` : "solved") : `left alone: ${tensor.why}`,
    };
  });
  const loss = entries.reduce((sum, entry) => sum + entry.loss, 0);
  return {
    ...data.recipe, budget, size: problem.overhead + answer.bytes,
    bpw: (8 * entries.reduce((sum, entry) => sum + entry.bytes, 0)) / data.elements,
    loss, bound: Math.min(answer.bound, loss), status: "explored",
    file_type: data.formats[mostOf(data, weights[1].size ? weights[1] : weights[0])].fileType, tensors: entries,
  };
}

/** The format that most weights are in; quantized ones go before all others (planner/formats/ggml/file_types.py). */
function mostOf(data, weights) {
  const quantized = [...weights].filter(([format]) => data.formats[format].quantized);
  return (quantized.length ? quantized : [...weights]).reduce((a, b) => (b[1] > a[1] ? b : a))[0];
}

/** A recipe as text, one tensor a line. */
function recipeText({ tensors, ...head }) {
  const lines = tensors.map((tensor) => `    ${JSON.stringify(tensor)}`).join(",\n");
  return `${JSON.stringify(head, null, 2).replace(/\n}$/, "")},\n  "tensors": [\n${lines}\n  ]\n}\n`;
}

/** A `--tensor-type-file`: a pattern a tensor. Whatever its parser would split at, or change, is written by number. */
function typeFile(problem, answer) {
  return problem.tensors.filter((tensor) => tensor.group >= 0).map((tensor) => {
    const bytes = Array.from(new TextEncoder().encode(tensor.name), (byte) => String.fromCharCode(byte));
    const pattern = bytes.map((c) => (
      /[= A-Z]|[^ -~]/.test(c) ? `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`
        : /[\\^$.|?*+()[\]{}]/.test(c) ? `\\${c}` : c)).join("");
    return `^${pattern}$=${problem.data.formats[chosen(tensor, answer.picks).format].name}\n`;
  }).join("");
}

/** A word of a command line, for a POSIX shell. */
function quoted(word) {
  const text = word.replace(/^-/, "./-");
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

/** The commands that make the file of a recipe, by planner and, where it can be told, by llama-quantize. */
function commands(problem, recipe) {
  const { data } = problem, model = quoted(data.recipe.model.path), made = [];
  if (data.exportedTo) made.push(`planner export recipe.json --to ${data.exportedTo}`);
  else made.push(`planner quantize ${model} recipe.json OUT.gguf`);
  if (data.typeFile) {
    const [base, override] = data.formats.find((format) => format.fileType === recipe.file_type).base;
    made.push(["llama-quantize", ...(data.recipe.imatrix ? ["--imatrix", quoted(data.recipe.imatrix.path)] : []),
      "--tensor-type-file recipe.types.txt", ...override, model, "OUT.gguf", base].join(" "));
  }
  return made;
}

/** Hand a text to the browser as a file. */
function download(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
