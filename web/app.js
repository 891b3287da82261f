// The page: pictures in, answers out; worker.js does the work.

const MAX_BYTES = 20e6; // as pictures.py
const MAX_PIXELS = 50e6;
const MAX_CARDS = 300; // the oldest go, or a long evening's pictures would fill the memory
const CHECK_MS = 5 * 60e3; // whether the index was made anew; also when one comes back to the page
const TEXTS = { // in English and Russian, and what stands in index.html
  loading: ["Fetching the model: {loaded} of {total} MB", "Загружаю модель: {loaded} из {total} МБ"],
  ready: ["Ready. Films known: {films}.", "Готово. Знаю фильмов: {films}."],
  changed: ["The films here were updated. Films known: {films}.", "Фильмы здесь обновились. Знаю фильмов: {films}."],
  working: ["Looking…", "Смотрю…"], time: ["{ms} ms", "{ms} мс"],
  inside: ["by the still inside this screenshot", "по кадру внутри скриншота"],
  several: ["from {frames} frames together", "по {frames} кадрам вместе"],
  shortlist: ["I doubt a little. Perhaps one of these:", "Немного сомневаюсь. Возможно, один из этих:"],
  unknown: ["I am not sure yet: show me one more frame of it.", "Пока не уверен: покажи ещё один кадр оттуда."],
  little: ["I can't tell: there is too little in the picture.", "Не могу сказать: на картинке слишком мало."],
  alike: ["These are alike to me. One more frame may decide.", "Они для меня похожи. Ещё один кадр может решить."],
  far: ["Nothing that I know is like enough.", "Ничего достаточно похожего я не знаю."],
  smallish: ["Only a small picture came; a larger one tells more.",
    "Пришла только маленькая картинка; большая скажет больше."],
  asked: ["Your frame", "Твой кадр"], askedAll: ["Your frames", "Твои кадры"], proof: ["The nearest still I know", "Ближайший известный кадр"],
  span: ["{from} to {to}", "с {from} по {to}"],
  hidden: ["Its nearest still was sent by a user and is not shown.",
    "Ближайший кадр прислал пользователь, он не показывается."],
  lost: ["Its still can't be fetched now.", "Её кадр сейчас не загрузить."],
  guesses: ["What I compared it with", "С чем я сравнивал"],
  more: ["Add a frame of the same film", "Добавить кадр того же фильма"],
  same: ["Same film: ask them together", "Один фильм: спросить вместе"],
  group: ["{count} pictures came at once.", "Пришло картинок сразу: {count}."],
  known: ["Which films?", "Какие фильмы?"],
  model: ["There is no model here that runs ({detail}). Make one with export.py --web.",
    "Здесь нет модели, которая работает ({detail}). Её создаёт export.py --web."],
  embedder: ["This model was taught no films. It needs an index: index.py add, then index.py publish.",
    "Эта модель не знает фильмов. Ей нужен индекс: index.py add, затем index.py publish."],
  index: ["The index here is damaged or of another model ({detail}). Publish it anew: index.py publish.",
    "Индекс здесь повреждён или от другой модели ({detail}). Опубликуй его заново: index.py publish."],
  empty: ["The index here holds no films yet: index.py add.", "В индексе здесь пока нет фильмов: index.py add."],
  engine: ["ONNX Runtime can't be loaded here ({detail}). On your own host: make web/vendor.",
    "ONNX Runtime здесь не загружается ({detail}). На своём хосте: make web/vendor."],
  wasm: ["This browser has no WebAssembly: take a newer one.", "В этом браузере нет WebAssembly: нужен более новый."],
  start: ["The page's own program can't be loaded ({detail}). Reload the page.",
    "Программа страницы не загружается ({detail}). Обнови страницу."],
  memory: ["There is not enough memory for this picture. Close other tabs, or send a smaller one.",
    "Для этой картинки не хватает памяти. Закрой другие вкладки или пришли картинку поменьше."],
  crash: ["Looking at this picture failed ({detail}). I started anew: try it again.",
    "Не получилось посмотреть на картинку ({detail}). Я начал заново: попробуй ещё раз."],
  picture: ["This is not a picture that the browser can read.", "Это не картинка, которую браузер может прочитать."],
  heic: ["This browser can't read HEIC. Send a JPEG, or a screenshot of it.",
    "Этот браузер не читает HEIC. Пришли JPEG или скриншот."],
  video: ["This is a video, and I look at pictures. Pause it and send a screenshot.",
    "Это видео, а я смотрю картинки. Поставь паузу и пришли скриншот."],
  bytes: ["This file has more than 20 MB. Send a screenshot of it.", "В файле больше 20 МБ. Пришли скриншот."],
  large: ["This picture has more than 50 megapixels. Send a screenshot of it.",
    "В картинке больше 50 мегапикселей. Пришли скриншот."],
  small: ["This picture is too small to be a frame.", "Эта картинка слишком мала для кадра."],
};
const SURE = [ // from which confidence on, in words
  [0.95, "almost certain", "почти наверняка"], [0.8, "very likely", "очень вероятно"], [0.6, "likely", "вероятно"],
  [0.3, "possible", "возможно"], [0, "unlikely", "вряд ли"],
];
const ALIKE = [ // from which similarity on
  [0.9, "nearly the same picture", "почти та же картинка"], [0.7, "very alike", "очень похож"],
  [0.45, "alike", "похож"], [-1, "a little alike", "немного похож"],
];
const language = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => ["en", "ru"].includes(tag)) ?? "en";
const russian = language === "ru";
const say = (key, values) => TEXTS[key][+russian].replace(/{(\w+)}/g, (_, name) => values[name]);
const inWords = (table, value) => table.find(([least]) => value >= least)[1 + russian];
const percent = (share) => `${Math.round(100 * share)}${russian ? "\u00a0" : ""}%`;
const find = (selector, inside = document) => inside.querySelector(selector);
const make = (tag, values = {}, ...inside) => {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...inside);
  return element;
};
const [input, status, said, progress, answer] = ["input", "#status", "#said", "progress", "#answer"].map((at) => find(at));

