// An index of known stills: its files are read as index.py leaves them, scores are those of answering/projection.py.

const FORMAT = "movie-by-frame index 3";
const MAX_STILLS = 100_000; // what a plain loop searches
const KINDS = { i1: Int8Array, u1: Uint8Array, f4: Float32Array, i8: BigInt64Array };

export const failure = (key, detail = "") => Object.assign(new Error(), { key, detail });

// of any file beside the page; key: of the sentence where there is none
export async function read(url, key = "index") {
  const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw failure(key, new URL(url).pathname);
  return response;
}

// what readArray takes: a file's bytes, and the same with a letter a byte
async function readFile(...url) {
  const bytes = new Uint8Array(await (await read(new URL(...url))).arrayBuffer());
  return { bytes, text: new TextDecoder("latin1").decode(bytes) };
}

// an array of an .npy file, or of an .npz, where numpy puts such files one after another as they are
function readArray({ bytes, text }, name = "") {
  const start = text.indexOf("NUMPY", text.indexOf(`${name}.npy`));
  const end = text.indexOf("\n", start) + 1;
  const [, kind, size, order, sides] = text.slice(start, end).match(/'[<|](\w)(\d+)'.*: (\w+),.*\((.*)\)/);
  const type = kind === "U" ? Uint32Array : KINDS[kind + size];
  const length = sides.match(/\d+/g).reduce((product, side) => product * side, kind === "U" ? size : 1);
  const array = new type(bytes.slice(end, end + length * type.BYTES_PER_ELEMENT).buffer);
  if (array.length < length) throw failure("index", `${name}.npy`);
  return Object.assign(array, { byColumn: order === "True" });
}

function fromBase64(text, type) {
  return new type(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

// both rows of a fingerprint about their means
function centre(values) {
  const half = values.length / 2;
  const means = [0, half].map((start) => values.slice(start, start + half).reduce((a, b) => a + b, 0) / half);
  return values.map((value, k) => value - means[Number(k >= half)]);
}

// place: URL of index.json; contract: model.json. Gives null where there is no index, and throws where it can't be used
export async function openIndex(place, contract) {
  const response = await fetch(place, { cache: "no-cache" }).catch(() => null);
  if (!response || response.status === 404) return null;
  const { format, model, basis, rule, scoring, films } = await response.json();
  if (format !== FORMAT) throw failure("index", String(format));
  if (!contract.self_test.fingerprint) throw failure("index", "model.json has no fingerprint: run export.py again");
  const prints = [contract.self_test, model].map((made) => fromBase64(made.fingerprint, Float32Array));
  const [ours, theirs] = prints.map(centre);
  const apart = Math.hypot(...theirs.map((value, k) => value - ours[k])) / Math.hypot(...theirs);
  if (!(apart < 0.4)) throw failure("index", model.architecture); // as check_model of collection.py
  if (!scoring) throw failure("index", "index.json has no scoring: run index.py publish");
  const known = Object.entries(films).filter(([, film]) => film.vectors);
  await deleteStale(place, [basis, ...known.flatMap(([, film]) => [film.vectors, film.frames])].filter(Boolean));
  if (!known.length) throw failure("empty");
  if (known.reduce((sum, [, film]) => sum + film.stored, 0) > MAX_STILLS) throw failure("many");
  const projection = await readFile(basis, place);
  const open = async ([title, { vectors, frames, middle }]) => ({
    title, frames: new URL(frames, place).href, middle: fromBase64(middle, Int8Array),
    rows: readArray(await readFile(vectors, place)),
  });
  const [project, offset] = ["project", "offset"].map((name) => readArray(projection, name));
  return { rule, scoring, project, offset, films: await Promise.all(known.map(open)) };
}

// drop what sw.js keeps of an earlier state of the index; named: the files of this one
async function deleteStale(place, named) {
  const folder = new URL(".", place).href;
  const current = ["index.json", ...named].map((name) => new URL(name, place).href);
  const cache = await globalThis.caches?.open("movie-by-frame");
  for (const { url } of (await cache?.keys()) ?? [])
    if (url.startsWith(folder) && !current.includes(url)) await cache.delete(url);
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

// cosine of a row that starts there and a vector of length 1
function cosine(rows, start, vector) {
  let [dot, square] = [0, 0];
  for (let k = 0; k < vector.length; k++) {
    dot += rows[start + k] * vector[k];
    square += rows[start + k] ** 2;
  }
  return dot / Math.max(Math.sqrt(square), 1e-9);
}

// a film with its nearest still (a row's number) and its similarity, as blend_similarity of projection.py
function compare({ rows, middle, ...film }, vector, { middle_weight: weight }) {
  let [nearest, still] = [-1, 0];
  for (let start = 0; start < rows.length; start += vector.length) {
    const similarity = cosine(rows, start, vector);
    if (similarity > nearest) [nearest, still] = [similarity, start / vector.length];
  }
  return { ...film, still, similarity: (nearest + weight * cosine(middle, 0, vector)) / (1 + weight) };
}

// an answer by the films nearest to an embedding, as Index of collection.py; each candidate has its nearest still
export function search(index, embedding) {
  const vector = projectOne(index, embedding);
  const { runner_up_penalty, min_films } = index.scoring;
  const { slope, shift } = index.rule;
  const films = index.films.map((film) => compare(film, vector, index.scoring));
  const [first, second] = films.map((film) => film.similarity).sort((a, b) => b - a);
  for (const film of films) {
    const runnerUp = film.similarity === first ? second : first; // of one film alone undefined
    film.score = film.similarity - (films.length < min_films ? 0 : runner_up_penalty * runnerUp);
    film.confidence = 1 / (1 + Math.exp(-(slope * film.score + shift)));
  }
  const candidates = films.sort((a, b) => b.score - a.score).slice(0, 3);
  return { kind: judge(candidates[0].score, index.rule), candidates };
}

export function judge(score, { movie, shortlist }) {
  return score >= movie ? "movie" : score >= shortlist ? "shortlist" : "unknown";
}

// file, time in milliseconds (-1: not known) and thumbnail of a candidate's nearest still
export async function readStill({ frames, still }) {
  const file = await readFile(frames);
  const [names, times, ends, thumbs] = ["name", "time", "ends", "thumbs"].map((part) => readArray(file, part));
  const width = names.length / times.length;
  const name = String.fromCodePoint(...names.slice(still * width, (still + 1) * width)).replace(/\0+$/, "");
  const thumbnail = thumbs.slice(Number(ends[still - 1] ?? 0), Number(ends[still]));
  return { file: name, time: Number(times[still]), thumbnail: new Blob([thumbnail]) };
}
