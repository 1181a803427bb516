// How the path turns at every scale, beside a random walk and what rounding makes of a straight path.

const TURNS = [1, 2, 4, 8, 16].map((scale) => ({
  scale,
  indicator: scale === 1 ? "mean_update_angle_deg" : `mean_turn_${scale}_deg`,
}));

function turns() {
  const svg = s("svg", { role: "img", "aria-label": "Turn by scale" });
  const outside = h("div", { class: "components" }, svg);
  /** The scales at which the group has a turn. */
  const known = () =>
    TURNS.map(({ scale, indicator }, at) => ({
      scale,
      turn: indicatorValue(shownGroup(), indicator),
      error: (shownGroup().stderr ?? [])[CONTENT.indicators.indexOf(indicator)] ?? null,
      straight: shownGroup().straight_turns[at],
    })).filter(({ turn }) => turn !== null);
  const { section, refresh } = figure({
    id: "turns",
    title: "Turn by scale",
    meaning:
      "The mean angle between the way of the h checkpoints before and of the h after. A random walk turns by 90° (dashed) at every scale: where the angle falls with h, the path drifts under its noise; where it rises above 90°, it turns back. The shaded bars reach up to what rounding of the stored weights alone makes of a straight path.",
    method:
      "Means over the checkpoints of ∠(θk − θk−h, θk+h − θk), and of straight_turn_h_deg of the view path. A turn does not differ from a straight path if it is at most 5° above its bar; where that reaches 85° it says nothing. Bars: 1.96 standard errors of a sample or an estimate. docs/method-2.md, sections 5.1 to 5.3.",
    body: outside,
    query: () => turnsQuery(shownRun(), shownGroup()),
    rows: async () => [
      ["scale", "mean_turn_deg", "stderr", "straight_turn_deg"],
      ...known().map(({ scale, turn, error, straight }) => [scale, turn, error, straight]),
    ],
    picture: () => svg,
  });
  let width = 0;

  function draw() {
    const scales = known();
    section.hidden = !scales.length;
    if (section.hidden) return;
    width = Math.max(240, outside.clientWidth);
    const height = 260;
    const [left, bottom] = [40, 34];
    const step = (width - left - 10) / scales.length;
    const most = Math.max(100, ...scales.map(({ turn, error }) => Math.min(180, turn + 1.96 * error)));
    const y = (angle) => 20 + (height - 20 - bottom) * (1 - Math.min(180, Math.max(0, angle)) / most);
    const x = (at) => left + (at + 0.5) * step;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.setProperty("height", `${height}px`);
    svg.setAttribute("aria-label", `Mean turn of ${groupName(shownGroup())}: ${scales.map(meaningOf).join("; ")}`);
    svg.replaceChildren(
      s("text", { x: left, y: 12, class: "title" }, `${groupName(shownGroup())}, degrees`),
      ...scales.map(({ straight }, at) =>
        straight === null
          ? ""
          : s("rect", {
              x: x(at) - step * 0.3,
              width: step * 0.6,
              y: y(straight),
              height: y(0) - y(straight),
              class: "floor",
            }),
      ),
      s(
        "g",
        { class: "ticks" },
        s("line", { x1: left, x2: width - 10, y1: y(0), y2: y(0), class: "rail" }),
        s("line", { x1: left, x2: width - 10, y1: y(90), y2: y(90), class: "right-angle" }),
        ...[0, 45, 90].map((angle) => s("text", { x: left - 6, y: y(angle) + 4, "text-anchor": "end" }, angle)),
        ...scales.map(({ scale }, at) => s("text", { x: x(at), y: y(0) + 16, "text-anchor": "middle" }, scale)),
        s("text", { x: width - 10, y: height - 3, "text-anchor": "end" }, "h, checkpoints →"),
      ),
      s("path", { d: scales.map(({ turn }, at) => `${at ? "L" : "M"}${x(at)} ${y(turn)}`).join(""), class: "curve" }),
      ...scales.map((each, at) =>
        s(
          "g",
          {},
          s("title", {}, meaningOf(each)),
          s("line", {
            x1: x(at),
            x2: x(at),
            y1: y(each.turn - 1.96 * each.error),
            y2: y(each.turn + 1.96 * each.error),
            class: "error",
          }),
          s("circle", { cx: x(at), cy: y(each.turn), r: 4, class: "value" }),
          s("rect", { x: x(at) - step / 2, width: step, y: 20, height: y(0) - 20, class: "over" }),
        ),
      ),
    );
    refresh();
  }

  const meaningOf = ({ scale, turn, error, straight }) =>
    `h = ${scale}: ${number(turn)}°${error > 0 ? ` ± ${number(error, 2)}°` : ""}${straight === null ? "" : `, a straight path rounded ${number(straight, 3)}°`}`;

  onChange((names) => (names.has("run") || names.has("group")) && draw());
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  draw();
  return section;
}
