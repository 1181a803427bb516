// An indicator against the settings in which runs differ: means over seeds with their errors, beside those of
// random walks.

const SHAPES = [
  (x, y) => `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z`,
  (x, y) => `M${x - 3.5} ${y - 3.5}h7v7h-7z`,
  (x, y) => `M${x} ${y - 5}l4.6 8h-9.2z`,
  (x, y) => `M${x} ${y - 5}l5 5l-5 5l-5 -5z`,
];
const CHART = { height: 250, top: 30, bottom: 44, left: 58, right: 14, widest: 560, least: 300 };

function acrossSettings() {
  const { settings, following, combinations, groups } = CONTENT.comparison;
  const svg = s("svg", { role: "img", "aria-label": "An indicator against a setting" });
  const note = h("p", { class: "meaning" });
  const outside = h("div", { class: "components" }, svg, note);
  const { section, controls, refresh } = figure({
    id: "settings",
    title: "Across settings",
    meaning:
      "An indicator of the same weights in all runs, against a setting in which the runs differ: means over seeds. Dotted: random walks with the runs' own step lengths. What differs besides are other lines and charts; settings stand at even distances.",
    method:
      "Mean over seeds, and 1.96 times its standard error, from the scatter over seeds; of few seeds such an interval is too short. Runs of another number of checkpoints are not averaged: indicators depend on it. docs/contract.md, section 6.",
    body: outside,
    query: () => settingsQuery(CONTENT.comparison, shownGroup(), state.indicator),
    rows: async () => [
      [...settings, "seeds", "mean", "stderr", "null_value"],
      ...points().map(({ values, seeds, mean, stderr, walk }) => [
        ...values.map(settingText),
        seeds,
        mean,
        stderr,
        walk,
      ]),
    ],
    picture: () => svg,
  });

  /** The indicator of the weights that are shown, of each combination that has it. */
  function points() {
    const name = groupName(shownGroup());
    const group = groups.find((each) => each.scope === shownGroup().scope && groupName(each) === name);
    const figures = group?.figures[CONTENT.indicators.indexOf(state.indicator)];
    if (!figures) return [];
    const [means, errors, walks, seeds] = figures;
    return combinations.flatMap((values, at) =>
      means[at] === null
        ? []
        : [
            {
              values,
              mean: means[at],
              stderr: errors[at],
              walk: walks[at],
              seeds: seeds[at],
              reach: 1.96 * (errors[at] ?? 0),
            },
          ],
    );
  }

  /** Numbers of the settings that are the axis, and tell lines and charts apart. */
  function roles() {
    const against = Math.max(0, settings.indexOf(state.against));
    const others = [...settings.keys()].filter((at) => at !== against);
    const chosen = settings.indexOf(state.lines);
    const usual = CONTENT.comparison.lines[against];
    const lines = others.includes(chosen) ? chosen : usual === against ? null : usual;
    return { against, lines, charts: others.filter((at) => at !== lines) };
  }

  function showControls({ against, lines }) {
    const others = settings.filter((_, at) => at !== against);
    const named = (names) => names.map((name) => [name, name]);
    controls.replaceChildren(
      select("Indicator", named(CONTENT.indicators), state.indicator, (indicator) => change({ indicator })),
      ...(others.length
        ? [select("Against", named(settings), settings[against], (name) => change({ against: name }))]
        : []),
      ...(others.length > 1
        ? [select("Lines", named(others), settings[lines], (name) => change({ lines: name }))]
        : []),
    );
  }

  let width = 0;
  function draw() {
    width = Math.max(240, outside.clientWidth);
    const chosen = roles();
    showControls(chosen);
    const known = points();
    refresh();
    const restOf = ({ values }) => JSON.stringify(chosen.charts.map((at) => values[at]));
    const placesIn = (rest) =>
      new Set(
        known
          .filter((point) => restOf(point) === rest)
          .map(({ values }) => settingText(values[chosen.against])),
      );
    const charts = [...new Set(known.map(restOf))].filter((rest) => placesIn(rest).size > 1);
    const all = known.filter((point) => charts.includes(restOf(point)));
    note.textContent = noteOf(known, all, settings[chosen.against], following);
    svg.style.setProperty("display", all.length ? "block" : "none");
    if (!all.length) return;
    const valuesOf = (at) =>
      [...new Map(all.map(({ values }) => [settingText(values[at]), values[at]]))]
        .sort(bySize)
        .map(([text]) => text);
    const places = valuesOf(chosen.against);
    const told = chosen.charts.filter((at) => valuesOf(at).length > 1);
    const lines = chosen.lines === null ? [""] : valuesOf(chosen.lines);
    const ends = all.flatMap(({ mean, reach, walk }) => [
      mean - reach,
      mean + reach,
      ...(walk === null ? [] : [walk]),
    ]);
    const [low, high] = endsOf(ends);
    const across = Math.max(1, Math.min(charts.length, Math.floor(width / CHART.least)));
    const side = Math.min(CHART.widest, width / across);
    const rows = Math.ceil(charts.length / across);
    const keys = legendPlaces(
      chosen.lines === null ? [] : lines.map((text) => `${settings[chosen.lines]} ${text}`),
      width,
    );
    const whole = rows * CHART.height + keys.height;
    svg.setAttribute("viewBox", `0 0 ${width} ${whole}`);
    svg.style.setProperty("height", `${whole}px`);
    svg.setAttribute(
      "aria-label",
      `${state.indicator} of ${groupName(shownGroup())} against ${settings[chosen.against]}; the same as numbers below`,
    );
    svg.replaceChildren(
      ...charts.map((rest, n) => {
        const [left, top] = [(n % across) * side, Math.floor(n / across) * CHART.height];
        const x = (place) =>
          left + CHART.left + ((side - CHART.left - CHART.right) * (place + 0.5)) / places.length;
        const y = (value) =>
          top + CHART.top + ((CHART.height - CHART.top - CHART.bottom) * (high - value)) / (high - low);
        const inside = all.filter((point) => restOf(point) === rest);
        const name = told.map((at) => `${settings[at]} ${settingText(inside[0].values[at])}`).join(", ");
        return s(
          "g",
          {},
          s(
            "text",
            { x: left + CHART.left, y: top + 16, class: "title" },
            name || `${state.indicator}, ${groupName(shownGroup())}`,
          ),
          ...frame(x, y, places, low, high, left, side, settings[chosen.against]),
          ...lines.flatMap((text, at) => {
            const shift = (at - (lines.length - 1) / 2) * Math.min(5, 30 / lines.length);
            const of = inside
              .filter(({ values }) => chosen.lines === null || settingText(values[chosen.lines]) === text)
              .map((point) => ({
                ...point,
                x: x(places.indexOf(settingText(point.values[chosen.against]))) + shift,
              }))
              .sort((a, b) => a.x - b.x);
            return series(of, at, y);
          }),
        );
      }),
      ...keys.items.map(({ text, x, y }, at) =>
        s(
          "g",
          { class: `series-${at % 4}` },
          s("path", { d: `M${x} ${rows * CHART.height + y}h26`, class: at < 4 ? "series" : "series again" }),
          s("path", { d: SHAPES[at % 4](x + 13, rows * CHART.height + y), class: "point" }),
          s("text", { x: x + 32, y: rows * CHART.height + y + 4, class: "tick" }, text),
        ),
      ),
    );
  }

  function frame(x, y, places, low, high, left, side, name) {
    const step = Math.ceil(
      places.length /
        Math.max(
          1,
          Math.floor((side - CHART.left) / (10 + 7 * Math.max(...places.map((text) => text.length)))),
        ),
    );
    return [low, (low + high) / 2, high]
      .map((value) =>
        s(
          "g",
          { class: "ticks" },
          s("line", {
            x1: left + CHART.left,
            x2: left + side - CHART.right,
            y1: y(value),
            y2: y(value),
            class: "rail",
          }),
          s("text", { x: left + CHART.left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, 3)),
        ),
      )
      .concat(
        places.map((text, place) =>
          place % step
            ? ""
            : s("text", { x: x(place), y: y(low) + 16, "text-anchor": "middle", class: "tick" }, text),
        ),
        s(
          "text",
          { x: left + side - CHART.right, y: y(low) + 32, "text-anchor": "end", class: "tick" },
          `${name} →`,
        ),
      );
  }

  function series(of, at, y) {
    const line = (value) =>
      of.map((point, n) => `${n ? "L" : "M"}${point.x.toFixed(1)} ${y(value(point)).toFixed(1)}`).join("");
    const walked = of.filter(({ walk }) => walk !== null);
    return [
      s(
        "g",
        { class: `series-${at % 4}` },
        walked.length === of.length ? s("path", { d: line(({ walk }) => walk), class: "series walks" }) : "",
        s("path", { d: line(({ mean }) => mean), class: at < 4 ? "series" : "series again" }),
        ...of.map((point) =>
          s(
            "g",
            {},
            s("title", {}, told(point)),
            s("path", {
              d: `M${point.x.toFixed(1)} ${y(point.mean - point.reach).toFixed(1)}V${y(point.mean + point.reach).toFixed(1)}`,
              class: "series reach",
            }),
            s("path", {
              d: SHAPES[at % 4](Number(point.x.toFixed(1)), Number(y(point.mean).toFixed(1))),
              class: "point",
            }),
          ),
        ),
      ),
    ];
  }

  const told = ({ values, mean, reach, walk, seeds }) =>
    `${values.map((value, at) => `${settings[at]} ${settingText(value)}`).join(", ")}: ${number(mean)}${reach ? ` ± ${number(reach, 2)}` : ""}, random walk ${number(walk)}, ${seeds} ${seeds === 1 ? "seed" : "seeds"}`;

  onChange(
    (names) => ["run", "group", "indicator", "against", "lines"].some((name) => names.has(name)) && draw(),
  );
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  return section;
}

