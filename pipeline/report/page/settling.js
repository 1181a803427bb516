// When each layer and role came near its end: bars from the first step.

function settling() {
  const svg = s("svg", { role: "img", "aria-label": "When each part settled" });
  const outside = h("div", { class: "bars" }, svg);
  const chosen = () =>
    shownRun().groups.filter(({ scope }) => ["model", "layer", "component"].includes(scope));
  const { section, refresh } = figure({
    id: "settling",
    title: "When each part settled",
    meaning:
      "A bar ends at the step from which the weights stay within 5 % of their whole displacement from where they end; the point marks when the direction was final to 8°, the line when a random walk would have settled.",
    method:
      "settled_step: the first step from which ‖θT − θk‖ ≤ 0.05 ‖θT − θ0‖ for good. saturation_step: the first from which cos(θk − θ0, θT − θ0) ≥ 0.99 for good. Where weights were does not say that they could have been frozen there: docs/method-2.md, section 5.6. docs/method.md, section 2.",
    body: outside,
    query: () => settlingQuery(shownRun()),
    rows: async () => [
      ["weights", "settled_step", "saturation_step", "random walk settles"],
      ...chosen().map((group) => [
        groupName(group),
        indicatorValue(group, "settled_step"),
        indicatorValue(group, "saturation_step"),
        nullValueOf(group, "settled_step"),
      ]),
    ],
    picture: () => svg,
  });
  let width = 0;
  function show() {
    width = Math.max(240, outside.clientWidth);
    const groups = chosen().filter((group) => indicatorValue(group, "settled_step") !== null);
    const run = shownRun();
    const known = run.checkpoint.step.filter((step) => step !== null);
    const [first, last] = known.length
      ? [Math.min(...known), Math.max(...known)]
      : [0, run.checkpoint.name.length - 1];
    section.hidden = !groups.length; // of several sources together nothing settles
    const line = 19;
    const left = Math.min(170, width / 2.6);
    const height = groups.length * line + 46;
    const x = (step) => left + ((width - left - 24) * (step - first)) / (last - first || 1);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.setProperty("height", `${height}px`);
    svg.setAttribute(
      "aria-label",
      "Steps from which each part of the network stayed near its end; the same as numbers below",
    );
    svg.replaceChildren(
      ...groups.map((group, at) => {
        const y = at * line + 6;
        const [settled, saturated, walk] = [
          indicatorValue(group, "settled_step"),
          indicatorValue(group, "saturation_step"),
          nullValueOf(group, "settled_step"),
        ];
        return s(
          "g",
          {},
          s("title", {}, `${groupName(group)}: settled ${settled}, direction final ${saturated}`),
          s(
            "text",
            { x: left - 8, y: y + 12, "text-anchor": "end", class: "tick" },
            groupName(group).replace(", all layers", ""),
          ),
          s("rect", {
            x: x(first),
            y: y + 3,
            width: Math.max(1, x(settled) - x(first)),
            height: line - 8,
            class: "settled",
          }),
          walk === null
            ? ""
            : s("line", { x1: x(walk), x2: x(walk), y1: y + 1, y2: y + line - 3, class: "walk" }),
          saturated === null
            ? ""
            : s("circle", { cx: x(saturated), cy: y + line / 2 - 1, r: 4, class: "value" }),
        );
      }),
      s(
        "g",
        { class: "ticks" },
        ...[0, 0.25, 0.5, 0.75, 1].map((share) =>
          s(
            "text",
            { x: x(first + share * (last - first)), y: groups.length * line + 22, "text-anchor": "middle" },
            shortStep(Math.round(first + share * (last - first))),
          ),
        ),
        s("text", { x: x(last), y: groups.length * line + 38, "text-anchor": "end" }, known.length ? "step →" : "checkpoint →"),
      ),
    );
    refresh();
  }
  onChange((names) => names.has("run") && show());
  new ResizeObserver(() => outside.clientWidth !== width && show()).observe(outside);
  return section;
}
