// All work: {id, load: URL} -> {films}, {id, frames: blobs} -> one answer, {id, proof} -> its still, {id, check: true} ->
// whether what was loaded is still there; {error, detail} where that fails. {loaded} tells how much is fetched.

import { failure, judge, listFiles, openIndex, read, readState, readStill, search, unpack } from "./index.js";

const FORMAT = "movie-by-frame 2";
const MAX_PIXELS = 50e6; // as pictures.py
const MIN_SIDE = 16;
const BOX = [0.5, (x) => (x <= 0.5 ? 1 : 0)];
const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0)],
};
const ENGINE = new URL("vendor/", import.meta.url);
let contract, described, index, model, ort, session;
const [fetched, expected] = [new Map(), new Map()]; // bytes, by URL

// url: of the .onnx; model.json lies beside it, and the index beside their folder
async function load(url) {
  model = url;
  described = await (await read(new URL("model.json", url), "model")).text();
  contract = JSON.parse(described);
  const { format, preprocessing: spec, classes } = contract;
  if (format !== FORMAT) throw failure("model", String(format).slice(0, 40));
  if (spec.resize !== "squash" || !(spec.interpolation in KERNELS)) throw failure("model", spec.interpolation);
  const starting = startEngine(url);
  starting.catch(() => {}); // is awaited below
  let problem = {};
  index = await loadIndex().catch(({ key = "index", detail, message }) => {
    problem = { without: key, detail: detail ?? message };
    return null; // then the classifier answers alone
  });
  if (!classes.length && !index) throw failure(problem.without ?? "embedder", problem.detail);
  session = await starting;
  await infer(new Uint8Array(spec.size * spec.size * 3)); // warms up
  return { ...count(), ...problem };
}

// titles of all films that can be named
function count() {
  const titles = [...new Set([...contract.classes, ...(index?.films ?? []).map((film) => film.title)])];
  return { films: titles.length, titles };
}

async function loadIndex() {
  const state = await readState(new URL("../index/index.json", model), contract);
  if (!state) return null;
  return openIndex(state, await Promise.all(listFiles(state).map((file) => download(new URL(file, state.place), "index"))));
}

async function startEngine(url) {
  const files = [download(new URL("ort-wasm-simd-threaded.wasm.gz", ENGINE), "engine"), download(new URL(url), "model")];
  const [wasm, onnx] = await Promise.all(files);
  ort = await import(new URL("ort.wasm.min.mjs", ENGINE)).catch(({ message }) => Promise.reject(failure("engine", message)));
  ort.env.wasm.numThreads = 1; // static hosts can't set the headers that threads need
  ort.env.wasm.wasmPaths = ENGINE.href;
  ort.env.wasm.wasmBinary = await unpack(wasm);
  return ort.InferenceSession.create(onnx);
}

async function download(url, key) {
  const response = await read(url, key);
  expected.set(url.href, Number(response.headers.get("content-length")) || 0);
  const transform = (part, stream) => {
    fetched.set(url.href, (fetched.get(url.href) ?? 0) + part.length);
    const [loaded, total] = [fetched, expected].map((sizes) => [...sizes.values()].reduce((a, b) => a + b, 0));
    postMessage({ loaded, total });
    stream.enqueue(part);
  };
  const bytes = await new Response(response.body.pipeThrough(new TransformStream({ transform }))).arrayBuffer();
  return new Uint8Array(bytes);
}

// after a rebuild the new state is loaded; offline, or while it is written, the old one goes on
async function check() {
  const response = await fetch(new URL("model.json", model), { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) return { changed: false };
  if ((await response.text()) !== described) return { changed: true, ...(await load(model)) };
  const state = await readState(new URL("../index/index.json", model), contract).catch(() => null);
  if (!state || state.text === index?.text) return { changed: false };
  index = await loadIndex();
  return { changed: true, ...count() };
}

function infer(pixels) {
  const { size } = contract.preprocessing;
  return session.run({ image: new ort.Tensor("uint8", pixels, [1, size, size, 3]) });
}

// ---------------------------------------------------------- the picture, as pictures.py reads and prepares it

// a picture is {data: RGBA, start, stride: pixels a row, width, height}, so that a part of one is a picture too
function crop({ data, start, stride }, [left, top, right, bottom]) {
  return { data, start: start + 4 * (top * stride + left), stride, width: right - left, height: bottom - top };
}

async function readPicture(blob, draft) {
  const fail = () => Promise.reject(failure("picture"));
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(fail);
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw failure("large");
  if (Math.min(width, height) < MIN_SIDE) throw failure("small");
  const context = new OffscreenCanvas(width, height).getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const side = Math.min(width, height);
  const halves = blob.type === "image/jpeg" ? [8, 4, 2] : []; // by libjpeg on its own
  const halved = halves.find((times) => side >= times * draft) ?? 1;
  const times = Math.max(1, Math.floor(Math.ceil(side / halved) / draft));
  return reduce({ data, start: 0, stride: width, width, height }, halved * times);
}

// a half to the even number, as Python does
function round(value) {
  return value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}

// the mean of each times x times pixels
function reduce(picture, times) {
  if (times === 1) return picture;
  return resize(picture, (side) => weigh(BOX, side, Math.ceil(side / times), times));
}

// Pillow's filter in its whole numbers: for each of `to` pixels the first of `from` that it sees, and their weights
function weigh([radius, kernel], from, to, scale = from / to) {
  const stretch = Math.max(1, scale);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - radius * stretch + 0.5));
    const count = Math.min(from, Math.trunc(centre + radius * stretch + 0.5)) - start;
    const weights = Array.from({ length: count }, (_, k) => kernel(Math.abs(k + start - centre + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b);
    return [start, Int32Array.from(weights, (weight) => Math.round((weight / sum) * 2 ** 22))];
  });
}

