/* The page's data, unpacked: tensors with their options, and the groups that the solver sees. */

/** Unpack the data of a page (planner/report/page/data.py). */
function unpack(data) {
  const numbers = new Float64Array(Uint8Array.from(atob(data.numbers), (c) => c.charCodeAt(0)).buffer);
  const sizes = data.bytes.map((pairs) => new Map(pairs));
  const aligned = (bytes) => Math.ceil(bytes / data.alignment) * data.alignment;
  const groups = data.choices.map((set) => data.sets[set].map((format) => ({ format, bytes: 0, loss: 0 })));
  const members = groups.map(() => []);
  let read = 0, fixed = 0;
  const tensors = data.names.map((name, index) => {
    const shape = data.shapes[data.shapeOf[index]], group = data.groupOf[index];
    const tensor = {
      name, index, shape, group, block: data.blockOf[index], role: data.roles[data.roleOf[index]],
      elements: shape.reduce((a, b) => a * b, 1),
    };
    if (group < 0) {
      const [format, bytes, why] = data.fixed[fixed++];
      return { ...tensor, format, bytes, why };
    }
    members[group].push(tensor);
    tensor.options = groups[group].map((option) => {
      const bytes = sizes[data.shapeOf[index]].get(option.format), err = numbers[read++], loss = numbers[read++];
      option.bytes += aligned(bytes);
      option.loss += loss;
      return { format: option.format, bytes, err, loss };
    });
    return tensor;
  });
  return { ...prepare(groups), data, tensors, members, pinned: data.pins, overhead: data.overhead };
}

/** The option that a tensor has in a choice. */
function chosen(tensor, picks) {
  return tensor.group < 0 ? { format: tensor.format, bytes: tensor.bytes, err: 0, loss: 0 }
    : tensor.options[picks[tensor.group]];
}

/** Choices of one type for all, or the next larger where rows do not fit its blocks: what a mix is measured against. */
function uniform({ groups, data, overhead }) {
  const own = (options, format) => options.findIndex((option) => option.format === format);
  return data.formats.map(({ name }, format) => {
    const can = groups.filter((options) => own(options, format) >= 0).length;
    if (2 * can < groups.length) return { loss: 0 };
    const { bytes, loss } = totals({ groups }, groups.map((options) => {
      const larger = options.map((option) => option.format).filter((other) => other >= format);
      return own(options, larger.length ? Math.min(...larger) : Math.max(...options.map((option) => option.format)));
    }));
    return { name, size: overhead + bytes, loss, all: true };
  }).filter((mark) => mark.loss > 0);
}

/** The divergence expected of a loss, and between what two times in three it lies (planner/sensitivity/link.py). */
function predict(link, loss) {
  const [k, most, floor] = link.parameters.map(Math.exp);
  const bent = 1 + (k * loss) / most, kld = floor + (k * loss) / bent;
  const slope = [(k * loss) / bent ** 2, ((k * loss) / bent) ** 2 / most, floor].map((part) => part / kld);
  const variance = slope.reduce((sum, a, i) => sum + slope.reduce((s, b, j) => s + a * b * link.covariance[i][j], 0), 0);
  const spread = Math.exp(Math.sqrt(variance + link.scatter ** 2));
  return { kld, low: kld / spread, high: kld * spread };
}
