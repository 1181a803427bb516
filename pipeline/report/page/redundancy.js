// Layer-wise directional analysis: when each role's direction was final in each layer, how much of its way
// was left, how predictable its increments were, and how many directions they took.

const STRIPS = [
  { name: "saturation_step", title: "direction final at step" },
  { name: "remaining", title: "share of the way left then" },
  { name: "settled_step", title: "within 5 % of its end at step" },
  { name: "predictability_1", title: "share along the increment before" },
  { name: "effective_rank", title: "directions (effective rank)" },
  { name: "rank_95", title: "components for 95 % of the variance" },
];
/** Columns of the view, but for its keys. */
const REDUNDANCY = [
  ...STRIPS.map(({ name }) => name),
  ...STRIPS.filter(({ name }) => name !== "remaining").map(({ name }) => `null_${name}`),
];
const WALK_REMAINING = Math.sqrt(1 - 0.99 ** 2); // at most, when its direction is final
const STRIP = { top: 24, row: 15, below: 52, left: 78, all: 18, gap: 6, widest: 26, side: 28 };

const shareOfStrip = (group, name) =>
  name === "remaining" ? (group.remaining ?? null) : indicatorValue(group, name);
const walkOfStrip = (group, name) => (name === "remaining" ? WALK_REMAINING : nullValueOf(group, name));
const differsFromWalk = (group, name) =>
  name === "remaining"
    ? group.remaining > WALK_REMAINING
    : group.differs_from_null?.[CONTENT.indicators.indexOf(name)] !== false;

