// The path in its first two principal components, and the spectrum, each beside a random walk's.

/** The group whose components are shown: the chosen one, or the whole model where the page has none of it. */
const withComponents = () =>
  shownGroup().pc1 ? shownGroup() : (shownRun().groups.find((group) => group.pc1) ?? null);

function pathInComponents() {
  const svg = s("svg", { role: "img", "aria-label": "Path in its first two components" });
  const outside = h("div", { class: "components" }, svg);
  const { section, refresh } = figure({
    id: "path",
    title: "Path in its first two components",
    meaning:
      "Left the run's path, right that of a random walk with the same step lengths: a smooth arc alone is no sign of structure, since every walk shows one. Points are dark at the first checkpoint and light at the last; below, the shares of the variance along each axis.",
    method:
      "Principal components of the centered trajectory: coordinates √λ u of the eigenvectors u of H G H, G the Gram matrix of the displacements. The walk's come from its expected Gram matrix. Signs such that the last checkpoint lies at positive coordinates. docs/method.md, section 2.",
    body: outside,
    query: () => projectionQuery(shownRun(), withComponents() ?? shownGroup()),
    rows: async () => {
      const group = withComponents();
      const [first, second] = group ? await Promise.all([unpack(group.pc1), unpack(group.pc2)]) : [[], []];
      return [
        ["k", "pc1", "pc2"],
        ...[...first].map((value, k) => [k, Number(value.toPrecision(5)), Number(second[k].toPrecision(5))]),
      ];
    },
    picture: () => svg,
  });
  let width = 0;
  let points = null;

  async function draw() {
    const group = withComponents();
    if (!group) return;
    const read = await Promise.all(
      [group.pc1, group.pc2, group.walk?.pc1, group.walk?.pc2].map((packed) => packed && unpack(packed)),
    );
    if (group !== withComponents()) return;
    width = Math.max(240, outside.clientWidth);
    const panels = read[2] ? 2 : 1;
    const side = Math.min(380, (width - 24 * (panels - 1)) / panels);
    svg.setAttribute(
      "aria-label",
      `Path of ${groupName(group)} in its first two principal components${panels > 1 ? ", beside a random walk's" : ""}; the same as numbers below`,
    );
    const reach = (all) =>
      Math.max(
        ...all
          .filter(Boolean)
          .flatMap((values) => [...values].filter((value) => !Number.isNaN(value)).map(Math.abs)),
        1e-300,
      );
    const size = reach(read);
    const height = side * Math.max(0.4, reach([read[1], read[3]]) / size);
    svg.setAttribute("viewBox", `0 0 ${width} ${height + 42}`);
    svg.style.setProperty("height", `${height + 42}px`);
    points = [];
    svg.replaceChildren(
      panel(read[0], read[1], 0, side, height, size, groupName(group), group.shares, true),
      read[2]
        ? panel(read[2], read[3], side + 24, side, height, size, "random walk", group.walk.shares, false)
        : "",
    );
    point();
    refresh();
  }

  function panel(first, second, left, side, height, size, title, shares, ours) {
    const x = (value) => left + side / 2 + (value / size) * (side / 2 - 14);
    const y = (value) => 22 + height / 2 - (value / size) * (side / 2 - 14);
    const group = s(
      "g",
      {},
      s("text", { x: left + 2, y: 14, class: "title" }, title),
      s("rect", { x: left + 0.5, y: 22.5, width: side - 1, height: height - 1, class: "frame" }),
      s("line", { x1: x(-size), x2: x(size), y1: y(0), y2: y(0), class: "rail" }),
      s("line", { y1: 34, y2: 10 + height, x1: x(0), x2: x(0), class: "rail" }),
      s("text", { x: left + 2, y: height + 38, class: "tick" }, `→ ${percent(shares, 0)}, ↑ ${percent(shares, 1)}`),
    );
    let d = "";
    const dots = [];
    const starts = new Set(borders(shownRun()));
    first.forEach((value, k) => {
      if (Number.isNaN(value)) return;
      d += `${d && !starts.has(k) ? "L" : "M"}${x(value).toFixed(1)} ${y(second[k]).toFixed(1)}`;
      const dot = s("circle", {
        cx: x(value),
        cy: y(second[k]),
        r: 3,
        fill: `rgb(${SEQUENTIAL[Math.round((200 * k) / Math.max(1, first.length - 1))].join(" ")})`,
        class: "dot",
      });
      if (ours) points[k] = dot;
      dots.push(dot);
    });
    group.append(s("path", { d, class: ours ? "curve" : "curve walk-path" }), ...dots);
    return group;
  }

  const percent = (shares, at) => `${number(100 * (shares?.[at] ?? 0), 2)} %`;

  const point = () =>
    points?.forEach((dot, k) => {
      dot.setAttribute("r", k === state.i || k === state.j ? 7 : 3);
    });

  onChange((names) => {
    if (names.has("run") || names.has("group")) draw();
    else if (names.has("i") || names.has("j")) point();
  });
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  return section;
}

