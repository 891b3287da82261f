// An index of known stills: its files are as answering/publishing.py writes them, scores those of answering/projection.py.

const FORMAT = "movie-by-frame site 1";
const STRETCH_MS = 5000; // as collection.py
const STRETCH_SIMILARITY = 0.1;
const MIXED_SHARE = 0.25;
const SAME_SHOT = 0.6; // as together.py

export const failure = (key, detail = "") => Object.assign(new Error(), { key, detail });

// of any file beside the page; key: of the sentence where there is none
export async function read(url, key = "index") {
  const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw failure(key, new URL(url).pathname);
  return response;
}

// bytes of a file as they are, or unpacked, if it is of gzip; a host may have unpacked it on the way
export async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
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

// what index.json says; null where there is none. Throws where it can't be used with the model of this model.json
export async function readState(place, contract) {
  const response = await fetch(place, { cache: "no-cache" }).catch(() => null);
  if (!response || response.status === 404) return null;
  const text = await response.text();
  const state = JSON.parse(text);
  const { format, model, films } = state;
  if (format !== FORMAT) throw failure("index", `${String(format).slice(0, 40)}: index.py publish`);
  if (!contract.self_test.fingerprint) throw failure("index", "model.json has no fingerprint: run export.py again");
  const prints = [contract.self_test, model].map((made) => fromBase64(made.fingerprint, Float32Array));
  const [ours, theirs] = prints.map(centre);
  const apart = Math.hypot(...theirs.map((value, k) => value - ours[k])) / Math.hypot(...theirs);
  if (!(apart < 0.4)) throw failure("index", model.architecture); // as check_model of collection.py
  if (!films.length) throw failure("empty");
  await deleteStale(place, listFiles(state).concat(films.flatMap(({ packs }) => packs)));
  return { ...state, text, place };
}

// files that a search needs, in the order that openIndex takes them
export const listFiles = ({ projection, times, vectors }) => [projection, times, ...vectors].map(({ file }) => file);

// state: of readState; files: their bytes, as listFiles names them
export async function openIndex({ dims, films, rule, scoring, text, place, vectors }, [projection, times, ...parts]) {
  const [offset, step] = splitHalves(new Float32Array(projection.slice(0, 8 * dims).buffer));
  const project = Float32Array.from(new Int16Array(projection.slice(8 * dims).buffer), (value, k) => value * step[k % dims]);
  const [starts, untils] = splitHalves(new Int32Array((await unpack(times)).slice().buffer));
  for (let row = 0, last = 0; row < starts.length; row++) { // steps, see pack_times of publishing.py
    last = starts[row] += last;
    untils[row] += last;
  }
  const owners = vectors.flatMap((part, k) => Array(part.films).fill(parts[k]));
  let [at, first, last] = [0, 0, null];
  const opened = films.map((film, place) => {
    if (owners[place] !== last) [at, last] = [0, owners[place]];
    const [begin, end] = [at + dims, at + dims * (1 + film.stills)];
    const rows = new Int8Array(last.buffer, last.byteOffset + begin, end - begin); // throws where bytes are missing
    const middle = new Int8Array(last.buffer, last.byteOffset + at, dims);
    const span = [first, (first += film.stills)];
    at = end;
    return { ...film, rows, middle, inverse: invertLengths(rows, dims), starts: starts.subarray(...span),
      untils: untils.subarray(...span) };
  });
  return { rule, scoring, text, place, offset, project, films: opened };
}

const splitHalves = (values) => [values.subarray(0, values.length / 2), values.subarray(values.length / 2)];

function invertLengths(rows, dims) {
  return Float32Array.from({ length: rows.length / dims }, (_, row) => {
    let square = 0;
    for (let k = row * dims; k < (row + 1) * dims; k++) square += rows[k] ** 2;
    return 1 / Math.max(Math.sqrt(square), 1e-9);
  });
}

// drop what sw.js keeps of an earlier state of the index; named: the files of this one
async function deleteStale(place, named) {
  const folder = new URL(".", place).href;
  const current = new Set(["index.json", ...named].map((name) => new URL(name, place).href));
  const cache = await globalThis.caches?.open("movie-by-frame");
  for (const { url } of (await cache?.keys()) ?? [])
    if (url.startsWith(folder) && !current.has(url)) await cache.delete(url);
}

// an embedding as a vector of length 1
function projectOne({ project, offset }, embedding) {
  const dims = offset.length;
  const vector = Float64Array.from(offset, (shift) => -shift);
  for (let row = 0; row < embedding.length; row++)
    for (let column = 0; column < dims; column++) vector[column] += embedding[row] * project[row * dims + column];
  const length = Math.max(Math.hypot(...vector), 1e-9);
  return Float32Array.from(vector, (value) => value / length);
}

function dot(rows, start, vector) {
  let sum = 0;
  for (let k = 0; k < vector.length; k++) sum += rows[start + k] * vector[k];
  return sum;
}

