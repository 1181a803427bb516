// Layers × roles: small maps, and the same grid in numbers.

const QUERY_KEY_VALUE = ["attn_q", "attn_k", "attn_v"];

/** Rows of the grid: all layers together, then each layer of each stack; columns: whole layers and roles. */
function grid(run) {
  const cells = new Map();
  const rows = new Map();
  const roles = new Set();
  run.groups.forEach((group, at) => {
    if (!["component", "layer", "layer_component"].includes(group.scope)) return;
    const row = [group.stack ?? "", group.layer ?? -1].join(" ");
    const name = group.layer === undefined ? "all" : String(group.layer);
    rows.set(row, {
      key: row,
      name: group.stack ? `${group.stack} ${name}` : name,
      stack: group.stack ?? "",
      layer: group.layer ?? -1,
    });
    const role = group.component ?? "";
    roles.add(role);
    cells.set(`${row} ${role}`, at);
  });
  const ordered = [...rows.values()].sort((a, b) => a.stack.localeCompare(b.stack) || a.layer - b.layer);
  return { cells, rows: ordered, roles: ["", ...ROLE_ORDER].filter((role) => roles.has(role)) };
}

function layers() {
  const body = h("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Layers and roles" });
  let drawing = 0;
  const { section, controls, refresh } = figure({
    id: "layers",
    title: "Layers × roles",
    meaning:
      "The map of each role in each layer; choose one to see it large. Queries, keys and values side by side on one scale show whether they share their directions. As numbers: any indicator, or how far it is from a random walk's.",
    method:
      "A role is what a tensor does in its layer: attn_q, attn_k, attn_v and attn_out of attention, mlp_gate, mlp_up and mlp_down, norms. The first row has each role over all layers, the first column whole layers. docs/contract.md, section 4.",
    body,
    query: () => layersQuery(shownRun(), state.indicator),
    rows: async () => {
      const { cells } = grid(shownRun());
      const groups = [...cells.values()].map((at) => shownRun().groups[at]);
      return [
        ["scope", "stack", "layer", "component", state.indicator, "random walk"],
        ...groups.map((group) => [
          group.scope,
          group.stack,
          group.layer,
          group.component,
          indicatorValue(group, state.indicator),
          nullValueOf(group, state.indicator),
        ]),
      ];
    },
    picture: () => tablePicture(body.querySelector("table")),
    table: false,
  });

  function showControls() {
    const values = state.show === "numbers";
    controls.replaceChildren(
      choice(
        "As",
        "show",
        [
          ["maps", "maps"],
          ["numbers", "numbers"],
        ],
        state.show,
        (chosen) => change({ show: chosen }),
      ),
      choice(
        "Roles",
        "columns",
        [
          ["all", "all"],
          ["qkv", "q, k, v"],
        ],
        state.columns,
        (columns) => change({ columns }),
      ),
      ...(values
        ? [
            select(
              "Indicator",
              CONTENT.indicators.map((name) => [name, name]),
              state.indicator,
              (indicator) => change({ indicator }),
            ),
            h(
              "label",
              { class: "check" },
              h("input", {
                type: "checkbox",
                checked: state.minus === 1,
                onchange: (event) => change({ minus: event.target.checked ? 1 : 0 }),
              }),
              h("span", {}, "minus the random walk's"),
            ),
          ]
        : []),
    );
  }

  function show() {
    showControls();
    refresh();
    const { cells, rows, roles } = grid(shownRun());
    const columns = state.columns === "qkv" ? roles.filter((role) => QUERY_KEY_VALUE.includes(role)) : roles;
    if (!rows.length || !columns.length)
      return body.replaceChildren(
        h(
          "p",
          {},
          rows.length
            ? "This run has no separate queries, keys and values."
            : "This run has no layers, or they are left out of this page.",
        ),
      );
    const groupAt = (row, role) => shownRun().groups[cells.get(`${row.key} ${role}`)];
    const table = state.show === "maps" ? smallMaps : numbers;
    return body.replaceChildren(table(columns, rows, groupAt, cells));
  }

  const head = (role) => role || "whole layer";

  function smallMaps(columns, rows, groupAt, cells) {
    const size = Math.round(
      Math.min(
        state.columns === "qkv" ? 150 : rows.length > 12 ? 60 : 96,
        Math.max(56, (body.clientWidth - 60) / columns.length - 12),
      ),
    );
    const drawn = [];
    const caption = h("caption", {});
    const table = h(
      "table",
      { class: "small-maps" },
      caption,
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "layer"),
          ...columns.map((role) => h("th", { scope: "col" }, head(role))),
        ),
      ),
      h(
        "tbody",
        {},
        ...rows.map((row) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, row.name),
            ...columns.map((role) => {
              const group = groupAt(row, role);
              if (!group) return h("td", {});
              const canvas = h("canvas", { width: size, height: size });
              canvas.style.setProperty("width", `${size}px`);
              canvas.style.setProperty("height", `${size}px`);
              drawn.push([group, canvas]);
              const at = cells.get(`${row.key} ${role}`);
              const value = indicatorValue(group, "relative_mds");
              return h(
                "td",
                {},
                h(
                  "button",
                  {
                    type: "button",
                    "aria-label": `${groupName(group)}: relative MDS ${number(value)}; show large`,
                    title: `${groupName(group)}\nrelative MDS ${number(value)}`,
                    "aria-pressed": String(at === state.group),
                    "data-group": at,
                    onclick: () => change({ group: at }),
                  },
                  canvas,
                ),
              );
            }),
          ),
        ),
      ),
    );
    drawAll(drawn, size, caption);
    return table;
  }

  /** Draw one small map after another; give up when others are to be drawn. */
  async function drawAll(drawn, size, caption) {
    drawing += 1;
    const turn = drawing;
    const kind =
      state.kind === "increments" && drawn.some(([group]) => !group.maps.increments)
        ? "displacements"
        : state.kind;
    const together = state.scale === "common" || state.columns === "qkv";
    const all = drawn.map(([group]) => group.maps[kind]);
    const width = Math.round(size * Math.max(1, window.devicePixelRatio || 1));
    const { low, high } = scaleOf(kind, null, all, together);
    caption.textContent =
      `Cosines of ${kind}, ` +
      (together
        ? `on one scale from ${number(low, 3)} to ${number(high, 3)}`
        : "each map on a scale of its own");
    for (const [group, canvas] of drawn) {
      const map = await readMap(group, kind);
      if (turn !== drawing) return;
      paint(
        canvas,
        map,
        scaleOf(kind, map, together ? all : [group.maps[kind]], together),
        width,
        evenPlaces(map.count, width),
      );
    }
    body.dataset.drawn = String(drawn.length);
  }

  function numbers(columns, rows, groupAt, cells) {
    const value = (group) => {
      const known = group ? indicatorValue(group, state.indicator) : null;
      const walk = group ? nullValueOf(group, state.indicator) : null;
      return known === null || (state.minus && walk === null) ? null : known - (state.minus ? walk : 0);
    };
    const all = rows
      .flatMap((row) => columns.map((role) => value(groupAt(row, role))))
      .filter((each) => each !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const bound = Math.max(Math.abs(low), Math.abs(high));
    const scale = state.minus
      ? new ColourScale(DIVERGING, -bound, bound)
      : new ColourScale(SEQUENTIAL, low, high);
    const sorted = [...rows];
    if (columns.map(head).includes(state.sort)) {
      const role = columns.find((each) => head(each) === state.sort);
      const rank = (row) => value(groupAt(row, role)) ?? Infinity;
      sorted.sort((a, b) => rank(a) - rank(b));
    }
    const sorter = (name, by) =>
      h(
        "th",
        { scope: "col", "aria-sort": state.sort === by ? "ascending" : "none" },
        h(
          "button",
          { type: "button", onclick: () => change({ sort: by }), title: "Sort by this column" },
          name,
        ),
      );
    return h(
      "table",
      { class: "grid-numbers" },
      h(
        "thead",
        {},
        h("tr", {}, sorter("layer", ""), ...columns.map((role) => sorter(head(role), head(role)))),
      ),
      h(
        "tbody",
        {},
        ...sorted.map((row) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, row.name),
            ...columns.map((role) => {
              const group = groupAt(row, role);
              const each = value(group);
              if (each === null) return h("td", {}, group ? "–" : "");
              const at = cells.get(`${row.key} ${role}`);
              const button = h(
                "button",
                { type: "button", title: groupName(group), onclick: () => change({ group: at }) },
                number(each),
              );
              button.style.setProperty("background", scale.css(each));
              button.style.setProperty("color", scale.inkOn(each));
              return h("td", {}, button);
            }),
          ),
        ),
      ),
    );
  }

  onChange((names) => {
    if (
      ["run", "kind", "scale", "show", "columns", "indicator", "minus", "sort"].some((name) =>
        names.has(name),
      )
    )
      show();
    else if (names.has("group"))
      for (const button of body.querySelectorAll("[data-group]"))
        button.setAttribute("aria-pressed", String(Number(button.dataset.group) === state.group));
  });
  let width = 0;
  new ResizeObserver(() => {
    if (body.clientWidth === width) return;
    width = body.clientWidth;
    show();
  }).observe(body);
  return section;
}