function spectrum() {
  const svg = s("svg", { role: "img", "aria-label": "Spectrum" });
  const outside = h("div", { class: "components" }, svg);
  const { section, refresh } = figure({
    id: "spectrum",
    title: "Spectrum",
    meaning:
      "Shares of the variance in the principal components of the path; lines: a random walk's. Two components that hold three quarters are what pure noise shows, too.",
    method:
      "Eigenvalues of H G H over their sum, the first ten. For even steps a random walk has 6 / (π² r²): 0.61, 0.15, 0.07, … docs/method.md, section 2.",
    body: outside,
    query: () => spectrumQuery(shownRun(), withComponents() ?? shownGroup()),
    rows: async () => {
      const group = withComponents();
      return [
        ["rank", "share", "random walk"],
        ...(group?.shares ?? []).map((share, at) => [at + 1, share, group.walk?.shares[at] ?? null]),
      ];
    },
    picture: () => svg,
  });
  let width = 0;
  function draw() {
    const group = withComponents();
    if (!group?.shares) return;
    width = Math.max(240, outside.clientWidth);
    const height = 260;
    const [left, bottom] = [40, 34];
    const step = (width - left - 10) / group.shares.length;
    const y = (share) => 20 + (height - 20 - bottom) * (1 - share);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.setProperty("height", `${height}px`);
    svg.setAttribute(
      "aria-label",
      `Shares of the principal components of ${groupName(group)}: ${group.shares
        .slice(0, 3)
        .map((share) => number(share, 3))
        .join(", ")} …`,
    );
    svg.replaceChildren(
      s("text", { x: left, y: 12, class: "title" }, groupName(group)),
      ...[0, 0.5, 1].map((share) =>
        s(
          "g",
          { class: "ticks" },
          s("line", { x1: left, x2: width - 10, y1: y(share), y2: y(share), class: "rail" }),
          s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, share),
        ),
      ),
      ...group.shares.map((share, at) => {
        const x = left + at * step;
        const walk = group.walk?.shares[at];
        return s(
          "g",
          { class: "ticks" },
          s("rect", {
            x: x + step * 0.2,
            width: step * 0.6,
            y: y(share ?? 0),
            height: y(0) - y(share ?? 0),
            class: "settled",
          }),
          walk === undefined || walk === null
            ? ""
            : s("line", { x1: x + step * 0.1, x2: x + step * 0.9, y1: y(walk), y2: y(walk), class: "walk" }),
          s("text", { x: x + step / 2, y: y(0) + 16, "text-anchor": "middle" }, at + 1),
        );
      }),
      s("text", { x: width - 10, y: height - 3, "text-anchor": "end", class: "tick" }, "component →"),
    );
    refresh();
  }
  onChange((names) => (names.has("run") || names.has("group")) && draw());
  new ResizeObserver(() => outside.clientWidth !== width && draw()).observe(outside);
  return section;
}
