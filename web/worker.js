// The model and all arithmetic: {model: URL} -> {ready}, {blob} -> an answer; {error, detail} where that fails.

import * as ort from "./vendor/ort.wasm.min.mjs";

const FORMAT = "movie-by-frame 2";
const [MAX_PIXELS, MIN_SIDE] = [50e6, 16]; // as image.py
const KERNELS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0)],
};
ort.env.wasm.numThreads = 1; // static hosts can't set the headers that threads need
ort.env.wasm.wasmPaths = new URL("vendor/", import.meta.url).href;
let contract, session;

const failure = (key, detail = "") => Object.assign(new Error(key), { key, detail });

// ------------------------------------------------------------------------------------------------ the model

async function download(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) throw failure("missing", new URL(url).pathname);
  const total = Number(response.headers.get("content-length"));
  const reader = response.body.getReader();
  const parts = [];
  for (let loaded = 0; ;) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    loaded += value.length;
    postMessage({ loaded, total });
  }
}

async function load(url) {
  const about = new Response(await download(new URL("model.json", url)));
  contract = await about.json().catch(() => Promise.reject(failure("missing", "model.json"))); // a page in its place
  const { format, preprocessing: spec, classes } = contract;
  if (format !== FORMAT) throw failure("format", String(format ?? "?").slice(0, 40));
  if (spec.resize !== "squash" || !(spec.interpolation in KERNELS)) throw failure("format", spec.interpolation);
  if (!classes.length) throw failure("embedder");
  const fetched = url.endsWith(".onnx") ? download(url) : download(new URL("model.web.onnx", url));
  const bytes = await fetched.catch(() => download(new URL("model.int8.onnx", url))); // of an export without --web
  try {
    session = await ort.InferenceSession.create(bytes);
    for (let run = 0; run < 2; run++) await infer(new Uint8Array(spec.size * spec.size * 3)); // warms up
  } catch (error) {
    throw failure("broken", error.message.slice(0, 200));
  }
  return { films: classes.length };
}

async function infer(pixels) {
  const image = new ort.Tensor("uint8", pixels, [1, contract.preprocessing.size, contract.preprocessing.size, 3]);
  const { probabilities, known } = await session.run({ image }, ["probabilities", "known"]);
  return { probabilities: probabilities.data, known: known.data[0] };
}

// ------------------------------------------------------------- the picture, as image.py reads and prepares it

// pixels that a PNG or a JPEG says it has, in its first bytes; 0 where that can't be told before it is decoded
function claimed(head) {
  if (head.getUint32(12) === 0x49484452) return head.getUint32(16) * head.getUint32(20); // IHDR
  for (let p = 2; p < head.byteLength - 9 && head.getUint8(p) === 0xff; p += 2 + head.getUint16(p + 2)) {
    const marker = head.getUint8(p + 1); // 192 to 207 start a frame, but 196, 200 and 204
    if (marker >> 4 === 12 && (marker === 192 || marker % 4)) return head.getUint16(p + 5) * head.getUint16(p + 7);
  }
  return 0;
}

async function readPicture(blob, draft) {
  const head = new DataView(await new Blob([blob.slice(0, 65536), new ArrayBuffer(24)]).arrayBuffer());
  if (claimed(head) > MAX_PIXELS) throw failure("pixels");
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => {
    throw failure("picture");
  });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw failure("pixels");
  if (Math.min(width, height) < MIN_SIDE) throw failure("small");
  const context = new OffscreenCanvas(width, height).getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const picture = context.getImageData(0, 0, width, height);
  const side = Math.min(width, height);
  const jpeg = head.getUint16(0) === 0xffd8; // libjpeg halves on its own
  const halved = jpeg ? ([8, 4, 2].find((times) => draft && side >= times * draft) ?? 1) : 1;
  const left = Math.ceil(side / halved);
  return reduce(picture, halved * (draft && left >= 2 * draft ? Math.floor(left / draft) : 1));
}

// the mean of each times x times pixels
function reduce({ data, width, height }, times) {
  if (times === 1) return { data, width, height };
  const [across, down] = [width, height].map((side) =>
    Array.from({ length: Math.ceil(side / times) }, (_, place) => {
      const count = Math.min(times, side - place * times);
      return [place * times, new Int32Array(count).fill(Math.round(2 ** 22 / count))];
    }),
  );
  const narrow = resize(data, 0, 4, 4 * width, height, across, 4, 4 * across.length);
  const small = resize(narrow, 0, 4 * across.length, 4, across.length, down, 4 * across.length, 4);
  return { data: small, width: across.length, height: down.length };
}

