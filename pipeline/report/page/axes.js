// Where checkpoints lie along an axis: by number, by step, or by the logarithm of the step.

class Axis {
  /** Of the checkpoints 0, every, 2 every, … of a run. */
  constructor(run, mode, every = 1) {
    const all = times(run);
    const count = Math.ceil(run.checkpoint.name.length / every);
    const start = all[0];
    const place =
      mode === "index" ? (k) => k : mode === "step" ? (k) => all[k] : (k) => Math.log10(1 + all[k] - start);
    const points = Array.from({ length: count }, (_, at) => place(at * every));
    // each checkpoint reaches half-way to its neighbours, at the ends as far as on the other side
    const between = points.slice(1).map((point, at) => (point + points[at]) / 2);
    const first = count > 1 ? 2 * points[0] - between[0] : points[0] - 0.5;
    const last = count > 1 ? 2 * points[count - 1] - between[count - 2] : points[0] + 0.5;
    const scaled = (value) => (value - first) / (last - first || 1);
    Object.assign(this, {
      run,
      mode,
      every,
      count,
      points: points.map(scaled),
      edges: [first, ...between, last].map(scaled),
    });
  }

  /** The row at a share of the axis. */
  row(share) {
    let [low, high] = [0, this.count - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.edges[middle] <= share) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** The rows of `width` pixels. */
  rows(width) {
    return Int32Array.from({ length: width }, (_, at) => this.row((at + 0.5) / width));
  }

  /** Rows whose step is written at the axis: far enough apart for `length` pixels. */
  ticks(length) {
    const apart = 46 / length;
    const shown = [];
    for (const row of this.mode === "index" ? this.evenRows(length) : this.points.keys())
      if (!shown.length || this.points[row] - this.points[shown.at(-1)] >= apart) shown.push(row);
    return shown;
  }

  evenRows(length) {
    const step = Math.max(1, Math.ceil(this.count / Math.max(2, Math.floor(length / 60))));
    return Array.from({ length: Math.ceil(this.count / step) }, (_, at) => at * step);
  }

  /** What is written at a row's tick. */
  label(row) {
    const step = this.run.checkpoint.step[row * this.every];
    return step === null ? `#${row * this.every}` : shortStep(step);
  }
}

/** 143000 as 143k. */
function shortStep(step) {
  for (const [size, letter] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ])
    if (Math.abs(step) >= 10 * size || (Math.abs(step) >= size && step % (size / 10) === 0))
      return `${Number((step / size).toPrecision(4))}${letter}`;
  return String(step);
}

/** Small marks of the findings about single checkpoints: at their places along a line. */
function findingMarks(run, axis, place) {
  const seen = new Set();
  return run.findings.flatMap((finding) => {
    if (finding.k === null || seen.has(finding.k)) return [];
    seen.add(finding.k);
    const at = axis.points[Math.min(axis.count - 1, Math.floor(finding.k / axis.every))];
    return [
      s(
        "path",
        { d: place(at), class: `finding ${finding.severity}` },
        s("title", {}, `${finding.kind}: ${finding.message}`),
      ),
    ];
  });
}