document.documentElement.lang = language;
for (const element of russian ? document.querySelectorAll("[data-ru]") : [])
  element.textContent = element.dataset.ru;
document.title = find("h1").textContent;

// ---------------------------------------------------------------------------------------------- the worker

let worker, loading;
let questions = 0; // that it was asked
const waiting = new Map(); // what takes the reply, by the question's number

function ask(message) {
  questions += 1;
  worker.postMessage({ id: questions, ...message });
  return new Promise((done) => waiting.set(questions, done));
}

// offline visits: the first one waits, since a service worker keeps only what is loaded once it is active
async function keepFiles() {
  const { installing } = await navigator.serviceWorker.register("sw.js");
  const settled = (done) => () => /activated|redundant/.test(installing.state) && done();
  if (installing) await new Promise((done) => (installing.onstatechange = settled(done)));
}

async function start() {
  progress.hidden = false;
  progress.removeAttribute("value");
  status.textContent = say("loading", { loaded: 0, total: "…" });
  if (!globalThis.WebAssembly) return { error: "wasm" };
  await keepFiles().catch(() => {}); // plain http and private windows have none, and the page works all the same
  // from a blob it is bound by this page's policy, from a file it would have none
  const code = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  worker = new Worker(address, { type: "module" });
  worker.onmessage = ({ data }) => {
    URL.revokeObjectURL(address);
    if ("loaded" in data) showProgress(data);
    else waiting.get(data.id)?.(data);
    waiting.delete(data.id);
  };
  worker.onerror = async (event) => {
    event.preventDefault();
    URL.revokeObjectURL(address);
    fail(event.message ? { error: "crash", detail: event.message } : { error: "start", detail: await findMissing() });
  };
  const { href } = new URL(new URLSearchParams(location.search).get("model") ?? "model/", location.href);
  return ask({ load: href.endsWith(".onnx") ? href : href.replace(/\/?$/, "/model.web.onnx") });
}

// every question that waits gets this reply
function fail(reply) {
  for (const done of waiting.values()) done(reply);
  waiting.clear();
}

// why a worker of modules does not even begin: the browser keeps that to itself
async function findMissing() {
  for (const name of ["worker.js", "index.js"]) {
    const response = await fetch(name).catch(({ message }) => ({ status: message }));
    if (!response.ok) return `${name}: ${response.status}`;
  }
  return "worker.js";
}

function showProgress({ loaded, total }) {
  if (progress.hidden) return; // what else was on its way when the loading failed
  const [done, all] = [loaded, Math.max(loaded, total)].map((bytes) => (bytes / 1e6).toFixed(1));
  status.textContent = say("loading", { loaded: done, total: all });
  progress.value = loaded / Math.max(loaded, total);
}

function begin() {
  loading = start().then((found) => {
    progress.hidden = true;
    const texts = found.error ? [found.error] : ["ready", found.without].filter(Boolean);
    status.textContent = texts.map((key) => say(key, found)).join(" ");
    said.textContent = status.textContent;
    status.classList.toggle("error", Boolean(found.error));
    if (!found.error) showTitles(found.titles);
    settle();
    return found;
  });
  return loading;
}

// after a crash nothing that the worker holds can be trusted
async function restart() {
  worker.terminate();
  await begin();
}

