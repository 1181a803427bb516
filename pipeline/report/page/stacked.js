// Rows of curves over the checkpoints, one below the other; they share the map's cursor and its axis.

const ABOVE = 12; // for the findings' marks
const CHANGE = 15; // for what is written of changes, where there are any
const ROW = { height: 104, top: 24, bottom: 8, left: 52, right: 12 };

/**
 * A place for such rows. `told(k)` is what is read out of a checkpoint. A row is
 *   title; ends: [least, greatest] value; ticks: values that are written, its ends if not given;
 *   content(x, y): elements, with x of a share of the axis and y of a value.
 */
function stacked(id, label, told) {
  const svg = s("svg", { "aria-hidden": "true" });
  const output = h("output", { id: `${id}-readout`, "aria-live": "polite" });
  const surface = h(
    "div",
    {
      class: "surface",
      tabindex: 0,
      role: "application",
      "aria-label": `${label}; left and right arrow keys move along the checkpoints`,
      "aria-describedby": `${id}-readout`,
      onkeydown: onKey,
      onpointermove: onMove,
      onpointerdown: onMove,
    },
    svg,
  );
  const outside = h("div", { class: "curves" }, output, surface);
  const marks = s("g", { class: "marks" });
  let axis = null;
  let width = 0;
  let above = 0;
  let bottom = 0;

  const x = (share) => ROW.left + share * (width - ROW.left - ROW.right);

  function draw(run, next, rows) {
    axis = next;
    width = Math.max(240, outside.clientWidth);
    above = ABOVE + (run.changes.length ? CHANGE : 0);
    bottom = above + ROW.height * rows.length;
    svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 34}`);
    surface.style.setProperty("width", `${width}px`);
    surface.style.setProperty("height", `${bottom + 34}px`);
    svg.replaceChildren(
      ...rows.map(row),
      ticks(),
      changes(run),
      s("g", {}, ...findingMarks(run, axis, (at) => `M${x(at) - 4} 1h8l-4 7z`)),
      marks,
    );
    point();
  }

  function row({ title, ends: [from, to], ticks = [from, to], content }, at) {
    const top = above + at * ROW.height + ROW.top;
    const inner = ROW.height - ROW.top - ROW.bottom;
    const y = (value) => top + inner - (inner * (value - from)) / (to - from);
    return s(
      "g",
      {},
      s("text", { x: ROW.left, y: top - 7, class: "title" }, title),
      s("line", { x1: x(0), x2: x(1), y1: top + inner, y2: top + inner, class: "rail" }),
      ...ticks.map((value) =>
        s(
          "text",
          { x: ROW.left - 6, y: y(value) + 4, "text-anchor": "end", class: "tick" },
          number(value, 3),
        ),
      ),
      ...content(x, y),
    );
  }

  function ticks() {
    const group = s("g", { class: "ticks" });
    for (const at of axis.ticks(width - ROW.left - ROW.right))
      group.append(
        s("text", { x: x(axis.points[at]), y: bottom + 12, "text-anchor": "middle" }, axis.label(at)),
      );
    group.append(s("text", { x: x(1), y: bottom + 27, "text-anchor": "end" }, "step →"));
    return group;
  }

  /** Lines where the training changed; what is written at one leaves out what the one before has no room for. */
  function changes(run) {
    let taken = 0;
    const lines = run.changes.map((change) => {
      const at = x(axis.points[change.k]);
      const text = changeName(change);
      const length = 7 * text.length;
      const begins = Math.min(at + 4, width - length);
      const fits = begins >= taken;
      if (fits) taken = begins + length;
      return s(
        "g",
        {},
        s("title", {}, `${called(run, change.k)}: ${changeMeaning(change)}`),
        s("line", { x1: at, x2: at, y1: ABOVE, y2: bottom, class: "change" }),
        fits ? s("text", { x: begins, y: ABOVE + 10, class: "tick" }, text) : null,
      );
    });
    return s("g", { class: "changes" }, ...lines);
  }

  function point() {
    const { i, j } = state;
    marks.replaceChildren();
    for (const [k, kind] of [
      [i, "row"],
      [j, "column"],
    ])
      if (k >= 0) {
        const at = x(axis.points[k]);
        marks.append(s("line", { x1: at, x2: at, y1: 10, y2: bottom, class: `cursor ${kind}` }));
      }
    output.textContent =
      j < 0
        ? "Point at the curves, or focus them and press the arrow keys."
        : [`${called(shownRun(), j)}: ${told(j)}`, ...shownRun().changes.filter(({ k }) => k === j).map(changeMeaning)].join("; ");
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

  const onWidth = (redraw) =>
    new ResizeObserver(() => outside.clientWidth !== width && redraw()).observe(outside);
  return { outside, svg, draw, point, onWidth };
}

/** What is written at a change: how much longer the increments of the whole model become. */
const changeName = ({ jump }) =>
  jump === null
    ? "decay starts"
    : `${Math.exp(Math.abs(jump)).toFixed(1)} × ${jump > 0 ? "larger" : "smaller"}`;

const changeMeaning = (change) =>
  change.jump === null
    ? "the increments of the whole model decay from here"
    : `increments of the whole model ${changeName(change)} from here`;

/** The least and the greatest of some values, apart from each other. */
function endsOf(values) {
  const known = values.filter((value) => !Number.isNaN(value));
  const high = known.length ? known.reduce((a, b) => Math.max(a, b)) : 1;
  const low = known.length ? known.reduce((a, b) => Math.min(a, b)) : 0;
  return [low, high > low ? high : low + (Math.abs(low) || 1)];
}

/**
 * A line through points { at, value, begins }, with gaps where a value is undefined or a path begins;
 * a value that has no neighbour, of which no line could be seen, is a point.
 */
function curve(points, x, y, kind = "curve") {
  let path = "";
  const alone = [];
  const known = (point) => point !== undefined && !Number.isNaN(point.value);
  points.forEach((point, n) => {
    if (!known(point)) return;
    const { at, value, begins } = point;
    const drawn = known(points[n - 1]) && !begins;
    path += `${drawn ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    if (!known(points[n - 1]) && !known(points[n + 1]))
      alone.push(s("circle", { cx: x(at), cy: y(value), r: 2, class: "value" }));
  });
  return [s("path", { d: path, class: kind }), ...alone];
}
