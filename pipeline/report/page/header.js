// The run, what was found about its checkpoints, what is shown, and the key figures.

function pageHeader() {
  const element = h("header", {});
  const show = () => {
    const run = shownRun();
    filled(
      element,
      h("p", { class: "kicker" }, "hallmarks · how the weights travelled"),
      h("h1", {}, run.run),
      facts(run),
      run.followed ? reloading() : null,
      command(run),
      notShown(),
      leftOut(run),
    );
  };
  onChange((names) => names.has("run") && show());
  onChange((names) => (names.has("run") || names.has("reload")) && reloadLater());
  show();
  reloadLater();
  return element;
}

const RELOAD_MS = 60_000;
let reloadTimer = 0;

/** A page of a run that is followed is made again as it grows; it cannot see that, but look again. */
function reloadLater() {
  clearTimeout(reloadTimer);
  if (state.reload && shownRun().followed) reloadTimer = setTimeout(() => location.reload(), RELOAD_MS);
}

const reloading = () =>
  h(
    "label",
    { class: "check reload" },
    h("input", {
      type: "checkbox",
      checked: state.reload === 1,
      onchange: (event) => change({ reload: event.target.checked ? 1 : 0 }),
    }),
    h("span", {}, "load this page again every minute"),
  );

function facts(run) {
  const { name, step, dtype, commit } = run.checkpoint;
  const last = name.length - 1;
  const dtypes = [...new Set(dtype.filter(Boolean))];
  const commits = commit.filter(Boolean);
  const start = step[0] === null ? name[0] : `step ${step[0].toLocaleString("en")}`;
  const late = run.findings.some(({ kind }) => kind === "starts_late");
  const rows = [
    ["source", run.source],
    ["checkpoints", `${run.checkpoints}: ${name[0]} … ${name[last]}`],
    ["weights", `${run.parameters.toLocaleString("en")} in ${run.tensors.toLocaleString("en")} tensors`],
    ["stored as", dtypes.join(", ") || "–"],
    [
      "share read",
      run.fraction === 1
        ? `all (${bytes(run.bytes_total)})`
        : `${number(100 * run.fraction, 3)} % (a random sample)`,
    ],
    ["starts at", late ? `displacements are from ${start}, not from initialization` : start],
    commits.length
      ? ["commits", [...new Set([commits[0], commits.at(-1)])].map((text) => text.slice(0, 10)).join(" … ")]
      : null,
    run.settings ? ["settings", settings(run.settings)] : null,
    [
      "analyzed",
      `${run.created_at}, hallmarks ${run.version}, ${number(run.seconds, 3)} s on ${run.device || "–"}`,
    ],
    run.followed
      ? [
          "followed",
          `until ${called(run, last)}, page made ${CONTENT.made}; each checkpoint was read once: figures between them are estimates with standard errors`,
        ]
      : null,
    run.complete || run.followed ? null : ["incomplete", "some weights could not be read, or the job has not finished"],
  ];
  return h(
    "dl",
    { class: "facts" },
    ...rows.filter(Boolean).map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, ...[text].flat()))),
  );
}

const MOST_SETTINGS = 12; // before a fold