const settle = () => (answer.ariaBusy = String(Boolean(find("article:not([data-kind])"))));
let queue = begin();

function showTitles(titles) {
  const list = find("#titles");
  list.hidden = false;
  find("summary", list).textContent = say("known");
  list.ontoggle = () => find("p", list).replaceChildren(titles.toSorted((a, b) => a.localeCompare(b)).join(" · "));
}

async function check() {
  const found = (await loading).error ? {} : await ask({ check: true });
  if (!found.changed) return false;
  status.textContent = say("changed", found);
  showTitles(found.titles);
  return true;
}

const checkSoon = () => {
  if (document.visibilityState === "visible") queue = queue.then(check);
};
document.addEventListener("visibilitychange", checkSoon);
setInterval(checkSoon, CHECK_MS);

// --------------------------------------------------------------------------------------------- questions

function identify(files) {
  const cards = [...files].map((file) => addCard([file]));
  if (cards.length > 1) offerTogether(cards);
}

// a question of one frame or of several of one film; the newest stands on top
function addCard(files) {
  const card = find("template").content.firstElementChild.cloneNode(true);
  document.body.classList.add("answering");
  card.files = files;
  find(".more", card).textContent = say("more");
  find(".more", card).onclick = () => {
    joining = card;
    input.click();
  };
  answer.prepend(card);
  while (answer.childElementCount > MAX_CARDS) answer.lastElementChild.remove();
  enqueue(card);
  return card;
}

function enqueue(card) {
  delete card.dataset.kind;
  find("h2", card).textContent = say("working");
  settle();
  queue = queue.then(() => card.isConnected && look(card)).catch(({ message }) => showError(card, message)).then(settle);
}

const showError = (card, detail) => show(card, { error: "crash", detail }, 0);

function offerTogether(cards) {
  const button = make("button", { type: "button", textContent: say("same") });
  const offer = make("p", { className: "group" }, `${say("group", { count: cards.length })} `, button);
  button.onclick = () => {
    for (const element of [offer, ...cards]) element.remove();
    addCard(cards.flatMap((card) => card.files));
  };
  answer.prepend(offer);
}

async function look(card, again = false) {
  const begun = performance.now();
  let found = await loading;
  if (!found.error) found = (await findFault(card.files)) ?? (await ask({ frames: card.files }));
  if (["crash", "memory"].includes(found.error)) await restart();
  const proof = found.candidates?.[0]?.proof;
  const still = proof && (await ask({ proof }));
  // its stills are there no more, so the films are not those that were loaded
  if (still?.error === "gone" && !again && (await check())) return look(card, true);
  show(card, found, Math.round(performance.now() - begun), still);
}

// what is wrong with the files before the worker sees them, or undefined
async function findFault(files) {
  for (const file of files) {
    if (file.type.startsWith("video/")) return { error: "video" };
    if (file.size > MAX_BYTES) return { error: "bytes" };
    const bytes = new Uint8Array(await file.slice(0, 512).arrayBuffer());
    const text = String.fromCharCode(...bytes);
    const size = await measure(file);
    if (size && size[0] * size[1] > MAX_PIXELS) return { error: "large" };
    // as is_heif of formats.py
    const brands = text.slice(4, 8) === "ftyp" ? text.slice(8, Math.min(512, (bytes[2] << 8) | bytes[3])) : "";
    if (!size && /hei[cxms]|hev[cx]|heif|mif[12]|msf1|miaf/.test(brands)) return { error: "heic" };
  }
}

