// Colour scales of even lightness, computed in OKLCH. No two of their colours differ in red against
// green alone, and both read in grey.

/** sRGB of a colour in OKLCH; one that screens do not have loses chroma until they do. */
function fromOklch(lightness, chroma, hue) {
  const angle = (hue / 180) * Math.PI;
  for (let kept = chroma; ; kept -= 0.004) {
    const [a, b] = [Math.max(0, kept) * Math.cos(angle), Math.max(0, kept) * Math.sin(angle)];
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const linear = [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * short,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * short,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * short,
    ];
    if (kept <= 0 || linear.every((part) => part >= -0.0005 && part <= 1.0005)) return linear.map(toSrgb);
  }
}

function toSrgb(linear) {
  const part = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (part <= 0.0031308 ? 12.92 * part : 1.055 * part ** (1 / 2.4) - 0.055));
}

const fromSrgb = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);

const COLOURS = 256;
const coloursOf = (colour) => Array.from({ length: COLOURS }, (_, at) => colour(at / (COLOURS - 1)));

/** Dark blue over red and orange to light yellow, as lightness rises evenly. */
const SEQUENTIAL = coloursOf((t) =>
  fromOklch(0.17 + 0.79 * t, 0.05 + 0.12 * Math.sin((Math.PI * t) / 1.22), 278 + 187 * t ** 0.85),
);

/** Blue below zero, orange above it, light at zero. */
const DIVERGING = coloursOf((t) => {
  const away = Math.abs(2 * t - 1);
  return fromOklch(0.96 - 0.5 * away, 0.17 * away, t < 0.5 ? 255 : 55);
});

/** What gives each value its colour: the table, and the values at its ends. */
class ColourScale {
  constructor(colours, low, high) {
    Object.assign(this, { colours, low, high: high > low ? high : low + 1e-12 });
  }

  /** The place of a value's colour in the table. */
  place(value) {
    const share = (value - this.low) / (this.high - this.low);
    return Math.round(Math.min(1, Math.max(0, share)) * (COLOURS - 1));
  }

  colour(value) {
    return this.colours[this.place(value)];
  }

  css(value) {
    return `rgb(${this.colour(value).join(" ")})`;
  }

  /** Black or white, whichever has the greater contrast: 4.5 at least (WCAG 2.2, relative luminance). */
  inkOn(value) {
    const [red, green, blue] = this.colour(value).map((part) => fromSrgb(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  }
}

/** The scale of a map: from its own least cosine, or the least of all these packed maps. */
function scaleOf(kind, map, packedMaps, common) {
  if (kind !== "increments") return new ColourScale(SEQUENTIAL, Math.min(...packedMaps.map(leastCosine)), 1);
  const bound = common || !map ? 1 : largestOffDiagonal(map);
  return new ColourScale(DIVERGING, -bound, bound);
}

/** The size of cosine that 98 % of the pairs of different checkpoints do not exceed. */
function largestOffDiagonal(map) {
  const sizes = [];
  for (let i = 0; i < map.count; i++)
    for (let j = i + 1; j < map.count; j++) {
      const size = Math.abs(map.cosine(i, j));
      if (size >= 0) sizes.push(size);
    }
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
}

/** Draw a map on a canvas of width² pixels; `places` gives the row of each pixel. Undefined: transparent. */
function paint(canvas, map, scale, width, places) {
  canvas.width = canvas.height = width;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, width);
  const pixels = new Uint32Array(image.data.buffer);
  const table = Uint32Array.from(
    scale.colours,
    ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red,
  );
  const coloured = new Uint32Array(map.halfChords.length);
  map.halfChords.forEach((half, at) => {
    if (!Number.isNaN(half)) coloured[at] = table[scale.place(1 - 2 * half ** 2)];
  });
  for (let y = 0; y < width; y++)
    for (let x = 0; x < width; x++) pixels[y * width + x] = coloured[map.place(places[y], places[x])];
  context.putImageData(image, 0, 0);
}

/** Rows of a map by pixel, each as wide as the next. */
const evenPlaces = (count, width) =>
  Int32Array.from({ length: width }, (_, at) => Math.floor((at * count) / width));
