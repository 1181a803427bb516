// Figures of the windows that slide along the path, each at its last checkpoint, beside a random walk's.

/** The group whose windows are shown: the chosen one, or the first that the page has them of. */
const withWindows = () =>
  shownGroup().windows ? shownGroup() : (shownRun().groups.find((group) => group.windows) ?? null);

function windows() {
  let series = null;
  let axis = null;
  const about = h("p", { class: "meaning" });
  const plot = stacked("windows", "Windows along the path", (k) => {
    const at = Math.floor(k / series.every);
    return Object.entries(series.read)
      .map(([name, { value, null_value }]) => `${name} ${number(value[at])} (walk ${number(null_value[at], 2)})`)
      .join(", ");
  });
  const { section, refresh } = figure({
    id: "windows",
    title: "Windows along the path",
    meaning:
      "Each point is of the few checkpoints that end there, as a path of their own; grey, a random walk with the same steps. They compare with each other and with their own walk, not with figures of the whole run, which depend on how many checkpoints there are.",
    method:
      "Indicators of the view windows at the last checkpoint of each, whose null_value is that of its own steps. After a change (vertical lines) the windows that reach back over it are of both sides. docs/method-2.md, section 5.4.",
    body: h("div", {}, about, plot.outside),
    query: () => (withWindows() ? windowsQuery(shownRun(), withWindows()) : ""),
    rows: async () => {
      const group = withWindows();
      const { every, read } = group ? await readWindows(group) : { every: 1, read: {} };
      const { step } = shownRun().checkpoint;
      const short = (value) => (Number.isNaN(value) ? null : Number(value.toPrecision(5)));
      const names = Object.keys(read).sort();
      return [
        ["k_last", "step_last", "indicator", "value", "null_value"],
        ...step
          .flatMap((at, k) => (k % every ? [] : names.map((name) => [k, at, name, ...both(read[name], k / every)])))
          .filter(([, , , value]) => !Number.isNaN(value))
          .map(([k, at, name, ...values]) => [k, at, name, ...values.map(short)]),
      ];
    },
    picture: () => plot.svg,
  });
  const both = ({ value, null_value }, at) => [value[at], null_value[at]];

  async function draw() {
    const group = withWindows();
    section.hidden = !group;
    if (!group) return;
    const read = await readWindows(group);
    if (group !== withWindows()) return;
    series = read;
    const run = shownRun();
    const [width, ...others] = run.widths;
    about.textContent = `Windows of ${width} checkpoints, ${groupName(group)}.${others.length ? ` The store has those of ${others.join(" and ")}, too.` : ""}`;
    axis = new Axis(run, state.axis);
    plot.draw(run, axis, Object.keys(read.read).map(row));
  }

  function row(name) {
    const { value, null_value } = series.read[name];
    const starts = new Set(borders(shownRun()));
    const points = (values) =>
      Array.from(values, (each, at) => {
        const k = at * series.every;
        return { at: axis.points[k], value: each, begins: starts.has(k) };
      });
    return {
      title: name,
      ends: endsOf([...value, ...null_value]),
      content: (x, y) => [
        ...curve(points(null_value), x, y, "curve walk-path"),
        ...curve(points(value), x, y),
      ],
    };
  }

  onChange((names) => {
    if (["run", "group", "axis"].some((name) => names.has(name))) {
      draw();
      refresh();
    } else if (series && !section.hidden && (names.has("i") || names.has("j"))) plot.point();
  });
  plot.onWidth(draw);
  draw();
  return section;
}

/** What a group has of windows, by indicator; they end at the checkpoints 0, every, 2 every, … */
async function readWindows(group) {
  const entries = Object.entries(group.windows).map(async ([name, { value, null_value }]) => [
    name,
    { value: await unpack(value), null_value: await unpack(null_value) },
  ]);
  return { every: group.maps.every, read: Object.fromEntries(await Promise.all(entries)) };
}
