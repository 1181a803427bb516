// Several runs beside each other: maps, and indicators with differences.

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
      ...CONTENT.indicators.map((name) => [
        name,
        ...groups.map((group) => group && indicatorValue(group, name)),
      ]),
    ];
  };
  const { section, refresh } = figure({
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

  onChange((names) => ["run", "group", "kind"].some((name) => names.has(name)) && show());
  let width = 0;
  new ResizeObserver(() => {
    if (body.clientWidth === width) return;
    width = body.clientWidth;
    show();
  }).observe(body);
  return section;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${number(Math.abs(value), 3)}`;
