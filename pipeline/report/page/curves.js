// Curves over the checkpoints of the group that is shown.

const CURVES = [
  { name: "norm", title: "norm ‖θ‖" },
  { name: "displacement", title: "displacement from the first" },
  { name: "increment", title: "increment" },
  { name: "relative_increment", title: "increment over the norm before it" },
  { name: "update_angle_deg", title: "update angle, degrees" },
  { name: "path_length", title: "path length" },
];

const ANGLE_ERROR = "update_angle_stderr_deg"; // of samples, and of runs that are followed

function curves() {
  let series = null;
  let axis = null;
  const plot = stacked("curves", "Curves", (k) =>
    CURVES.map(
      ({ name }) =>
        `${name.replaceAll("_", " ").replace(" deg", "")} ${number(series[name][k])}${name.endsWith("_deg") && !Number.isNaN(series[name][k]) ? `°${angleError(k)}` : ""}`,
    ).join(", "),
  );

  const angleError = (k) =>
    series[ANGLE_ERROR]?.[k] > 0 ? ` ± ${number(series[ANGLE_ERROR][k], 2)}°` : "";

  const { section, refresh } = figure({
    id: "curves",
    title: "Along the path",
    meaning:
      "Lengths and angles at each checkpoint. An update angle of 90° is a step at right angles to the one before; the shaded area reaches up to what rounding of the stored weights alone makes of a straight path. Vertical lines show where the increments of the whole model become larger or smaller, and where their decay starts.",
    method:
      "norm ‖θk‖; displacement ‖θk − θ0‖; increment ‖θk − θk−1‖; path length: the sum of the increments; update angle ∠(θk − θk−1, θk+1 − θk); its noise floor is the angle of a straight path of the same lengths, rounded to the stored number format. Triangles mark findings. Vertical lines: view phases, and decay_start_step. Bars: 1.96 standard errors of a sample or an estimate. docs/method.md, section 2; docs/method-2.md, sections 5.3 and 5.5.",
    body: plot.outside,
    query: () => curvesQuery(shownRun(), shownGroup()),
    rows: async () => {
      const { step } = shownRun().checkpoint;
      const read = await readCurves(shownGroup());
      const names = [...CURVES.map(({ name }) => name), "noise_floor_deg", ANGLE_ERROR].filter((name) => read[name]);
      const short = (value) => (Number.isNaN(value) ? null : Number(value.toPrecision(7)));
      return [
        ["k", "step", ...names],
        ...step.map((at, k) => [k, at, ...names.map((name) => short(read[name][k]))]),
      ];
    },
    picture: () => plot.svg,
  });

  async function draw() {
    const run = shownRun();
    const group = shownGroup();
    const read = await readCurves(group);
    if (group !== shownGroup()) return;
    series = read;
    axis = new Axis(run, state.axis);
    plot.draw(run, axis, CURVES.map(row));
  }

  function row({ name, title }) {
    const angle = name === "update_angle_deg";
    const values = series[name];
    const starts = new Set(borders(shownRun()));
    const points = Array.from(values, (value, k) => ({
      at: axis.points[k],
      value,
      begins: starts.has(k),
    }));
    if (!angle) return { title, ends: endsOf(values), content: (x, y) => curve(points, x, y) };
    const [, high] = endsOf(values);
    return {
      title,
      ends: [0, Math.max(100, high)],
      ticks: [0, 90],
      content: (x, y) => [
        floor(x, y),
        s("line", { x1: x(0), x2: x(1), y1: y(90), y2: y(90), class: "right-angle" }),
        errors(x, y),
        ...curve(points, x, y),
      ],
    };
  }

  /** 1.96 standard errors of each angle, up and down. */
  function errors(x, y) {
    let path = "";
    series[ANGLE_ERROR]?.forEach((error, k) => {
      const angle = series.update_angle_deg[k];
      const ends = [angle - 1.96 * error, angle + 1.96 * error].map((end) => y(Math.min(180, Math.max(0, end))));
      if (error > 0 && angle >= 0)
        path += `M${x(axis.points[k]).toFixed(1)} ${ends[0].toFixed(1)}V${ends[1].toFixed(1)}`;
    });
    return s("path", { d: path, class: "angle-error" });
  }

  /** The area of angles up to those of a straight path, rounded. */
  function floor(x, y) {
    let path = "";
    series.noise_floor_deg.forEach((value, k) => {
      if (value > 0)
        path += `M${x(axis.edges[k]).toFixed(1)} ${y(0).toFixed(1)}V${y(value).toFixed(1)}H${x(axis.edges[k + 1]).toFixed(1)}V${y(0).toFixed(1)}z`;
    });
    return s("path", { d: path, class: "floor" });
  }

  onChange((names) => {
    if (["run", "group", "axis"].some((name) => names.has(name))) {
      draw();
      refresh();
    } else if (series && (names.has("i") || names.has("j"))) plot.point();
  });
  plot.onWidth(draw);
  return section;
}

/** All curves of a group, and the noise floor; missing ones are undefined throughout. */
async function readCurves(group) {
  const names = ["norm", "displacement", "increment", "path_length", "update_angle_deg", "noise_floor_deg"];
  if (group.curves[ANGLE_ERROR]) names.push(ANGLE_ERROR);
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