function redundancy() {
  const svg = s("svg", { "aria-hidden": "true" });
  const cursor = s("g", {});
  const output = h("output", { id: "redundancy-readout", "aria-live": "polite" });
  const surface = h(
    "div",
    {
      class: "surface",
      tabindex: 0,
      role: "application",
      "aria-label": "Layers and roles; arrow keys move among them, Enter shows one in every picture",
      "aria-describedby": "redundancy-readout",
      onkeydown: onKey,
      onpointermove: onMove,
      onclick: choose,
    },
    svg,
  );
  const outside = h("div", {}, h("p", { class: "note" }, BELIEF), output, surface);
  const { section, controls, refresh } = figure({
    id: "redundancy",
    title: "Layer-wise directional analysis",
    meaning: `Each role (rows) in each layer (columns): when its direction was final to 8°, what share of its way was still ahead then, when it was near its end, how far each increment follows the one before, and how many directions the path took. The line on each scale is the median of random walks with the same step lengths; a dot marks what does not differ from one.`,
    method:
      "saturation_step: the first step from which cos(θk − θ0, θT − θ0) ≥ 0.99 for good; remaining: ‖θT − θk‖ / ‖θT − θ0‖ there, of a random walk at most 0.14. settled_step: the first from which that share is at most 0.05. predictability_1: share of the increments' energy along the increment before; a walk has 0. effective_rank and rank_95: of the spectrum of the centered path. docs/method.md, section 2; docs/method-2.md, section 5.6.",
    body: outside,
    query: () => redundancyQuery(shownRun(), [...new Set(cells().map(({ group }) => group.scope))]),
    rows: async () => [
      ["scope", "stack", "layer", "component", ...REDUNDANCY],
      ...cells()
        .map(({ group }) => group)
        .sort(
          (a, b) =>
            early(a, "saturation_step") - early(b, "saturation_step") ||
            early(a, "settled_step") - early(b, "settled_step"),
        )
        .map((group) => [
          group.scope,
          group.stack,
          group.layer,
          group.component,
          ...STRIPS.map(({ name }) => shareOfStrip(group, name)),
          ...STRIPS.filter(({ name }) => name !== "remaining").map(({ name }) => nullValueOf(group, name)),
        ]),
    ],
    picture: () => svg,
  });
  const early = (group, name) => indicatorValue(group, name) ?? Infinity;
  let width = 0;
  let shown = { columns: [], roles: [], at: new Map(), panels: [] };
  let place = null; // { column, role } under the cursor

  /** All groups that have a cell, with their column and role. */
  const cells = () => [...shown.at.values()];

  /** Columns: all layers together, then each layer, of each stack; in depth order or by a figure of the whole layers. */
  function arrange() {
    const { cells: numbers, rows, roles } = grid(shownRun());
    const { groups } = shownRun();
    const at = new Map();
    for (const [key, number] of numbers) at.set(key, { group: groups[number], number });
    const model = groups.findIndex(({ scope }) => scope === "model");
    const columns = [...rows];
    if (columns.every(({ stack }) => stack === "") && model >= 0) {
      if (!columns.some(({ layer }) => layer < 0))
        columns.unshift({ key: " -1", name: "all", stack: "", layer: -1 });
      at.set(" -1 ", { group: groups[model], number: model });
    }
    const rank = ({ key, layer }) => {
      const whole = at.get(`${key} `)?.group;
      return layer < 0 ? -Infinity : ((whole && shareOfStrip(whole, state.order)) ?? Infinity);
    };
    if (state.order !== "depth")
      columns.sort((a, b) => a.stack.localeCompare(b.stack) || rank(a) - rank(b) || a.layer - b.layer);
    const withWhole = [...at.keys()].some((key) => key.endsWith(" "));
    return { columns, roles: withWhole && !roles.includes("") ? ["", ...roles] : roles, at };
  }

  function draw() {
    const { columns, roles, at } = arrange();
    shown = { columns, roles, at, panels: [] };
    const strips = STRIPS.filter(({ name }) =>
      cells().some(({ group }) => shareOfStrip(group, name) !== null),
    );
    section.hidden = !strips.some(({ name }) => name === "saturation_step");
    if (section.hidden) return;
    controls.replaceChildren(
      select(
        "Layers in order of",
        [["depth", "depth"], ...strips.map(({ name }) => [name, name])],
        state.order,
        (order) => change({ order }),
      ),
    );
    width = Math.max(240, outside.clientWidth);
    const across = width >= 1000 ? 3 : width >= 620 ? 2 : 1;
    const side = (width - STRIP.side * (across - 1)) / across;
    const height = STRIP.top + roles.length * STRIP.row + STRIP.below;
    shown.widths = widthsOf(columns, side - STRIP.left);
    shown.panels = strips.map((strip, n) => ({
      ...strip,
      x: (n % across) * (side + STRIP.side),
      y: Math.floor(n / across) * height,
    }));
    const whole = height * Math.ceil(strips.length / across);
    svg.setAttribute("viewBox", `0 0 ${width} ${whole}`);
    surface.style.setProperty("width", `${width}px`);
    surface.style.setProperty("height", `${whole}px`);
    svg.replaceChildren(...shown.panels.map(panel), cursor);
    point();
    refresh();
  }

  /** Where each column begins, and how wide it is. */
  function widthsOf(columns, room) {
    const whole = columns.filter(({ layer }) => layer < 0).length;
    const layered = columns.length - whole;
    const each = Math.min(STRIP.widest, (room - whole * (STRIP.all + 2 * STRIP.gap)) / Math.max(1, layered));
    let x = STRIP.left;
    return columns.map(({ layer }, n) => {
      if (layer < 0 && n) x += STRIP.gap;
      const found = { x, width: layer < 0 ? STRIP.all : each };
      x += found.width + (layer < 0 ? STRIP.gap : 0);
      return found;
    });
  }

  function panel({ name, title, x, y }) {
    const known = cells()
      .map(({ group }) => ({ value: shareOfStrip(group, name), walk: walkOfStrip(group, name) }))
      .filter(({ value }) => value !== null);
    const walks = known
      .map(({ walk }) => walk)
      .filter((walk) => walk !== null)
      .sort((a, b) => a - b);
    const walk = walks.length ? walks[walks.length >> 1] : null;
    const ends = [...known.map(({ value }) => value), ...(walk === null ? [] : [walk])];
    const scale = new ColourScale(SEQUENTIAL, Math.min(...ends), Math.max(...ends));
    const bottom = y + STRIP.top + shown.roles.length * STRIP.row;
    return s(
      "g",
      {},
      s("text", { x: x + STRIP.left, y: y + 14, class: "title" }, title),
      ...shown.roles.map((role, row) =>
        s(
          "text",
          {
            x: x + STRIP.left - 6,
            y: y + STRIP.top + row * STRIP.row + 11,
            "text-anchor": "end",
            class: "tick",
          },
          role || "whole",
        ),
      ),
      ...shown.columns.flatMap((column, n) =>
        shown.roles.map((role, row) =>
          cell(
            name,
            scale,
            column,
            role,
            x + shown.widths[n].x,
            y + STRIP.top + row * STRIP.row,
            shown.widths[n].width,
          ),
        ),
      ),
      ...shown.roles.flatMap((role, row) => frames(role, x, y + STRIP.top + row * STRIP.row)),
      layerTicks(x, bottom + 12),
      legendOf(name, scale, walk, x + STRIP.left, bottom + 24),
    );
  }

  function cell(name, scale, column, role, x, y, wide) {
    const group = shown.at.get(`${column.key} ${role}`)?.group;
    if (!group) return "";
    const value = shareOfStrip(group, name);
    const box = {
      x: x.toFixed(2),
      y,
      width: Math.max(0.5, wide - (wide > 7 ? 1 : 0)).toFixed(2),
      height: STRIP.row - 1,
    };
    if (value === null) return s("rect", { ...box, class: "undefined" });
    const rect = s("rect", { ...box, fill: scale.css(value) });
    if (differsFromWalk(group, name)) return rect;
    const dot = {
      cx: (x + wide / 2 - 0.5).toFixed(2),
      cy: y + STRIP.row / 2 - 0.5,
      r: Math.min(2, wide / 3).toFixed(1),
    };
    return s("g", {}, rect, s("circle", { ...dot, fill: scale.inkOn(value) }));
  }

  /** The numbers of layers under a strip, as many as there is room for. */
  function layerTicks(x, y) {
    const longest = Math.max(...shown.columns.map(({ layer }) => String(layer).length));
    let at = 0;
    const texts = shown.columns.map(({ layer, stack }, n) => {
      const { x: left, width: wide } = shown.widths[n];
      const step = Math.ceil((7.4 * longest + 6) / wide);
      at = layer < 0 ? 0 : at + 1; // counts from the first of a stack
      if (layer >= 0 && (at - 1) % step) return "";
      return s(
        "text",
        { x: x + left + wide / 2, y, "text-anchor": "middle" },
        layer < 0 ? stack || "all" : layer,
      );
    });
    return s("g", { class: "ticks" }, ...texts);
  }

  /** Around the cells of a role: dark ones are seen on a dark page. */
  function frames(role, x, y) {
    const there = shown.columns
      .map((column, n) => ({ ...column, ...shown.widths[n] }))
      .filter(({ key }) => shown.at.has(`${key} ${role}`));
    const blocks = new Map();
    for (const { stack, layer, x: left, width: wide } of there) {
      const block = `${stack} ${layer < 0}`;
      blocks.set(block, { left: blocks.get(block)?.left ?? left, right: left + wide });
    }
    return [...blocks.values()].map(({ left, right }) =>
      s("rect", { x: x + left - 0.5, y: y - 0.5, width: right - left, height: STRIP.row, class: "frame" }),
    );
  }

  function legendOf(name, scale, walk, x, y) {
    const length = 120;
    const pieces = 24;
    const at = (value) => x + (length * (value - scale.low)) / (scale.high - scale.low);
    return s(
      "g",
      {},
      ...Array.from({ length: pieces }, (_, n) =>
        s("rect", {
          x: x + (n * length) / pieces,
          y,
          width: length / pieces + 0.3,
          height: 7,
          fill: scale.css(scale.low + ((n + 0.5) * (scale.high - scale.low)) / pieces),
        }),
      ),
      walk === null ? "" : s("line", { x1: at(walk), x2: at(walk), y1: y - 3, y2: y + 10, class: "walk" }),
      s("text", { x, y: y + 21, class: "tick" }, readable(name, scale.low)),
      s(
        "text",
        { x: x + length, y: y + 21, "text-anchor": "end", class: "tick" },
        readable(name, scale.high),
      ),
      walk === null
        ? ""
        : s(
            "text",
            { x: x + length + 8, y: y + 8, class: "tick" },
            `│ walk ${name === "remaining" ? "≤ " : ""}${readable(name, walk)}`,
          ),
    );
  }

  const readable = (name, value) => (name.endsWith("_step") ? shortStep(value) : number(value, 3));

  /** Outline the place in every strip, and say what is there. */
  function point() {
    const found = place && shown.at.get(`${shown.columns[place.column]?.key} ${shown.roles[place.role]}`);
    if (!found) {
      cursor.replaceChildren();
      output.textContent = "Point at a strip, or focus it and press the arrow keys.";
      return;
    }
    const { x, width: wide } = shown.widths[place.column];
    cursor.replaceChildren(
      ...shown.panels.map((each) =>
        s("rect", {
          x: each.x + x - 1,
          y: each.y + STRIP.top + place.role * STRIP.row - 1,
          width: wide + 1,
          height: STRIP.row + 1,
          class: "chosen",
        }),
      ),
    );
    output.textContent = `${groupName(found.group)}: ${shown.panels.map(({ name }) => told(found.group, name)).join(", ")}`;
  }

  function told(group, name) {
    const [value, walk] = [shareOfStrip(group, name), walkOfStrip(group, name)];
    const beside = walk === null ? "" : ` (walk ${name === "remaining" ? "≤ " : ""}${number(walk, 3)})`;
    return `${name.replaceAll("_", " ")} ${number(value, 3)}${value === null ? "" : beside}`;
  }

  function onMove(event) {
    const frame = surface.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    for (const each of shown.panels) {
      const role = Math.floor((y - each.y - STRIP.top) / STRIP.row);
      const column = shown.widths.findIndex((of) => x - each.x >= of.x && x - each.x < of.x + of.width);
      if (column >= 0 && role >= 0 && role < shown.roles.length) moveTo({ column, role });
    }
  }

  function moveTo(next) {
    if (place?.column === next.column && place.role === next.role) return;
    place = next;
    point();
  }

  function onKey(event) {
    if (event.key === "Enter") return choose();
    const [columns, roles] = [shown.columns.length, shown.roles.length];
    const by = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
      Home: [-columns, 0],
      End: [columns, 0],
    }[event.key];
    if (!by) return undefined;
    event.preventDefault();
    const within = (value, count) => Math.min(count - 1, Math.max(0, value));
    return moveTo(
      place
        ? { column: within(place.column + by[0], columns), role: within(place.role + by[1], roles) }
        : { column: 0, role: 0 },
    );
  }

  function choose() {
    const found = place && shown.at.get(`${shown.columns[place.column]?.key} ${shown.roles[place.role]}`);
    if (found) change({ group: found.number });
  }

  onChange((names) => {
    if (names.has("run")) place = null;
    if (names.has("run") || names.has("order")) draw();
  });
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  return section;
}

/** How far such figures are to be believed, by experiment. */
const BELIEF =
  "This is geometry: it does not say which layer can be frozen. In trainings of three small networks, layers frozen at their settled steps cost 0 to 0.5 points of accuracy and saved 33 to 54 % of the backward pass; the same steps dealt out among the layers at random cost and saved as much (docs/studies/freeze_layers.md).";
