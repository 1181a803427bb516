// Arrays that pipeline/report/packing.py has packed, and trajectory maps made of them.

const unpacking = new WeakMap();

/** The values of a packed array as a Float64Array, NaN where undefined; each is read once. */
function unpack(packed) {
  if (!unpacking.has(packed))
    unpacking.set(
      packed,
      inflated(packed).then((planes) => decoded(packed, planes)),
    );
  return unpacking.get(packed);
}

async function inflated(packed) {
  const text = atob(packed.data);
  const bytes = new Uint8Array(text.length); // filled by a loop: `from` with a function takes eight times as long
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function decoded({ width, low, high }, planes) {
  const codes = 256 ** width;
  const level = (high - low) / (codes - 2);
  const count = planes.length / width;
  const result = new Float64Array(count);
  let code = 0;
  for (let at = 0; at < count; at++) {
    let step = 0;
    for (let plane = 0; plane < width; plane++) step = step * 256 + planes[plane * count + at];
    code = (code + step) % codes;
    result[at] = code === codes - 1 ? NaN : low + code * level;
  }
  return result;
}

/** Cosines of all pairs of the checkpoints 0, every, 2 every, … */
class TrajectoryMap {
  constructor(packed, every, halfChords) {
    this.every = every;
    this.count = Math.round((Math.sqrt(8 * halfChords.length + 1) - 1) / 2);
    this.halfChords = halfChords;
    this.halfLevel = (packed.high - packed.low) / (256 ** packed.width - 2) / 2;
  }

  place(i, j) {
    const first = Math.min(i, j);
    const last = Math.max(i, j);
    return first * this.count - (first * (first - 1)) / 2 + (last - first);
  }

  cosine(i, j) {
    return 1 - 2 * this.halfChords[this.place(i, j)] ** 2;
  }

  /** How far the cosine may be from the store's. */
  uncertainty(i, j) {
    return 4 * this.halfChords[this.place(i, j)] * this.halfLevel + 2 * this.halfLevel ** 2;
  }

  /** The mean over all ordered pairs of the defined rows first … last, and their number. */
  mean(first, last) {
    const rows = [];
    for (let i = first; i <= last; i++) if (!Number.isNaN(this.cosine(i, i))) rows.push(i);
    let sum = 0;
    for (const i of rows) for (const j of rows) sum += this.cosine(i, j);
    return { mean: sum / rows.length ** 2, rows: rows.length };
  }
}

/** A group's map of a kind: "weights", "displacements" or "increments"; null if the page has none. */
async function readMap(group, kind) {
  const packed = group.maps[kind];
  return packed ? new TrajectoryMap(packed, group.maps.every, await unpack(packed)) : null;
}

/** The least cosine of a map, which is known before it is read. */
const leastCosine = (packed) => 1 - 2 * packed.high ** 2;