/** What the points are, over how many seeds, and what is not drawn. */
function noteOf(known, drawn, setting, following) {
  if (!known.length)
    return "This page does not have these weights of all runs, or none of them has this indicator; the query below asks the store.";
  if (!drawn.length) return `No two runs differ in ${setting} and at most one other setting.`;
  const counts = drawn.map(({ seeds }) => seeds);
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  const alone = known.length - drawn.length;
  return [
    most === 1
      ? "One seed each: how far seeds scatter is not known."
      : `Means over ${least === most ? most : `${least} to ${most}`} seeds; bars: 1.96 standard errors${least === 1 ? ", where there are several" : ""}.`,
    following.length ? ` With these settings go ${following.join(", ")}.` : "",
    alone
      ? ` Not drawn: ${alone} combinations of settings that no other differs from in ${setting} and at most one more.`
      : "",
  ].join("");
}

/** What a setting is called; null where it is not stated. */
function settingText(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** Numbers by size, before everything else; what is not stated last. */
function bySize([textA, a], [textB, b]) {
  const rank = (value) => (typeof value === "number" ? 0 : value === null ? 2 : 1);
  return rank(a) - rank(b) || (rank(a) === 0 ? a - b : textA.localeCompare(textB));
}

/** Where the items of a legend stand, in lines of a width, and how high they are together. */
function legendPlaces(texts, width) {
  let [x, y] = [CHART.left, 10];
  const items = texts.map((text) => {
    const length = 56 + 7 * text.length;
    if (x + length > width && x > CHART.left) [x, y] = [CHART.left, y + 18];
    const item = { text, x, y };
    x += length;
    return item;
  });
  return { items, height: texts.length ? y + 12 : 0 };
}
