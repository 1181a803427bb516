// Curves over the checkpoints of the group that is shown; they share the map's cursor and its axis.

const CURVES = [
  { name: "norm", title: "norm ‖θ‖" },
  { name: "displacement", title: "displacement from the first" },
  { name: "increment", title: "increment" },
  { name: "relative_increment", title: "increment over the norm before it" },
  { name: "update_angle_deg", title: "update angle, degrees" },
  { name: "path_length", title: "path length" },
];
const ABOVE = 12; // for the findings' marks
const ROW = { height: 104, top: 24, bottom: 8, left: 52, right: 12 };

function curves() {
  const svg = s("svg", { "aria-hidden": "true" });
  const output = h("output", { id: "curves-readout", "aria-live": "polite" });
  const surface = h(
    "div",
    {
      class: "surface",
      tabindex: 0,
      role: "application",
      "aria-label": "Curves; left and right arrow keys move along the checkpoints",
      "aria-describedby": "curves-readout",
      onkeydown: onKey,
      onpointermove: onMove,
      onpointerdown: onMove,
    },
    svg,
  );
  const outside = h("div", { class: "curves" }, output, surface);
  const marks = s("g", { class: "marks" });
  let series = null;
  let axis = null;
  let width = 0;

  const { section, refresh } = figure({
    id: "curves",
    title: "Along the path",
    meaning:
      "Lengths and angles at each checkpoint. An update angle of 90° is a step at right angles to the one before; inside the shaded area, rounding of the stored weights alone could make the angle.",
    method:
      "norm ‖θk‖; displacement ‖θk − θ0‖; increment ‖θk − θk−1‖; path length: the sum of the increments; update angle ∠(θk − θk−1, θk+1 − θk), whose noise floor follows from the rounding of the stored number format. Triangles mark findings. docs/method.md, section 2.",
    body: outside,
    query: () => curvesQuery(shownRun(), shownGroup()),
    rows: async () => {
      const { step } = shownRun().checkpoint;
      const read = await readCurves(shownGroup());
      const names = [...CURVES.map(({ name }) => name), "noise_floor_deg"];
      const short = (value) => (Number.isNaN(value) ? null : Number(value.toPrecision(7)));
      return [
        ["k", "step", ...names],
        ...step.map((at, k) => [k, at, ...names.map((name) => short(read[name][k]))]),
      ];
    },
    picture: () => svg,
  });

  async function draw() {
    const run = shownRun();
    const group = shownGroup();
    const read = await readCurves(group);
    if (group !== shownGroup()) return;
    series = read;
    axis = new Axis(run, state.axis);
    width = Math.max(240, outside.clientWidth);
    const height = ABOVE + ROW.height * CURVES.length + 34;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    surface.style.setProperty("width", `${width}px`);
    surface.style.setProperty("height", `${height}px`);
    svg.replaceChildren(
      ...CURVES.map(row),
      bottom(),
      s("g", {}, ...findingMarks(run, axis, (at) => `M${x(at) - 4} 1h8l-4 7z`)),
      marks,
    );
    point();
  }

  const x = (share) => ROW.left + share * (width - ROW.left - ROW.right);

  function row({ name, title }, at) {
    const top = ABOVE + at * ROW.height + ROW.top;
    const inner = ROW.height - ROW.top - ROW.bottom;
    const angle = name === "update_angle_deg";
    const known = series[name].filter((value) => !Number.isNaN(value));
    const high = known.length ? known.reduce((a, b) => Math.max(a, b)) : 1;
    const low = known.length ? known.reduce((a, b) => Math.min(a, b)) : 0;
    const [from, to] = angle
      ? [0, Math.max(100, high)]
      : [low, high > low ? high : low + (Math.abs(low) || 1)];
    const y = (value) => top + inner - (inner * (value - from)) / (to - from);
    const group = s(
      "g",
      {},
      s("text", { x: ROW.left, y: top - 7, class: "title" }, title),
      s("line", { x1: x(0), x2: x(1), y1: top + inner, y2: top + inner, class: "rail" }),
    );
    for (const value of angle ? [0, 90] : [from, to])
      group.append(
        s(
          "text",
          { x: ROW.left - 6, y: y(value) + 4, "text-anchor": "end", class: "tick" },
          number(value, 3),
        ),
      );
    if (angle)
      group.append(floor(y), s("line", { x1: x(0), x2: x(1), y1: y(90), y2: y(90), class: "right-angle" }));
    group.append(s("path", { d: line(series[name], y), class: "curve" }), ...alone(series[name], y));
    return group;
  }

  function line(values, y) {
    let drawn = false;
    let path = "";
    const starts = new Set(borders(shownRun()));
    values.forEach((value, k) => {
      if (starts.has(k)) drawn = false;
      if (!Number.isNaN(value))
        path += `${drawn ? "L" : "M"}${x(axis.points[k]).toFixed(1)} ${y(value).toFixed(1)}`;
      drawn = !Number.isNaN(value);
    });
    return path;
  }

  /** A point for each value that has no neighbour, of which no line could be seen. */
  function alone(values, y) {
    return [...values.keys()]
      .filter(
        (k) =>
          !Number.isNaN(values[k]) &&
          !(values[k - 1] >= 0 || values[k - 1] < 0) &&
          !(values[k + 1] >= 0 || values[k + 1] < 0),
      )
      .map((k) => s("circle", { cx: x(axis.points[k]), cy: y(values[k]), r: 2, class: "value" }));
  }

  /** The area of angles that rounding alone could make. */
  function floor(y) {
    let path = "";
    series.noise_floor_deg.forEach((value, k) => {
      if (value > 0)
        path += `M${x(axis.edges[k]).toFixed(1)} ${y(0).toFixed(1)}V${y(value).toFixed(1)}H${x(axis.edges[k + 1]).toFixed(1)}V${y(0).toFixed(1)}z`;
    });
    return s("path", { d: path, class: "floor" });
  }

  function bottom() {
    const y = ABOVE + CURVES.length * ROW.height + 12;
    const group = s("g", { class: "ticks" });
    for (const at of axis.ticks(width - ROW.left - ROW.right))
      group.append(s("text", { x: x(axis.points[at]), y, "text-anchor": "middle" }, axis.label(at)));
    group.append(s("text", { x: x(1), y: y + 15, "text-anchor": "end" }, "step →"));
    return group;
  }

  function point() {
    const { i, j } = state;
    const height = ABOVE + CURVES.length * ROW.height;
    marks.replaceChildren();
    for (const [k, kind] of [
      [i, "row"],
      [j, "column"],
    ])
      if (k >= 0)
        marks.append(
          s("line", {
            x1: x(axis.points[k]),
            x2: x(axis.points[k]),
            y1: 10,
            y2: height,
            class: `cursor ${kind}`,
          }),
        );
    if (j < 0) output.textContent = "Point at the curves, or focus them and press the arrow keys.";
    else
      output.textContent =
        `${called(shownRun(), j)}: ` +
        CURVES.map(
          ({ name }) =>
            `${name.replaceAll("_", " ").replace(" deg", "")} ${number(series[name][j])}${name.endsWith("_deg") && !Number.isNaN(series[name][j]) ? "°" : ""}`,
        ).join(", ");
  }

  function onMove(event) {
    if (!axis) return;
    const share =
      (event.clientX - surface.getBoundingClientRect().left - ROW.left) / (width - ROW.left - ROW.right);
    if (share >= 0 && share <= 1) change({ j: axis.row(share), i: state.i < 0 ? axis.row(share) : state.i });
  }

  function onKey(event) {
    const by = {
      ArrowLeft: -1,
      ArrowRight: 1,
      PageUp: -10,
      PageDown: 10,
      Home: -axis.count,
      End: axis.count,
    }[event.key];
    if (!by) return;
    event.preventDefault();
    const j = Math.min(axis.count - 1, Math.max(0, state.j < 0 ? 0 : state.j + by));
    change({ j, i: state.i < 0 ? j : state.i });
  }

  onChange((names) => {
    if (["run", "group", "axis"].some((name) => names.has(name))) {
      draw();
      refresh();
    } else if (series && (names.has("i") || names.has("j"))) point();
  });
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  return section;
}

/** All curves of a group, and the noise floor; missing ones are undefined throughout. */
async function readCurves(group) {
  const names = ["norm", "displacement", "increment", "path_length", "update_angle_deg", "noise_floor_deg"];
  const read = Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await unpack(group.curves[name])])),
  );
  let before = NaN; // the norm of the last checkpoint that has one
  read.relative_increment = read.increment.map((value, k) => {
    const share = before ? value / before : NaN;
    if (!Number.isNaN(read.norm[k])) before = read.norm[k];
    return share;
  });
  return read;
}