// table: what gives the weights for the length of a side
const resize = (picture, table) => resizeRows(resizeRows(picture, table(picture.width)), table(picture.height));

// in 8 bits; rows come out as columns, so that a second time does the other direction
function resizeRows({ data, start, stride, height }, table) {
  const out = new Uint8ClampedArray(4 * table.length * height);
  for (let row = 0; row < height; row++)
    for (let place = 0; place < table.length; place++) {
      const [first, weights] = table[place];
      let p = start + 4 * (row * stride + first);
      let [r, g, b] = [1 << 21, 1 << 21, 1 << 21];
      for (let k = 0; k < weights.length; k++, p += 4) {
        r += weights[k] * data[p];
        g += weights[k] * data[p + 1];
        b += weights[k] * data[p + 2];
      }
      const q = 4 * (place * height + row);
      out[q] = r >> 22;
      out[q + 1] = g >> 22;
      out[q + 2] = b >> 22;
    }
  return { data: out, start: 0, stride: height, width: height, height: table.length };
}

function findBars({ data, start, stride, width, height }) {
  const share = (place, count, step) => {
    let dark = 0;
    for (let k = 0, p = start + 4 * place; k < count; k++, p += 4 * step)
      if (data[p] <= 24 && data[p + 1] <= 24 && data[p + 2] <= 24) dark++;
    return dark / count;
  };
  const [top, bottom] = barPair(height, (row) => share(row * stride, width, 1));
  const inside = height - top - bottom;
  const [left, right] = barPair(width, (column) => share(top * stride + column, inside, stride));
  return [left, top, width - right, height - bottom];
}

// heights of the first and the last bar of so many rows; share: of dark pixels in a row
function barPair(total, share) {
  const limit = Math.floor(total * 0.3);
  let [first, last] = [0, 0];
  while (first < total && share(first) >= 0.985) first++;
  if (first === total) return [0, 0]; // a black frame has no bars
  while (share(total - 1 - last) >= 0.985) last++;
  for (const [a, b, opposite] of [[first, last, (k) => total - 1 - k], [last, first, (k) => k]]) {
    const strip = Array.from({ length: a > b && a <= limit ? a : 0 }, (_, k) => share(opposite(k)));
    const mean = strip.reduce((sum, row) => sum + row, 0) / a;
    if (mean < 0.8 || !(strip.filter((row) => row >= 0.985).length / a >= 0.4)) continue;
    first = last = a; // the other one has text in it
    break;
  }
  const [least, most] = [Math.min(first, last), Math.max(first, last)];
  if (least < Math.max(2, total * 0.015) || most > limit || most - least > Math.max(3, 0.35 * most)) return [0, 0];
  return [first, last].map((bar) => bar + Math.ceil(total / 250));
}

function prepare(picture, { size, interpolation, crop_bars }) {
  const inside = crop_bars ? crop(picture, findBars(picture)) : picture;
  const { data } = resize(inside, (side) => weigh(KERNELS[interpolation], side, size));
  const pixels = new Uint8Array(3 * size * size);
  for (let k = 0; k < pixels.length; k++) pixels[k] = data[k + Math.floor(k / 3)]; // no alpha
  return pixels;
}