function findBars({ data, width, height }) {
  const share = (from, count, step) => {
    let dark = 0;
    for (let k = 0, p = 4 * from; k < count; k++, p += 4 * step)
      if (data[p] <= 24 && data[p + 1] <= 24 && data[p + 2] <= 24) dark++;
    return dark / count;
  };
  const rows = (count) => Array.from({ length: count }, (_, y) => share(y * width, width, 1));
  const edges = [share(0, width, 1), share((height - 1) * width, width, 1)];
  edges.push(share(0, height, width), share(width - 1, height, width));
  if (Math.max(...edges) < 0.985) return [0, 0, width, height];
  const [top, bottom] = barPair(rows(height));
  const inside = height - top - bottom;
  const [left, right] = barPair(Array.from({ length: width }, (_, x) => share(top * width + x, inside, width)));
  return [left, top, width - right, height - bottom];
}

function barPair(rows) {
  const total = rows.length;
  const limit = Math.floor(total * 0.3);
  const back = [...rows].reverse();
  let [first, last] = [rows, back].map((strip) => strip.findIndex((row) => row < 0.985));
  if (first < 0) return [0, 0]; // a black frame has no bars
  for (const [a, b, all] of [[first, last, back], [last, first, rows]]) {
    const strip = all.slice(0, a);
    const mean = strip.reduce((sum, row) => sum + row, 0) / a;
    const solid = strip.filter((row) => row >= 0.985).length / a;
    if (a > b && a <= limit && mean >= 0.8 && solid >= 0.4) {
      first = last = a; // the other one has text in it
      break;
    }
  }
  const [least, most] = [Math.min(first, last), Math.max(first, last)];
  if (least < Math.max(2, total * 0.015) || most > limit || most - least > Math.max(3, 0.35 * most)) return [0, 0];
  return [first, last].map((bar) => bar + Math.ceil(total / 250));
}

// Pillow's filter in its whole numbers: for each of `to` pixels the first of `from` that it sees, and their weights
function resampling([radius, kernel], from, to) {
  const scale = from / to;
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

// one direction of a resize in 8 bits: pixels lie `step` apart and lines `next`, in what comes out toStep and toNext
function resize(data, offset, step, next, lines, table, toStep, toNext) {
  const out = new Uint8ClampedArray(Math.max(table.length * toStep, lines * toNext));
  table.forEach(([start, weights], place) => {
    for (let line = 0; line < lines; line++) {
      let p = offset + line * next + start * step;
      let [r, g, b] = [1 << 21, 1 << 21, 1 << 21];
      for (let k = 0; k < weights.length; k++, p += step) {
        r += weights[k] * data[p];
        g += weights[k] * data[p + 1];
        b += weights[k] * data[p + 2];
      }
      const q = place * toStep + line * toNext;
      out[q] = r >> 22;
      out[q + 1] = g >> 22;
      out[q + 2] = b >> 22;
    }
  });
  return out;
}

function prepare(picture, { size, interpolation, crop_bars }) {
  const { data, width, height } = picture;
  const [left, top, right, bottom] = crop_bars ? findBars(picture) : [0, 0, width, height];
  const [across, down] = [right - left, bottom - top].map((side) => resampling(KERNELS[interpolation], side, size));
  const narrow = resize(data, 4 * (top * width + left), 4, 4 * width, bottom - top, across, 3, 3 * size);
  return new Uint8Array(resize(narrow, 0, 3 * size, 3, size, down, 3 * size, 3).buffer);
}

// ------------------------------------------------------------------------------------------------- the answer

async function identify(blob) {
  const { preprocessing: spec, decision, classes } = contract;
  const pixels = prepare(await readPicture(blob, spec.draft && 2 * spec.size), spec);
  const { probabilities, known } = await infer(pixels);
  const [movie, shortlist] = [decision.movie, decision.shortlist].map(Math.fround);
  const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 3);
  const candidates = best.map((film) => ({ title: classes[film], confidence: probabilities[film] }));
  return { kind: known >= movie ? "movie" : known >= shortlist ? "shortlist" : "unknown", candidates };
}

self.onmessage = async ({ data: { model, blob } }) => {
  try {
    postMessage(model ? { ready: await load(model) } : await identify(blob));
  } catch (error) {
    postMessage({ error: error.key ?? "broken", detail: error.detail ?? String(error.message).slice(0, 200) });
  }
};
