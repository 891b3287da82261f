// An index of known stills: its files are read as index.py leaves them, its scores and its rule are vectors.py's.

const FORMAT = "movie-by-frame index 2";
const MAX_STILLS = 100_000; // what a plain loop searches
const [MEAN, SECOND, MANY] = [0.75, 0.3, 4]; // as vectors.py
const KINDS = { i1: Int8Array, u1: Uint8Array, f4: Float32Array, i8: BigInt64Array };

async function read(place, name) {
  const response = await fetch(new URL(name, place)).catch(() => null);
  if (!response?.ok) throw failure(name);
  return response;
}

const readBytes = async (...where) => new Uint8Array(await (await read(...where)).arrayBuffer());

// an array of an .npy file, or of an .npz, where numpy puts such files one after another as they are
function readArray(bytes, name = "") {
  const text = new TextDecoder("latin1").decode(bytes); // a letter a byte
  const start = text.indexOf("NUMPY", text.indexOf(`${name}.npy`));
  const end = text.indexOf("\n", start) + 1;
  const [, kind, size, order, sides] = text.slice(start, end).match(/'[<|](\w)(\d+)'.*: (\w+),.*\((.*)\)/);
  const type = kind === "U" ? Uint32Array : KINDS[kind + size];
  const length = sides.match(/\d+/g).reduce((product, side) => product * side, kind === "U" ? size : 1);
  const array = new type(bytes.slice(end, end + length * type.BYTES_PER_ELEMENT).buffer);
  return Object.assign(array, { byColumn: order === "True" });
}

function fromBase64(text, type) {
  return new type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const failure = (detail) => Object.assign(new Error(), { key: "index", detail });

// places: URLs where index.json may lie; contract: model.json. Gives {} where there is none
export async function openIndex(places, contract) {
  const load = async (place) => ({ place, ...(await (await read(place, "index.json")).json()) });
  const state = (await Promise.all(places.map((place) => load(place).catch(() => null)))).find(Boolean);
  if (!state) return {};
  const { place, format, model, basis, rule, films } = state;
  if (format !== FORMAT) throw failure(String(format));
  const made = contract.self_test.fingerprint ?? model.fingerprint; // exports before 2026-12 have none
  const [ours, theirs] = [made, model.fingerprint].map((text) => fromBase64(text, Float32Array));
  const apart = Math.hypot(...theirs.map((value, k) => value - ours[k])) / Math.hypot(...theirs);
  if (model.architecture !== contract.architecture || !(apart < 0.4)) throw failure(model.architecture);
  const known = Object.entries(films).filter(([, film]) => film.vectors);
  if (!known.length) throw failure("index.json");
  if (known.reduce((sum, [, film]) => sum + film.stored, 0) > MAX_STILLS) return { many: true };
  const projection = await readBytes(place, basis);
  const open = async ([title, { vectors, frames, middle }]) => ({
    title, frames, middle: fromBase64(middle, Float16Array),
    rows: readArray(await readBytes(place, vectors)),
  });
  const [project, offset] = ["project", "offset"].map((name) => readArray(projection, name));
  return { place, rule, project, offset, films: await Promise.all(known.map(open)) };
}

function projectOne({ project, offset }, embedding) {
  const [down, across] = project.byColumn ? [1, embedding.length] : [offset.length, 1];
  const vector = offset.map((shift, column) => {
    let sum = -shift;
    for (let row = 0; row < embedding.length; row++) sum += embedding[row] * project[row * down + column * across];
    return sum;
  });
  const length = Math.max(Math.hypot(...vector), 1e-9);
  return vector.map((value) => value / length);
}

function compare({ rows, middle, ...film }, vector) {
  let [nearest, still] = [-1, 0];
  for (let start = 0; start < rows.length; start += vector.length) {
    let [dot, square] = [0, 0];
    for (let k = 0; k < vector.length; k++) {
      dot += rows[start + k] * vector[k];
      square += rows[start + k] ** 2;
    }
    const similarity = dot / Math.max(Math.sqrt(square), 1e-9);
    if (similarity > nearest) [nearest, still] = [similarity, start / vector.length];
  }
  const whole = middle.reduce((sum, value, k) => sum + value * vector[k], 0);
  return { ...film, still, likeness: (nearest + MEAN * whole) / (1 + MEAN) };
}

// an answer by the films nearest to an embedding, as Index.answers of index.py; it names its nearest still
export function search(index, embedding) {
  const vector = projectOne(index, embedding);
  const found = index.films.map((film) => compare(film, vector));
  const [first, second] = found.map((film) => film.likeness).sort((a, b) => b - a);
  const against = (likeness) => (found.length < MANY ? 0 : SECOND * (likeness === first ? second : first));
  for (const film of found) film.score = film.likeness - against(film.likeness);
  const best = found.sort((a, b) => b.score - a.score).slice(0, 3);
  const { movie, shortlist, slope, shift } = index.rule;
  const [{ score }] = best;
  const kind = score >= movie ? "movie" : score >= shortlist ? "shortlist" : "unknown";
  const sure = (value) => 1 / (1 + Math.exp(-(slope * value + shift)));
  const candidates = best.map((film) => ({ title: film.title, confidence: sure(film.score) }));
  return { kind, candidates, nearest: best[0] };
}

// file, time in milliseconds (-1: not known) and thumbnail of a still that search named
export async function readStill({ place }, { frames, still }) {
  const bytes = await readBytes(place, frames);
  const [names, times, ends, thumbs] = ["name", "time", "ends", "thumbs"].map((part) => readArray(bytes, part));
  const width = names.length / times.length;
  const file = String.fromCodePoint(...names.slice(still * width, (still + 1) * width)).replace(/\0+$/, "");
  const jpeg = thumbs.slice(Number(ends[still - 1] ?? 0), Number(ends[still]));
  return { file, time: Number(times[still]), thumbnail: new Blob([jpeg], { type: "image/jpeg" }) };
}