// the box of the still inside a screenshot, as find_still of screenshots.py; null where it is no screenshot
function findStill(picture) {
  const [x, y, x2, y2] = findBars(picture);
  const inside = crop(picture, [x, y, x2, y2]);
  const scale = Math.max(1, round(Math.max(inside.width, inside.height) / 640));
  const small = reduce(inside, scale);
  const box = findBetweenEdges(inside, small, scale) ?? findAmongPlainCells(inside, small, scale);
  return box && box.map((side, k) => side + (k % 2 ? y : x));
}

// the still between two straight edges from side to side, or four, that is rougher than what lies beyond them
function findBetweenEdges(picture, { data, start, stride, width, height }, scale) {
  if (Math.min(width, height) < 64) return null;
  const [rough, rowEdges, columnEdges] = [0, 0, 0].map(() => new Uint8Array(width * height));
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const p = start + 4 * (y * stride + x);
      const step = (back) => Math.max(Math.abs(data[p] - data[p - back]), Math.abs(data[p + 1] - data[p - back + 1]),
        Math.abs(data[p + 2] - data[p - back + 2]));
      const [up, left] = [y ? step(4 * stride) : 0, x ? step(4) : 0];
      const at = y * width + x;
      rough[at] = up > 5 || left > 5;
      rowEdges[at] = up > 8 || (y > 1 && step(8 * stride) > 8);
      columnEdges[at] = left > 8 || (x > 1 && step(8) > 8);
    }
  const shares = (table, byRow, [from, to]) =>
    Array.from({ length: byRow ? height : width }, (_, line) => {
      let sum = 0;
      for (let k = from; k < to; k++) sum += byRow ? table[line * width + k] : table[k * width + line];
      return sum / (to - from);
    });
  const pair = (edges, byRow, span) => edgePair(shares(edges, byRow, span), shares(rough, byRow, span));
  let [top, bottom] = pair(rowEdges, true, [0, width]);
  const [left, right] = pair(columnEdges, false, [top, bottom]);
  if (right - left < width) [top, bottom] = pair(rowEdges, true, [left, right]);
  const share = ((bottom - top) * (right - left)) / width / height;
  if (share === 1 || share < 0.06 || right - left < bottom - top) return null;
  return [left * scale, top * scale, Math.min(right * scale, picture.width), Math.min(bottom * scale, picture.height)];
}

// the first row and the end of what lies between two edges and is rougher than what lies beyond; all rows if none
function edgePair(edges, rough) {
  const count = edges.length;
  const sums = [0];
  for (const share of rough) sums.push(sums.at(-1) + share);
  const rows = findEdges(edges);
  let [best, widest, pair] = [0, 0, [0, count]];
  for (const first of rows)
    for (const end of rows) {
      const [strength, width] = [Math.floor(edges[first] * 20) + Math.floor(edges[end] * 20), end - first];
      if (width < 0.15 * count || strength < best || (strength === best && width <= widest)) continue;
      const [before, after] = [sums[first] / first, (sums[count] - sums[end]) / (count - end)];
      const beyond = (sums[first] + sums[count] - sums[end]) / (count - width);
      const between = (sums[end] - sums[first]) / width;
      const fits = Math.min(edges[first], edges[end]) >= 0.8
        ? Math.max(before, after) <= 0.3 && beyond <= 0.2 && between >= beyond
        : Math.max(before, after) <= 0.075 && beyond <= 0.05 && between >= Math.max(beyond + 0.06, 2 * beyond);
      if (fits) [best, widest, pair] = [strength, width, [first, end]];
    }
  return pair;
}

// the ten strongest rows that can be edges; the first row of each, for a step is seen in two
function findEdges(edges) {
  const margin = Math.floor(edges.length / 20);
  const rows = [];
  for (let row = margin; row < edges.length - margin; row++) {
    const isHighest = edges[row] >= 0.9 * Math.max(...edges.slice(Math.max(0, row - 3), row + 4));
    if (edges[row] >= 0.45 && isHighest && !(row <= rows.at(-1) + 3)) rows.push(row);
  }
  return rows.sort((a, b) => Math.floor(edges[b] * 20) - Math.floor(edges[a] * 20)).slice(0, 10);
}

