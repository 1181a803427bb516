// Elements, made without markup: whatever text is given stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `on…` properties listen, `class` and attributes are set, children may be texts. */
function h(tag, properties = {}, ...children) {
  return furnished(document.createElement(tag), properties, children);
}

/** An SVG element, likewise. */
function s(tag, properties = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), properties, children);
}

function furnished(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return filled(element, ...children);
}

/** An element with these children alone; null is none. */
function filled(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

let numbered = 0;

/** A new id. */
function newId() {
  numbered += 1;
  return `e${numbered}`;
}

/** A labelled choice among few, as radio buttons. */
function choice(label, name, options, chosen, onchoose) {
  const id = newId();
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, label),
    ...options.map(([value, text, disabled]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: id,
          value,
          checked: value === chosen,
          disabled,
          "data-choice": name,
          onchange: () => onchoose(value),
        }),
        h("span", {}, text),
      ),
    ),
  );
}

/** A labelled list to choose from; options are [value, text], or [label, [options]] as groups. */
function select(label, options, chosen, onchoose) {
  const option = ([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text);
  return h(
    "label",
    { class: "select" },
    h("span", {}, label),
    h(
      "select",
      { onchange: (event) => onchoose(event.target.value) },
      ...options.map(([value, text]) =>
        Array.isArray(text) ? h("optgroup", { label: value }, ...text.map(option)) : option([value, text]),
      ),
    ),
  );
}

/** A number for reading: `digits` significant ones. */
function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(digits - 1);
  if (Math.abs(value) >= 10 ** digits) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

/** A cosine with as many digits as are certain. */
function certain(value, uncertainty) {
  if (Number.isNaN(value)) return "undefined";
  const digits = Math.floor(-Math.log10(2 * Math.max(uncertainty, 1e-9)));
  return value.toFixed(Math.min(6, Math.max(2, digits)));
}

const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; count >= 1024 && at < units.length - 1; at++) count /= 1024;
  return `${number(count)} ${units[at]}`;
};
