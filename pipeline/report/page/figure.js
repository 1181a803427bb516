// What every figure has around its picture: a title, what it means, and what can be taken from it.

/**
 * A figure. What is under it is made when it is asked for:
 *   query: () => text of the SQL; rows: async () => [header, ...rows] of its numbers;
 *   picture: () => the SVG element to save, with canvases behind it if it has any; numbers: a table of rows.
 */
function figure({ id, title, meaning, method, body, query, rows, picture, table = true }) {
  const controls = h("div", { class: "controls" });
  const code = h("code", {});
  const copied = h("span", { role: "status" });
  const copy = async () => {
    await navigator.clipboard.writeText(query()).then(
      () => (copied.textContent = "copied"),
      () => getSelection().selectAllChildren(code),
    );
  };
  const sql = h(
    "details",
    { class: "sql", ontoggle: () => (code.textContent = query()) },
    h("summary", {}, "SQL"),
    h("pre", { tabindex: 0 }, code),
    h("button", { type: "button", onclick: copy }, "Copy"),
    copied,
  );
  const numbers = h("details", { class: "numbers", ontoggle: () => refresh() }, h("summary", {}, "Numbers"));
  const refresh = async () => {
    code.textContent = query();
    copied.textContent = "";
    if (table && numbers.open)
      numbers.replaceChildren(numbers.firstChild, tableOf(await rows(), `Numbers: ${title}`));
  };
  const save = [
    ["CSV", async () => download(`${id}.csv`, "text/csv", csv(await rows()))],
    ...(picture
      ? [
          ["SVG", () => download(`${id}.svg`, "image/svg+xml", svgText(picture()))],
          ["PNG", async () => download(`${id}.png`, "image/png", await png(picture()))],
        ]
      : []),
  ];
  const section = h(
    "section",
    { id, class: "figure", "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title),
    h("p", { class: "meaning" }, meaning),
    controls,
    body,
    h(
      "div",
      { class: "under" },
      ...save.map(([name, act]) =>
        h("button", { type: "button", onclick: act, "aria-label": `${name} of ${title}` }, name),
      ),
      sql,
      table ? numbers : null,
      h("details", { class: "method" }, h("summary", {}, "Method"), h("p", {}, method)),
    ),
  );
  return { section, controls, refresh };
}

/** At most this many rows are shown as a table; a file has them all. */
const MOST_ROWS = 1000;

function tableOf([header, ...rows], label) {
  const cell = (value) => h("td", {}, typeof value === "number" ? number(value, 6) : (value ?? "–"));
  return h(
    "div",
    { class: "scrolls", tabindex: 0, role: "region", "aria-label": label },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...header.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...rows.slice(0, MOST_ROWS).map((row) => h("tr", {}, ...row.map(cell)))),
    ),
    rows.length > MOST_ROWS
      ? h("p", {}, `The first ${MOST_ROWS} of ${rows.length.toLocaleString("en")} rows; CSV has all.`)
      : null,
  );
}

function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    const text = String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function download(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const PRESENTATION = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "font-family",
  "font-size",
  "font-weight",
  "text-anchor",
  "opacity",
];

/** A table of canvases or coloured numbers as an SVG element. */
function tablePicture(table) {
  const frame = table.getBoundingClientRect();
  const svg = s("svg", { viewBox: `0 0 ${Math.ceil(frame.width)} ${Math.ceil(frame.height)}` });
  for (const element of table.querySelectorAll("caption, th, canvas, .grid-numbers td button, .keys td")) {
    const box = element.getBoundingClientRect();
    const [x, y] = [box.left - frame.left, box.top - frame.top];
    const { fontSize, fontFamily, color, backgroundColor } = getComputedStyle(element);
    const place = { x, y, width: box.width, height: box.height };
    if (element.tagName === "CANVAS") svg.append(s("image", { href: element.toDataURL(), ...place }));
    else
      svg.append(
        s("rect", { ...place, fill: backgroundColor }),
        s(
          "text",
          {
            x: x + box.width / 2,
            y: y + box.height / 2 + 4,
            "text-anchor": "middle",
            fill: color,
            "font-size": fontSize,
            "font-family": fontFamily,
          },
          element.textContent,
        ),
      );
  }
  return svg;
}

/** An SVG element as a file: styles become attributes, and the canvas behind it an image. */
function svgText(svg) {
  return svg.isConnected ? serialized(standingAlone(svg)) : serialized(svg);
}

function standingAlone(svg) {
  const copy = svg.cloneNode(true);
  const originals = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, at) => {
    const style = getComputedStyle(originals[at]);
    for (const name of PRESENTATION) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  for (const canvas of svg.parentElement.querySelectorAll("canvas")) {
    const { x, y, size } = canvas.dataset;
    copy.prepend(s("image", { href: canvas.toDataURL(), x, y, width: size, height: size }));
  }
  return copy;
}

function serialized(svg) {
  const { width, height } = svg.viewBox.baseVal;
  svg.prepend(s("rect", { width, height, fill: getComputedStyle(document.body).backgroundColor }));
  for (const [name, value] of Object.entries({ xmlns: SVG, width, height })) svg.setAttribute(name, value);
  return new XMLSerializer().serializeToString(svg);
}

const PIXELS = 2; // of a saved PNG, for each of the page

async function png(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgText(svg))}`;
  await image.decode();
  const { width, height } = svg.viewBox.baseVal;
  const canvas = h("canvas", { width: width * PIXELS, height: height * PIXELS });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done));
}