// the still in an interface of one colour
function findAmongPlainCells(picture, { data, start, stride }, scale) {
  const [columns, rows] = [picture.width, picture.height].map((side) => Math.floor(side / scale / 8));
  if (Math.min(columns, rows) < 8) return null;
  const describe = (cell) => {
    const corner = start + 32 * (Math.floor(cell / columns) * stride + (cell % columns));
    const at = (k) => corner + 4 * ((k >> 3) * stride + (k & 7));
    const inside = (colour) => Array.from({ length: 64 }, (_, k) => data[at(k) + colour]);
    const colours = [0, 1, 2].map(inside);
    const sum = colours.map((values) => values.reduce((a, b) => a + b));
    return { flat: colours.every((values) => Math.max(...values) - Math.min(...values) <= 12), sum, plain: false };
  };
  const corners = [0, columns - 1, (rows - 1) * columns, rows * columns - 1];
  if (!corners.some((cell) => describe(cell).flat)) return null; // as in nearly all frames that are no screenshot
  const cells = Array.from({ length: rows * columns }, (_, cell) => describe(cell));
  for (const corner of corners.map((cell) => cells[cell])) {
    const near = ({ sum }) => sum.every((value, colour) => Math.abs(value - corner.sum[colour]) <= 5 * 64);
    const alike = cells.filter((cell) => cell.flat && near(cell));
    for (const cell of corner.flat && alike.length / cells.length >= 0.03 ? alike : []) cell.plain = true;
  }
  // the best run of rows for each pair of columns; plain cells count -2, all others 1
  const [run, first] = [new Int32Array(columns ** 2), new Int32Array(columns ** 2)];
  let [largest, left, top, right, bottom] = [0, 0, 0, columns, rows];
  for (let row = 0; row < rows; row++)
    for (let from = 0; from < columns; from++)
      for (let sum = 0, to = from, pair = from * columns + from; to < columns; to++, pair++) {
        sum += cells[row * columns + to].plain ? -2 : 1;
        if (run[pair] <= 0) [run[pair], first[pair]] = [0, row];
        run[pair] += sum;
        if (run[pair] > largest) [largest, left, top, right, bottom] = [run[pair], from, first[pair], to + 1, row + 1];
      }
  const area = (right - left) * (bottom - top);
  const around = cells.filter((cell) => cell.plain).length - (area - largest) / 3;
  const share = area / cells.length;
  if (share < 0.06 || share > 0.8 || around < 0.6 * (cells.length - area) || right - left < bottom - top) return null;
  const pixels = 8 * scale;
  const end = right === columns ? picture.width : right * pixels;
  const foot = bottom === rows ? picture.height : bottom * pixels;
  return [left * pixels, top * pixels, end, foot];
}

// ------------------------------------------------------------ whether there is enough in the picture, as flat.py tells

function isFlat(picture) {
  const inside = crop(picture, findBars(picture));
  const longer = Math.max(inside.width, inside.height);
  const small = reduce(inside, Math.max(1, round(longer / 480)));
  return isDim(small) || isCard(small);
}

// in a picture wider than tall a small still may be a false find
function isFlatInside({ width, height }, still) {
  return (height > width || still.width * still.height >= 0.3 * width * height) && isFlat(still);
}

// almost nothing is lit, almost all is of one grey, or there is almost no contrast
function isDim({ data, start, stride, width, height }) {
  const counts = new Float64Array(256);
  for (let y = 0; y < height; y++)
    for (let x = 0, p = start + 4 * y * stride; x < width; x++, p += 4)
      counts[(19595 * data[p] + 38470 * data[p + 1] + 7471 * data[p + 2] + 32768) >> 16]++;
  const shares = counts.map((count) => count / (width * height));
  const sum = (from, to) => shares.slice(Math.max(0, from), to).reduce((a, b) => a + b, 0);
  const mean = shares.reduce((total, share, level) => total + share * level, 0);
  const variance = shares.reduce((total, share, level) => total + share * (level - mean) ** 2, 0);
  let [median, below] = [0, shares[0]];
  while (below < 0.5) below += shares[++median];
  return sum(29) < 0.05 || variance < 25 || sum(median - 5, median + 6) > 0.93;
}

// what stands before a smooth background is as thin as letters and differs from it as they do
function isCard({ data, start, stride, width, height }) {
  const side = Math.max(4, round(Math.max(width, height) / 40)); // of a cell, pixels
  const [rows, columns] = [height, width].map((length) => Math.floor(length / side));
  if (!rows || !columns) return false;
  const [down, across] = [rows, columns].map((cells) => Math.max(1, round(cells / 4))); // blocks
  const block = (y, x) => Math.floor((Math.floor(y / side) * down) / rows) * across +
    Math.floor((Math.floor(x / side) * across) / columns);
  const [tall, wide] = [rows * side, columns * side];
  const counts = new Uint32Array(down * across * 768);
  for (let y = 0; y < tall; y += 2)
    for (let x = 0; x < wide; x += 2)
      for (let colour = 0, at = block(y, x) * 768; colour < 3; colour++, at += 256)
        counts[at + data[start + 4 * (y * stride + x) + colour]]++;
  const behind = Array.from({ length: down * across * 3 }, (_, k) => mostFrequent(counts, 256 * k));
  const apart = (k, l) => k >= 0 && Math.abs(behind[k] - behind[l]) > 18;
  for (let k = 0; k < behind.length; k++)
    if (apart(k - 3 * across, k) || apart(Math.floor(k / 3) % across ? k - 3 : -1, k)) return false;
  let [near, far] = [0, 0];
  const cells = new Uint32Array(rows * columns);
  for (let y = 0; y < tall; y++)
    for (let x = 0, p = start + 4 * y * stride; x < wide; x++, p += 4) {
      const at = 3 * block(y, x);
      const distance = Math.max(...[0, 1, 2].map((colour) => Math.abs(data[p + colour] - behind[at + colour])));
      if (distance > 42) far++;
      if (distance > 20) continue;
      near++;
      cells[Math.floor(y / side) * columns + Math.floor(x / side)]++;
    }
  const covered = cells.filter((count) => count / side ** 2 < 0.08).length / cells.length;
  const background = near / tall / wide;
  return background >= 0.5 && covered <= 0.015 && far / tall / wide >= Math.max(0.001, 0.3 * (1 - background));
}