// how like each still of a film is to a vector: cosines
function compareStills({ rows, inverse }, vector) {
  return inverse.map((scale, row) => scale * dot(rows, row * vector.length, vector));
}

// how like a film is to a vector, as blend_similarity of projection.py
function compareFilm(film, vector, { middle_weight: weight }) {
  const nearest = compareStills(film, vector).reduce((a, b) => Math.max(a, b), -1);
  const middle = dot(film.middle, 0, vector) * invertLengths(film.middle, vector.length)[0];
  return (nearest + weight * middle) / (1 + weight);
}

// scores of films from their similarities, as film_scores of projection.py
function scoreFilms(similarities, { runner_up_penalty: penalty, min_films: least }) {
  if (similarities.length < least) return similarities;
  const [first, second] = [...similarities].sort((a, b) => b - a);
  return similarities.map((value) => value - penalty * (value === first ? second : first));
}

// number of the shot of each vector, from 0: as label_shots of together.py
function labelShots(vectors) {
  const label = vectors.map((_, row) => row);
  vectors.forEach((vector, row) => {
    const joined = label.filter((_, other) => dot(vectors[other], 0, vector) >= SAME_SHOT);
    label.forEach((shot, other) => joined.includes(shot) && (label[other] = Math.min(...joined)));
  });
  return label.map((shot) => [...new Set(label)].indexOf(shot));
}

// an answer by the films nearest to the embeddings of one or more frames of a film, as Index.answer_together of collection.py
export function search(index, embeddings) {
  const vectors = embeddings.map((embedding) => projectOne(index, embedding));
  const similarity = vectors.map((vector) => index.films.map((film) => compareFilm(film, vector, index.scoring)));
  const shots = labelShots(vectors);
  const count = Math.max(...shots) + 1;
  const weights = shots.map((shot) => 1 / count / shots.filter((other) => other === shot).length);
  const pooled = index.films.map((_, film) => similarity.reduce((sum, row, frame) => sum + weights[frame] * row[film], 0));
  const scores = scoreFilms(pooled, index.scoring);
  const rule = index.rule.together?.findLast((part) => part.shots <= count) ?? index.rule;
  const order = scores.map((_, film) => film).sort((a, b) => scores[b] - scores[a]).slice(0, 3);
  const candidates = order.map((film) => ({
    title: index.films[film].title,
    confidence: 1 / (1 + Math.exp(-(rule.slope * scores[film] + rule.shift))),
    proof: findProof(index.films[film], vectors, film),
  }));
  const kind = judge(scores[order[0]], rule);
  const elsewhere = similarity.map((row) => scoreFilms(row, index.scoring)).filter((alone) => {
    const best = Math.max(...alone);
    return best >= index.rule.movie && alone.indexOf(best) !== order[0];
  });
  return { kind: kind === "movie" && elsewhere.length >= MIXED_SHARE * vectors.length ? "shortlist" : kind, candidates };
}

export function judge(score, { movie, shortlist }) {
  return score >= movie ? "movie" : score >= shortlist ? "shortlist" : "unknown";
}

// the still of a film that is nearest to one of the vectors, and the stretch of film around it; times in ms, -1: not known
function findProof(film, vectors, number) {
  const nearest = ({ similarities, still }) => similarities[still];
  const { similarities, still } = vectors
    .map((vector) => {
      const similarities = compareStills(film, vector);
      return { similarities, still: similarities.reduce((best, value, row) => (value > similarities[best] ? row : best), 0) };
    })
    .reduce((best, found) => (nearest(found) > nearest(best) ? found : best));
  const alike = similarities.map((value) => value >= similarities[still] - STRETCH_SIMILARITY);
  const [from, to] = findStretch(film, alike, still);
  return { film: number, still, similarity: similarities[still], time: film.starts[still], from, to };
}

// as find_stretch of collection.py
function findStretch({ starts, untils }, alike, best) {
  let [start, end] = [starts[best], untils[best]];
  if (start < 0) return [start, end];
  const spans = [...starts].map((first, row) => [first, untils[row]]).filter((_, row) => alike[row]);
  spans.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  for (const [first, last] of [...spans, ...spans.toReversed()])
    if (first - end < STRETCH_MS && start - last < STRETCH_MS) [start, end] = [Math.min(start, first), Math.max(end, last)];
  return [start, end];
}

// file name and picture of a proof's still; a picture of no bytes is of a still that is not shown
export async function readStill({ films, place }, { film: number, still }) {
  const { packs, firsts } = films[number];
  const pack = firsts.findLastIndex((first) => first <= still);
  const bytes = new Uint8Array(await (await read(new URL(packs[pack], place), "gone")).arrayBuffer());
  const end = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const { files, ends } = JSON.parse(new TextDecoder().decode(bytes.subarray(4, end)));
  const row = still - firsts[pack];
  return { file: files[row], picture: new Blob([bytes.subarray(end + (ends[row - 1] ?? 0), end + ends[row])]) };
}