function settings(all) {
  const texts = Object.entries(all).map(
    ([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`,
  );
  if (texts.length <= MOST_SETTINGS) return texts.join(", ");
  const [shown, folded] = [texts.slice(0, MOST_SETTINGS), texts.slice(MOST_SETTINGS)];
  return [
    `${shown.join(", ")} `,
    h("details", {}, h("summary", {}, `${folded.length} more`), folded.join(", ")),
  ];
}

const command = (run) =>
  h(
    "details",
    { class: "command" },
    h("summary", {}, "Command"),
    h("pre", { tabindex: 0 }, h("code", {}, run.command)),
  );

const notShown = () =>
  CONTENT.not_shown
    ? h(
        "p",
        { class: "note" },
        `${CONTENT.runs.length} of ${CONTENT.runs.length + CONTENT.not_shown} runs are shown one by one, of different settings where they have such; indicators across settings are of all. “hallmarks report --run NAME” shows fewer.`,
      )
    : null;

function leftOut(run) {
  if (!run.left_out.length) return null;
  const scopes = run.left_out.map(
    ({ scope, groups, size }) => `${scope} (${groups.toLocaleString("en")} groups, about ${bytes(size)})`,
  );
  return h(
    "p",
    { class: "note" },
    `Left out of this page, which would grow too large: ${scopes.join(", ")}. The store has them.`,
  );
}

const MOST_FINDINGS = 8; // before a fold

/** Findings, the worst first; those about a checkpoint lead to it in every picture. */
function findings() {
  const lists = h("div", {});
  const section = h(
    "section",
    { class: "findings", "aria-labelledby": "findings-title" },
    h("h2", { id: "findings-title" }, "Findings about the checkpoints"),
    lists,
  );
  const show = () => {
    const run = shownRun();
    const items = run.findings.map(({ severity, kind, k, message }) => {
      const text = [
        h("span", { class: `severity ${severity}` }, severity),
        h("strong", {}, kind.replaceAll("_", " ")),
        " ",
        message,
      ];
      if (k === null) return h("li", {}, ...text);
      return h(
        "li",
        {},
        h(
          "button",
          { type: "button", onclick: () => change({ i: k, j: k }), title: "Show in every picture" },
          ...text,
        ),
      );
    });
    const more = items.splice(MOST_FINDINGS);
    filled(
      lists,
      h("ul", {}, ...(items.length ? items : [h("li", {}, "nothing found")])),
      more.length ? h("details", {}, h("summary", {}, `${more.length} more`), h("ul", {}, ...more)) : null,
    );
  };
  onChange((names) => names.has("run") && show());
  show();
  return section;
}

/** What all pictures are of: the run and the group. */
function selection() {
  const element = h("nav", { class: "selection", "aria-label": "What is shown" });
  const show = () => {
    const runs = CONTENT.runs.map((run, at) => [at, run.run]);
    const scopes = {
      model: "model",
      body: "model",
      component: "roles",
      layer: "layers",
      layer_component: "layers × roles",
      tensor: "tensors",
      head: "heads",
    };
    const groups = new Map();
    shownRun().groups.forEach((group, at) => {
      const label = scopes[group.scope];
      groups.set(label, [...(groups.get(label) ?? []), [at, groupName(group)]]);
    });
    element.replaceChildren(
      ...(runs.length > 1
        ? [
            select("Run", runs, state.run, (run) =>
              change({ run: Number(run), group: sameGroup(Number(run)), i: -1, j: -1, a: -1, b: -1 }),
            ),
          ]
        : []),
      select("Weights", [...groups], state.group, (group) => change({ group: Number(group) })),
    );
  };
  onChange((names) => (names.has("run") || names.has("group")) && show());
  show();
  return element;
}

/** The number of the group of another run that is called as the one shown; the first where it has none. */
function sameGroup(run) {
  const name = groupName(shownGroup());
  return Math.max(
    0,
    CONTENT.runs[run].groups.findIndex((group) => groupName(group) === name),
  );
}

function keyFigures() {
  const body = h("div", {
    class: "scrolls",
    tabindex: 0,
    role: "region",
    "aria-label": "Table of key figures",
  });
  const header = ["indicator", "value", "stderr", "null_value", "straight", "differs_from_null"];
  const rows = () => {
    const { value = [], stderr = [], null_value = [], straight = [], differs_from_null = [] } = shownGroup();
    return CONTENT.indicators.map((name, at) => [
      name,
      value[at],
      stderr[at],
      null_value[at],
      straight[at],
      differs_from_null[at],
    ]);
  };
  const { section, refresh } = figure({
    id: "figures",
    title: "Key figures",
    meaning:
      "Each figure on a line from a random walk (│) to a straight path (┃) with the same step lengths. Greyed: it does not differ from the walk's.",
    method:
      "The random walk and the straight path have this run's own step lengths and start at right angles to the first weights: what no direction, and what one direction only, would show. A figure does not differ from the walk's if they are closer than 1.96 standard errors, and than 5 % of the way to the straight path. docs/method.md, section 2.",
    body,
    query: () => indicatorsQuery(shownRun(), shownGroup()),
    rows: async () => [header, ...rows()],
    table: false,
  });
  const show = () => {
    const sampled = shownRun().fraction < 1 || shownRun().followed;
    const columns = [
      "indicator",
      "value",
      ...(sampled ? ["±"] : []),
      "walk to straight",
      "random walk",
      "straight path",
    ];
    body.replaceChildren(
      h(
        "table",
        { class: "keys" },
        h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
        h(
          "tbody",
          {},
          ...rows()
            .filter(([, value]) => value !== null && value !== undefined)
            .map(([name, value, error, walk, straight, differs]) =>
              h(
                "tr",
                { class: differs === false && walk !== null ? "same" : null },
                h(
                  "th",
                  { scope: "row" },
                  h("span", { class: "name" }, name),
                  h("small", {}, CONTENT.meanings[name]),
                ),
                h("td", {}, number(value)),
                sampled ? h("td", {}, number(error, 2)) : null,
                h("td", { class: "bar" }, bar(value, error, walk, straight)),
                h("td", {}, number(walk)),
                h("td", {}, number(straight)),
              ),
            ),
        ),
      ),
    );
    refresh();
  };
  onChange((names) => (names.has("run") || names.has("group")) && show());
  show();
  return section;
}

/** A value on the line from the random walk's to the straight path's. */
function bar(value, error, walk, straight) {
  if (walk === null || straight === null || walk === undefined || straight === undefined || walk === straight)
    return null;
  const share = (of) => (of - walk) / (straight - walk);
  const [low, high] = [Math.min(-0.15, share(value)), Math.max(1.15, share(value))];
  const x = (of) => 4 + (112 * (share(of) - low)) / (high - low);
  const reach = error > 0 ? Math.abs(x(value + 1.96 * error) - x(value)) : 0;
  return s(
    "svg",
    {
      viewBox: "0 0 120 16",
      width: 120,
      height: 16,
      role: "img",
      "aria-label": `${Math.round(100 * share(value))} % of the way from a random walk to a straight path`,
    },
    s("line", { x1: x(walk), x2: x(straight), y1: 8, y2: 8, class: "rail" }),
    s("line", { x1: x(walk), x2: x(walk), y1: 3, y2: 13, class: "walk" }),
    s("line", { x1: x(straight), x2: x(straight), y1: 3, y2: 13, class: "straight" }),
    s("line", { x1: x(value) - reach, x2: x(value) + reach, y1: 8, y2: 8, class: "error" }),
    s("circle", { cx: x(value), cy: 8, r: 4, class: "value" }),
  );
}
