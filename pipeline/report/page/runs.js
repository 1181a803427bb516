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
      ...settings.map(scatter),
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

/** Numeric settings in which the runs differ, but for their seeds. */
function settingNames() {
  const all = CONTENT.runs.map((run) => run.settings ?? {});
  const names = Object.keys(all[0] ?? {}).filter(
    (name) => name !== "seed" && all.every((settings) => typeof settings[name] === "number"),
  );
  return names.filter((name) => new Set(all.map((settings) => settings[name])).size > 1);
}

/** An indicator against a setting: means over runs with equal settings, and twice their standard error. */
function scatter(setting) {
  const points = new Map();
  for (const run of CONTENT.runs) {
    const group = counterpart(run);
    const value = group && indicatorValue(group, state.indicator);
    const at = run.settings[setting];
    if (value !== null) points.set(at, [...(points.get(at) ?? []), value]);
  }
  const means = [...points]
    .sort(([a], [b]) => a - b)
    .map(([at, values]) => {
      const mean = values.reduce((a, b) => a + b) / values.length;
      const spread =
        values.length > 1
          ? Math.sqrt(
              values.reduce((sum, value) => sum + (value - mean) ** 2, 0) /
                (values.length - 1) /
                values.length,
            )
          : 0;
      return { at, mean, reach: 2 * spread };
    });
  const [width, height, left] = [420, 220, 56];
  const positive = means.every(({ at }) => at > 0);
  const place = (at) => (positive ? Math.log(at) : at);
  const [first, last] = [place(means[0].at), place(means.at(-1).at)];
  const low = Math.min(...means.map(({ mean, reach }) => mean - reach));
  const high = Math.max(...means.map(({ mean, reach }) => mean + reach));
  const x = (at) => left + 16 + ((width - left - 40) * (place(at) - first)) / (last - first || 1);
  const y = (value) => 28 + ((height - 70) * (high - value)) / (high - low || 1);
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
    ...means.flatMap(({ at, mean, reach }) => [
      s("line", { x1: x(at), x2: x(at), y1: y(mean - reach), y2: y(mean + reach), class: "error" }),
      s("circle", { cx: x(at), cy: y(mean), r: 4, class: "value" }),
      s("text", { x: x(at), y: height - 20, "text-anchor": "middle", class: "tick" }, number(at, 3)),
    ]),
  );
}