// the middle of the 13 neighbouring levels that hold the most of the 256 counts from there on
function mostFrequent(counts, from) {
  let [best, most] = [0, -1];
  for (let level = 0; level < 256; level++) {
    let sum = 0;
    for (let k = Math.max(0, level - 6); k <= Math.min(255, level + 6); k++) sum += counts[from + k];
    if (sum > most) [best, most] = [level, sum];
  }
  return best;
}

// ------------------------------------------------------------------------------------------------- the answer

// one answer for frames of one film, as Identifier.identify of model.py
async function identify(blobs) {
  const { size, draft } = contract.preprocessing;
  const shown = [];
  let least = Infinity; // of the shorter sides of the pictures, pixels
  for (const blob of blobs) {
    const picture = await readPicture(blob, draft ? 2 * size : Infinity);
    least = Math.min(least, picture.width, picture.height);
    if (isFlat(picture)) continue;
    const box = findStill(picture);
    const still = box && crop(picture, box);
    if (!still || !isFlatInside(picture, still)) shown.push({ picture, still });
  }
  if (!shown.length) return { kind: "unknown", candidates: [], reason: "little", frames: 0 };
  const about = { frames: shown.length, small: least < size / 2 };
  const answer = await look(shown.map(({ picture }) => picture));
  if (answer.kind !== "unknown" || !shown.some(({ still }) => still)) return { ...answer, ...about };
  return { ...(await look(shown.map(({ picture, still }) => still ?? picture))), look: "still", ...about };
}

// one answer for pictures of one film, as answer_together of model.py
async function look(pictures) {
  const outputs = [];
  for (const picture of pictures) outputs.push(await infer(prepare(picture, contract.preprocessing)));
  const mean = (name) => outputs[0][name].data.map((_, k) => outputs.reduce((sum, row) => sum + row[name].data[k], 0) / outputs.length);
  const named = outputs[0].known && nameClasses(mean("probabilities"), mean("known")[0]);
  const found = index && search(index, outputs.map(({ embedding }) => embedding.data));
  if (!found || named?.kind !== "movie") return found || named;
  return join(found, named, (title) => index.films.some((film) => film.title === title));
}

// as join_answer of answering/model.py, where the classifier names a film; holds: whether the index has a title
function join(found, named, holds) {
  const [best, ...others] = found.candidates;
  const [other] = named.candidates;
  if (!holds(other.title)) return found.kind === "movie" ? found : named;
  if (found.kind !== "movie" || best.title === other.title) return found;
  const second = others.find(({ title }) => title === other.title) ?? other;
  const rest = others.filter(({ title }) => title !== other.title);
  return { kind: "shortlist", candidates: [best, second, ...rest].slice(0, 3) };
}

function nameClasses(probabilities, known) {
  const films = contract.classes.map((title, film) => ({ title, confidence: probabilities[film] }));
  const candidates = films.sort((a, b) => b.confidence - a.confidence).slice(0, 3);
  return { kind: judge(known, contract.decision), candidates };
}

// an error of the page's own has a key; any other one came while a model was loaded, or is a crash
self.onmessage = async ({ data: { id, load: url, frames, proof } }) => {
  try {
    postMessage({ id, ...(await (url ? load(url) : frames ? identify(frames) : proof ? readStill(index, proof) : check())) });
  } catch (error) {
    const message = String(error?.message ?? error);
    const key = error?.key ?? (url ? "model" : /memory|alloc/i.test(message) ? "memory" : "crash");
    postMessage({ id, error: key, detail: error?.detail ?? message.slice(0, 200) });
  }
};