// [width, height], as its header says, or null: the browser decodes only what is shown
function measure(file) {
  const image = new Image();
  return new Promise((done) => {
    image.onload = () => done([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => done(null);
    showBlob(image, file);
  });
}

// the picture stays when its address is given back
function showBlob(image, blob) {
  const address = URL.createObjectURL(blob);
  for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(address), { once: true });
  image.src = address;
}

// ----------------------------------------------------------------------------------------------- answers

function show(card, found, ms, still) {
  const { error, detail, kind = "error", candidates = [], look = "", reason = "", frames = 1 } = found;
  const [best = { title: "" }] = candidates;
  const name = card.files.map((file) => file.name).join(", ");
  find("h2", card).replaceChildren(...(kind === "movie" ? showTitle(best.title) : [say(error ?? (reason || kind), { detail })]));
  find(".why", card).textContent = describe(found).join(" ");
  const about = [name, !error && say("time", { ms }), look && say("inside"), frames > 1 && say("several", { frames })];
  find(".about", card).textContent = about.filter(Boolean).join(" · ");
  if (!error) showFrames(card);
  showCandidates(card, kind, candidates);
  find(".more", card).hidden = Boolean(error) || kind === "movie";
  showProof(card, best, still);
  said.textContent = `${name}: ${find("h2", card).textContent} ${find(".why", card).textContent}`.trim();
  const { file = "", error: missing = "" } = still ?? {};
  const { similarity = "", time = "", from = "", to = "" } = best.proof ?? {};
  const data = { kind, title: best.title, confidence: best.confidence?.toFixed(4) ?? "", look, reason, ms, file: name,
    frames, still: file, at: time, from, to, alike: similarity && similarity.toFixed(4), missing };
  for (const place of [card, answer]) Object.assign(place.dataset, data);
}

// how sure, or why not, in sentences
function describe({ kind, candidates, reason, small }) {
  const sentences = [];
  if (kind === "movie") sentences.push(`${startLarge(inWords(SURE, candidates[0].confidence))} · ${percent(candidates[0].confidence)}`);
  if (kind === "shortlist") sentences.push(say("alike"));
  if (kind === "unknown" && !reason) sentences.push(say("far"));
  if (small && kind !== "movie") sentences.push(say("smallish"));
  return sentences;
}

const startLarge = (text) => text[0].toUpperCase() + text.slice(1);

// Title, and its year smaller
function showTitle(title) {
  const [, name, year] = title.match(/^(.*\S)\s*\((\d{4})\)$/s) ?? [null, title, ""];
  return year ? [`${name} `, make("small", { textContent: year })] : [name];
}

function showFrames(card) {
  const frames = find(".frames", card);
  frames.replaceChildren(...card.files.map((file) => {
    const image = make("img", { alt: file.name });
    showBlob(image, file);
    return image;
  }));
  find(".asked figcaption", card).textContent = say(card.files.length > 1 ? "askedAll" : "asked");
  find(".pair", card).hidden = false;
}

// of a film that is named the others are only there for who wants to know
function showCandidates(card, kind, candidates) {
  const list = find("ol", card);
  list.replaceChildren(...candidates.map((candidate) => showCandidate(card, candidate)));
  find("summary", card).textContent = say("guesses");
  Object.assign(find("details", card), { hidden: !candidates.length, open: kind === "shortlist" });
}

function showCandidate(card, candidate) {
  const { title, confidence, proof } = candidate;
  const name = proof ? make("button", { type: "button" }, ...showTitle(title)) : make("span", {}, ...showTitle(title));
  if (proof) name.onclick = async () => showProof(card, candidate, await ask({ proof }));
  const meter = make("meter", { value: confidence, ariaLabel: title });
  return make("li", {}, name, meter, make("span", { textContent: `${inWords(SURE, confidence)} · ${percent(confidence)}` }));
}

// still: what the worker said of it
function showProof(card, { title, proof }, still) {
  const figure = find(".proof", card);
  figure.hidden = !still;
  if (!still) return;
  const [image, caption] = ["img", "figcaption"].map((tag) => find(tag, figure));
  const picture = still.picture?.size ? still.picture : null;
  image.hidden = !picture;
  image.alt = title;
  if (picture) showBlob(image, picture);
  const named = find("h2", card).textContent === showText(title); // it need not be said twice
  const lines = [say("proof"), !named && title, showSpan(proof), inWords(ALIKE, proof.similarity)];
  if (!picture) lines[0] = say(still.error ? "lost" : "hidden");
  caption.replaceChildren(...lines.filter(Boolean).map((text) => make("span", { textContent: text })));
  for (const button of card.querySelectorAll("li button")) button.ariaPressed = String(button.textContent === showText(title));
}

const showText = (title) => make("p", {}, ...showTitle(title)).textContent;

// from when to when in the film
function showSpan({ time, from, to }) {
  if (time < 0) return "";
  const [begin, end] = [from, to].map((ms) => `${Math.floor(ms / 3600e3)}${new Date(ms).toISOString().slice(13, 19)}`);
  return begin === end ? begin : say("span", { from: begin, to: end });
}

// ----------------------------------------------------------------------------------------- pictures come

let joining = null; // the card that the chosen files join

input.onchange = () => {
  const files = [...input.files];
  if (joining?.isConnected && files.length) {
    joining.files = [...joining.files, ...files];
    enqueue(joining);
  } else identify(files);
  joining = null;
  input.value = ""; // so that the same file can be chosen again
};
input.oncancel = () => (joining = null);
document.onpaste = (event) => identify(event.clipboardData.files);
document.ondragover = (event) => {
  event.preventDefault();
  find("#drop").classList.add("over");
};
document.ondragleave = () => find("#drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  find("#drop").classList.remove("over");
  identify(event.dataTransfer.files);
};
