// Several runs beside each other: maps, indicators with differences, an indicator against a setting.

/** The group of another run that is called as the one shown. */
const counterpart = (run) =>
  run.groups.find(
    (group) => groupName(group) === groupName(shownGroup()) && group.scope === shownGroup().scope,
  ) ?? null;

function severalRuns() {
  const body = h("div", {});
  let drawing = 0;
  const rows = () => {
    const groups = CONTENT.runs.map(counterpart);
    const header = ["indicator", ...CONTENT.runs.map((run) => run.run)];
    return [
      header,
      ...CONTENT.indicators.map((name) => [name, ...groups.map((group) => group && indicatorValue(group, name))]),
    ];
  };
  const { section, controls, refresh } = figure({
    id: "runs",
    title: "Runs side by side",
    meaning:
      "The same weights of every run, on one colour scale; below each value its difference to the first run.",
    method:
      "Maps depend on the schedule of the checkpoints: compare runs that were saved at the same steps. docs/method.md, section 2.",
    body,
    query: () => runsQuery(shownGroup()),
    rows: async () => rows(),
    picture: () => tablePicture(body.querySelector("table")),
    table: false,
  });

  function show() {
    const groups = CONTENT.runs.map(counterpart);
    const size = Math.max(110, Math.min(220, (body.clientWidth - 380) / CONTENT.runs.length - 24));
    const canvases = groups.map((group) =>
      group?.maps[state.kind] ? h("canvas", { role: "img", "aria-label": "Trajectory map" }) : null,
    );
    const settings = settingNames();
    controls.replaceChildren(
      ...(settings.length
        ? [
            select(
              "Indicator",
              CONTENT.indicators.map((name) => [name, name]),
              state.indicator,
              (indicator) => change({ indicator }),
            ),
          ]
        : []),
    );
    body.replaceChildren(
      h(
        "div",
        { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Table of runs" },
        h(
          "table",
          { class: "keys" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col" }, groupName(shownGroup())),
              ...CONTENT.runs.map((run) => h("th", { scope: "col" }, run.run)),
            ),
          ),
          h(
            "tbody",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "row" }, `cosines of ${state.kind}`),
              ...canvases.map((canvas) => h("td", {}, canvas ?? "–")),
            ),
            ...rows()
              .slice(1)
              .filter(([, ...values]) => values.some((value) => value !== null))
              .map(([name, ...values]) =>
                h(
                  "tr",
                  {},
                  h(
                    "th",
                    { scope: "row" },
                    h("span", { class: "name" }, name),
                    h("small", {}, CONTENT.meanings[name]),
                  ),
                  ...values.map((value, at) =>
                    h(
                      "td",
                      {},
                      number(value),
                      at && value !== null && values[0] !== null
                        ? h("small", {}, signed(value - values[0]))
                        : null,
                    ),
                  ),
                ),
              ),
          ),
        ),
      ),
      ...settings.map(scatter).filter((svg) => svg !== null),
    );
    drawMaps(groups, canvases, size);
    refresh();
  }

  async function drawMaps(groups, canvases, size) {
    drawing += 1;
    const turn = drawing;
    const { kind } = state;
    const packed = groups.flatMap((group) => group?.maps[kind] ?? []);
    for (const [at, canvas] of canvases.entries()) {
      if (!canvas) continue;
      const map = await readMap(groups[at], kind);
      if (turn !== drawing) return;
      const width = Math.round(size * Math.max(1, window.devicePixelRatio || 1));
      paint(canvas, map, scaleOf(kind, map, packed, true), width, evenPlaces(map.count, width));
      canvas.style.setProperty("width", `${size}px`);
    }
  }

  onChange((names) => ["run", "group", "kind", "indicator"].some((name) => names.has(name)) && show());
  let width = 0;
  new ResizeObserver(() => {
    if (body.clientWidth === width) return;
    width = body.clientWidth;
    show();
  }).observe(body);
  return section;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${number(Math.abs(value), 3)}`;

const isSeed = (name) => /(^|[._])seed$/.test(name);

/** Settings in which the runs differ, but for their seeds. */
function differing() {
  const all = CONTENT.runs.map((run) => run.settings ?? {});
  const names = new Set(all.flatMap((settings) => Object.keys(settings)));
  return [...names].filter(
    (name) => !isSeed(name) && new Set(all.map((settings) => JSON.stringify(settings[name]))).size > 1,
  );
}

/** Those that are numbers in every run. */
const settingNames = () =>
  differing().filter((name) => CONTENT.runs.every((run) => typeof run.settings?.[name] === "number"));

/**
 * An indicator against a setting: means over seeds, and twice their standard error. Lines join runs that
 * are otherwise alike.
 */
function scatter(setting) {
  const others = differing().filter((name) => name !== setting);
  const series = new Map();
  for (const run of CONTENT.runs) {
    const group = counterpart(run);
    const value = group && indicatorValue(group, state.indicator);
    if (value === null) continue;
    const label = others.map((name) => `${name} ${run.settings[name] ?? "–"}`).join(", ");
    const points = series.get(label) ?? new Map();
    const at = run.settings[setting];
    series.set(label, points.set(at, [...(points.get(at) ?? []), value]));
  }
  const lines = [...series].map(([label, points]) => ({
    label,
    means: [...points].sort(([a], [b]) => a - b).map(([at, values]) => ({ at, ...meanOf(values) })),
  }));
  const means = lines.flatMap((line) => line.means);
  if (!means.length) return null;
  const [width, height, left] = [420, 220 + 16 * (others.length ? lines.length : 0), 56];
  const places = means.map(({ at }) => at);
  const place = (at) => (Math.min(...places) > 0 ? Math.log(at) : at);
  const [first, last] = [place(Math.min(...places)), place(Math.max(...places))];
  const low = Math.min(...means.map(({ mean, reach }) => mean - reach));
  const high = Math.max(...means.map(({ mean, reach }) => mean + reach));
  const x = (at) => left + 16 + ((width - left - 40) * (place(at) - first)) / (last - first || 1);
  const y = (value) => 28 + (150 * (high - value)) / (high - low || 1);
  return s(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      width,
      height,
      role: "img",
      "aria-label": `${state.indicator} against ${setting}`,
      class: "scatter",
    },
    s("text", { x: left, y: 14, class: "title" }, `${state.indicator} against ${setting}`),
    ...[low, high].map((value) =>
      s("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end", class: "tick" }, number(value, 3)),
    ),
    ...[...new Set(places)].map((at) =>
      s("text", { x: x(at), y: 200, "text-anchor": "middle", class: "tick" }, number(at, 3)),
    ),
    ...lines.flatMap(({ label, means: each }, n) => [
      ...curve(
        each.map(({ at, mean }) => ({ at, value: mean })),
        x,
        y,
        LINES[n % LINES.length],
      ),
      ...each.flatMap(({ at, mean, reach }) => [
        s("line", { x1: x(at), x2: x(at), y1: y(mean - reach), y2: y(mean + reach), class: "error" }),
        s("circle", { cx: x(at), cy: y(mean), r: 4, class: "value" }, s("title", {}, `${label} ${number(mean)}`.trim())),
      ]),
      ...(others.length ? legend(label, LINES[n % LINES.length], left, 220 + 16 * n) : []),
    ]),
  );
}

const legend = (label, kind, x, y) => [
  s("path", { d: `M${x} ${y - 4}h28`, class: kind }),
  s("text", { x: x + 34, y, class: "tick" }, label),
];

/** The mean of some values, and twice its standard error: 0 of a single one. */
function meanOf(values) {
  const mean = values.reduce((a, b) => a + b) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, reach: values.length > 1 ? 2 * Math.sqrt(squares / (values.length - 1) / values.length) : 0 };
}
