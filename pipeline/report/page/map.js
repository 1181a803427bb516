// The trajectory map: cosines of all pairs of checkpoints on a canvas, read by pointer and keys.

const MEAN_NAMES = { weights: "MDS", displacements: "relative MDS", increments: "mean cosine" };
const MARGIN = { left: 58, top: 14, right: 14, bottom: 84 };
const LARGEST = 820;

function trajectoryMap() {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const svg = s("svg", { "aria-hidden": "true" });
  const output = h("output", { id: "readout", "aria-live": "polite" });
  const surface = h(
    "div",
    {
      class: "surface",
      tabindex: 0,
      role: "application",
      "aria-label": "Trajectory map",
      "aria-describedby": "readout",
      onkeydown: onKey,
      onpointermove: onMove,
      onpointerdown: onDown,
      onpointerup: onUp,
      onpointercancel: onUp,
    },
    canvas,
    svg,
  );
  const thinned = h("p", { class: "meaning" });
  const outside = h("div", { class: "map" }, output, surface, thinned);
  const marks = s("g", { class: "marks" });
  let map = null;
  let axis = null;
  let side = 0;
  let dragged = false;
  let firstDrawn;
  const drawn = new Promise((done) => (firstDrawn = done));

  const { section, controls, refresh } = figure({
    id: "map",
    title: "Trajectory map",
    meaning:
      "Each point is the cosine between two checkpoints: of their weights, of their displacements from the first checkpoint, or of the increments that led to them. Light blocks along the diagonal are stretches in which the direction hardly changes.",
    method:
      "C(i, j) = ⟨θi, θj⟩ / (‖θi‖ ‖θj‖). Displacements: the same of θk − θ0, which keeps the initialization, common to all, from hiding the movement. Increments: of θk − θk−1. The mean over all ordered pairs, diagonal included, is the mean directional similarity (MDS). Striped: undefined, since a vector is zero. Drag along the map, or hold Shift with the arrow keys, for the MDS of a window. docs/method.md, sections 1 and 2.",
    body: outside,
    query: () => mapQuery(shownRun(), shownGroup(), state.kind),
    rows: async () => pairs(await readMap(shownGroup(), state.kind)),
    picture: () => svg,
  });

  function pairs(read) {
    const { step } = shownRun().checkpoint;
    const rows = [["i", "j", "step_i", "step_j", cosineColumn(state.kind)]];
    for (let i = 0; i < read.count; i++)
      for (let j = i; j < read.count; j++) {
        const [k, l] = [i * read.every, j * read.every];
        rows.push([k, l, step[k], step[l], Number(certain(read.cosine(i, j), read.uncertainty(i, j)))]);
      }
    return rows;
  }

  function showControls() {
    const group = shownGroup();
    const kinds = CHOICES.kind.map((kind) => [kind, kind, !group.maps[kind]]);
    const timed = hasTimes(shownRun());
    controls.replaceChildren(
      choice("Cosines of", "kind", kinds, state.kind, (kind) => change({ kind })),
      choice(
        "Axes",
        "axis",
        [
          ["index", "number"],
          ["step", "step", !timed],
          ["log", "log step", !timed],
        ],
        state.axis,
        (chosen) => change({ axis: chosen }),
      ),
      choice(
        "Colours from",
        "scale",
        [
          ["own", "this map"],
          ["common", "all maps"],
        ],
        state.scale,
        (scale) => change({ scale }),
      ),
    );
  }

  async function draw() {
    const run = shownRun();
    const group = shownGroup();
    const { kind } = state;
    const read = await readMap(group, kind);
    if (group !== shownGroup() || kind !== state.kind) return; // something else was chosen meanwhile
    map = read;
    axis = new Axis(run, state.axis, map.every);
    const width = Math.min(outside.clientWidth || 320, LARGEST);
    side = Math.max(120, width - MARGIN.left - MARGIN.right);
    const packed =
      state.scale === "common" ? run.groups.flatMap((each) => each.maps[kind] ?? []) : [group.maps[kind]];
    const scale = scaleOf(kind, map, packed, state.scale === "common");
    const pixels = Math.min(2000, Math.round(side * (window.devicePixelRatio || 1)));
    paint(canvas, map, scale, pixels, axis.rows(pixels));
    Object.assign(canvas.dataset, { x: MARGIN.left, y: MARGIN.top, size: side });
    for (const [name, value] of Object.entries({
      left: MARGIN.left,
      top: MARGIN.top,
      width: side,
      height: side,
    }))
      canvas.style.setProperty(name, `${value}px`);
    svg.setAttribute("viewBox", `0 0 ${width} ${side + MARGIN.top + MARGIN.bottom}`);
    svg.replaceChildren(
      frame(),
      ticks(),
      legend(scale),
      ...sourceLines(run),
      s(
        "g",
        {},
        ...findingMarks(run, axis, (at) => `M${MARGIN.left + at * side - 4} ${MARGIN.top - 9}h8l-4 7z`),
      ),
      marks,
    );
    surface.style.setProperty("width", `${width}px`); // the canvas and what is drawn over it keep together
    surface.style.setProperty("height", `${side + MARGIN.top + MARGIN.bottom}px`);
    surface.setAttribute(
      "aria-label",
      `Trajectory map of ${groupName(group)}: cosines of ${kind}. Arrow keys move, Shift and arrow keys choose a window.`,
    );
    thinned.hidden = map.every === 1;
    thinned.textContent = `One of every ${map.every} of the ${run.checkpoint.name.length} checkpoints; the store has all.`;
    point();
    document.documentElement.dataset.drawn ??= String(performance.now());
    firstDrawn();
  }

  const frame = () => s("rect", { x: MARGIN.left, y: MARGIN.top, width: side, height: side, class: "frame" });

  function ticks() {
    const group = s("g", { class: "ticks" });
    for (const row of axis.ticks(side)) {
      const at = axis.points[row] * side;
      const label = axis.label(row);
      group.append(
        s("line", {
          x1: MARGIN.left + at,
          x2: MARGIN.left + at,
          y1: MARGIN.top + side,
          y2: MARGIN.top + side + 5,
        }),
        s("text", { x: MARGIN.left + at, y: MARGIN.top + side + 18, "text-anchor": "middle" }, label),
        s("line", { x1: MARGIN.left - 5, x2: MARGIN.left, y1: MARGIN.top + at, y2: MARGIN.top + at }),
        s("text", { x: MARGIN.left - 8, y: MARGIN.top + at + 4, "text-anchor": "end" }, label),
      );
    }
    group.append(
      s("text", { x: MARGIN.left + side, y: MARGIN.top + side + 33, "text-anchor": "end" }, "step →"),
    );
    return group;
  }

  function legend(scale) {
    const parts = 64;
    const width = Math.min(260, side);
    const y = MARGIN.top + side + 46;
    const group = s("g", { class: "ticks" });
    for (let part = 0; part < parts; part++) {
      const value = scale.low + ((part + 0.5) / parts) * (scale.high - scale.low);
      group.append(
        s("rect", {
          x: MARGIN.left + (part * width) / parts,
          y,
          width: width / parts + 0.6,
          height: 12,
          fill: scale.css(value),
        }),
      );
    }
    for (const share of [0, 0.5, 1]) {
      const value = scale.low + share * (scale.high - scale.low);
      group.append(
        s(
          "text",
          { x: MARGIN.left + share * width, y: y + 27, "text-anchor": ["start", "middle", "end"][share * 2] },
          number(value, 3),
        ),
      );
    }
    if (width + 60 < side) group.append(s("text", { x: MARGIN.left + width + 10, y: y + 11 }, "cosine"));
    return group;
  }

  function sourceLines(run) {
    return borders(run).flatMap((k) => {
      const at = axis.edges[Math.ceil(k / axis.every)] * side;
      return [
        s("line", {
          x1: MARGIN.left + at,
          x2: MARGIN.left + at,
          y1: MARGIN.top,
          y2: MARGIN.top + side,
          class: "border",
        }),
        s("line", {
          y1: MARGIN.top + at,
          y2: MARGIN.top + at,
          x1: MARGIN.left,
          x2: MARGIN.left + side,
          class: "border",
        }),
      ];
    });
  }

  /** Show the cursor and the window, and say what is there. */
  function point() {
    const { i, j, a, b } = state;
    const texts = [];
    marks.replaceChildren();
    if (a >= 0 && b >= 0) {
      const [first, last] = [Math.min(a, b), Math.max(a, b)].map((k) => Math.floor(k / map.every));
      const [from, to] = [axis.edges[first] * side, axis.edges[last + 1] * side];
      for (const part of ["window under", "window"])
        marks.append(
          s("rect", {
            x: MARGIN.left + from,
            y: MARGIN.top + from,
            width: to - from,
            height: to - from,
            class: part,
          }),
        );
      const { mean, rows } = map.mean(first, last);
      texts.push(
        `window ${called(shownRun(), first * map.every)} … ${called(shownRun(), last * map.every)}, ${rows} checkpoints: ${MEAN_NAMES[state.kind]} ${number(mean)}`,
      );
    }
    if (i >= 0 && j >= 0) {
      const [x, y] = [j, i].map((k) => axis.points[Math.floor(k / map.every)] * side);
      const vertical = { x1: MARGIN.left + x, x2: MARGIN.left + x, y1: MARGIN.top, y2: MARGIN.top + side };
      const horizontal = { y1: MARGIN.top + y, y2: MARGIN.top + y, x1: MARGIN.left, x2: MARGIN.left + side };
      marks.append(
        ...[vertical, horizontal].map((line) => s("line", { ...line, class: "halo" })),
        s("line", { ...vertical, class: "cursor column" }),
        s("line", { ...horizontal, class: "cursor row" }),
        s("circle", { cx: MARGIN.left + x, cy: MARGIN.top + y, r: 5.5, class: "cursor under" }),
        s("circle", { cx: MARGIN.left + x, cy: MARGIN.top + y, r: 5.5, class: "cursor" }),
      );
      texts.unshift(reading(i, j));
    }
    output.textContent =
      texts.join(" · ") || "Point at the map, or focus it and press the arrow keys; drag to choose a window.";
    if (i >= 0 && j >= 0) addError(i, j, map);
  }

  function reading(i, j) {
    const [row, column] = [i, j].map((k) => Math.floor(k / map.every));
    const run = shownRun();
    return `${called(run, row * map.every)} × ${called(run, column * map.every)}: ${certain(map.cosine(row, column), map.uncertainty(row, column))}`;
  }

  /** Of samples, the standard error of what is read. */
  async function addError(i, j, read) {
    const packed = shownGroup().maps[`${state.kind}_error`];
    if (!packed) return;
    const errors = await unpack(packed);
    if (map !== read || state.i !== i || state.j !== j) return;
    const error = errors[map.place(Math.floor(i / map.every), Math.floor(j / map.every))];
    if (error >= 0)
      output.textContent = output.textContent.replace(
        reading(i, j),
        `${reading(i, j)} ± ${number(error, 2)}`,
      );
  }

  /** The checkpoints under the pointer, or null outside. */
  function under(event) {
    const box = surface.getBoundingClientRect();
    const [x, y] = [
      (event.clientX - box.left - MARGIN.left) / side,
      (event.clientY - box.top - MARGIN.top) / side,
    ];
    if (!map || Math.min(x, y) < 0 || Math.max(x, y) > 1) return null;
    return { i: axis.row(y) * map.every, j: axis.row(x) * map.every };
  }

  function onMove(event) {
    const place = under(event);
    if (place) change(dragged ? { ...place, b: place.j } : place);
  }

  function onDown(event) {
    const place = under(event);
    if (!place || event.button !== 0) return;
    surface.setPointerCapture(event.pointerId);
    dragged = true;
    change({ ...place, a: place.j, b: place.j });
  }

  function onUp() {
    if (dragged && state.a === state.b) change({ a: -1, b: -1 }); // a click is no window
    dragged = false;
  }

  function onKey(event) {
    const { every, count } = map;
    const moves = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      PageUp: [-10, 0],
      PageDown: [10, 0],
      Home: [0, -count],
      End: [0, count],
    };
    if (event.key === "Escape") change({ a: -1, b: -1 });
    if (!moves[event.key]) return;
    event.preventDefault();
    const moved = (k, by) =>
      Math.min(count - 1, Math.max(0, Math.floor(Math.max(0, k) / every) + by)) * every;
    const first = state.i < 0 || state.j < 0; // the first key shows where the cursor is
    const [i, j] = moves[event.key].map((by, at) => moved(at ? state.j : state.i, first ? 0 : by));
    if (!event.shiftKey) change({ i, j });
    else change({ i, j, a: state.a < 0 ? moved(state.j, 0) : state.a, b: j });
  }

  onChange((names) => {
    if (["run", "group", "kind", "axis", "scale"].some((name) => names.has(name))) {
      showControls();
      draw();
      refresh();
    } else if (map && ["i", "j", "a", "b"].some((name) => names.has(name))) point();
  });
  let width = 0;
  new ResizeObserver(() => {
    if (outside.clientWidth === width) return;
    width = outside.clientWidth;
    draw();
  }).observe(outside);
  showControls();
  return { section, drawn };
}
