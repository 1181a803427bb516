// What the training logged, under the axis of the checkpoints.

const LINES = ["curve", "curve dashed", "curve dotted"];

function training() {
  let rows = [];
  const plot = stacked("training", "Metrics of the training", (k) =>
    rows
      .flatMap(({ lines }) => lines)
      .map(({ curve, points }) => `${metricName(curve)} ${number(lastAt(points, k))}`)
      .join(", "),
  );
  const others = h("p", { class: "note" });
  const { section, refresh } = figure({
    id: "training",
    title: "What the training logged",
    meaning:
      "Metrics of the training at the steps of the checkpoints and between them, read from its own log or stated with the run.",
    method:
      "Values as they were logged; of a long log, means of consecutive values. A logged loss is mostly itself a mean over the steps since the one before. Values before the first checkpoint and after the last are not drawn.",
    body: h("div", {}, plot.outside, others),
    query: () => trainingQuery(shownRun()),
    rows: async () => [
      ["metric", "split", "step", "k", "value"],
      ...shownRun().training.curves.flatMap(({ metric, split, step, k, value }) =>
        step.map((at, n) => [metric, split, at, k[n], value[n]]),
      ),
    ],
    picture: () => plot.svg,
  });

  function draw() {
    const run = shownRun();
    const { curves, others: names } = run.training;
    section.hidden = !curves.length;
    if (section.hidden) return;
    const axis = new Axis(run, state.axis);
    rows = [...new Set(curves.map(({ metric }) => metric))].map((metric) =>
      row(
        metric,
        curves.filter((curve) => curve.metric === metric),
        axis,
      ),
    );
    others.textContent = names.length
      ? `The store has more: ${names.slice(0, 12).join(", ")}${names.length > 12 ? ", …" : ""}.`
      : "";
    plot.draw(run, axis, rows);
  }

  function row(metric, curves, axis) {
    const lines = curves.map((curve) => ({ curve, points: pointsOf(curve, axis) }));
    const kinds = ["", " (dashed)", " (dotted)"];
    const splits = lines.map(({ curve }, n) => `${curve.split ?? "–"}${kinds[n % LINES.length]}`);
    const title = curves.some(({ split }) => split !== null) ? `${metric}: ${splits.join(", ")}` : metric;
    return {
      title,
      lines,
      ends: endsOf(lines.flatMap(({ points }) => points.map(({ value }) => value))),
      content: (x, y) => lines.flatMap(({ points }, n) => curve(points, x, y, LINES[n % LINES.length])),
    };
  }

  onChange((names) => {
    if (names.has("run") || names.has("axis")) {
      draw();
      refresh();
    } else if (!section.hidden && (names.has("i") || names.has("j"))) plot.point();
  });
  plot.onWidth(draw);
  draw();
  return section;
}

const metricName = ({ metric, split }) => (split === null ? metric : `${split} ${metric}`);

/** The points of a curve that lie among the checkpoints, with the place k of each among these. */
function pointsOf({ step, k, value }, axis) {
  const starts = new Set(borders(axis.run));
  return value.flatMap((each, n) => {
    const among = k[n] ?? amongCheckpoints(axis.run, step[n]);
    if (among === null) return [];
    const before = Math.min(Math.floor(among), axis.count - 1);
    const next = Math.min(before + 1, axis.count - 1);
    const at = axis.points[before] + (among - before) * (axis.points[next] - axis.points[before]);
    return [{ at, among, value: each ?? NaN, begins: starts.has(k[n]) }];
  });
}

/** Where a step lies among the checkpoints: 2.5 is half-way from checkpoint 2 to 3. Null outside of them. */
function amongCheckpoints({ checkpoint: { step } }, at) {
  const rising = step.every((each, k) => each !== null && (k === 0 || each > step[k - 1]));
  if (!rising || at === null || at < step[0] || at > step.at(-1)) return null;
  const next = step.findIndex((each) => each >= at);
  return step[next] === at ? next : next - (step[next] - at) / (step[next] - step[next - 1]);
}

/** The last value at or before a checkpoint. */
const lastAt = (points, k) => points.filter(({ among }) => among <= k).at(-1)?.value ?? NaN;
