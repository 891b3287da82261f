// The page: pictures in, answers out; worker.js does the work.

const MAX_BYTES = 20e6; // as pictures.py
const TEXTS = { // in English and Russian, and what stands in index.html
  loading: ["Fetching the model…", "Загружаю модель…"],
  ready: ["Ready. Films known: {films}.", "Готово. Знаю фильмов: {films}."],
  working: ["Looking…", "Смотрю…"], time: ["{ms} ms", "{ms} мс"],
  inside: ["{ms} ms, by the still inside this screenshot", "{ms} мс, по кадру внутри скриншота"],
  movie: ["This looks like {title}.", "Похоже, это {title}."],
  shortlist: ["I doubt a little. Perhaps one of these:", "Немного сомневаюсь. Возможно, один из этих:"],
  unknown: ["I don't know this film. Try another frame.", "Я не знаю этот фильм. Попробуй другой кадр."],
  little: ["I don't know this film: there is too little in the picture.",
    "Я не знаю этот фильм: на картинке слишком мало."],
  still: ["The nearest still I know: {title}{at}", "Ближайший известный кадр: {title}{at}"],
  model: ["There is no model here that runs ({detail}). Make one with export.py --web.",
    "Здесь нет модели, которая работает ({detail}). Её создаёт export.py --web."],
  embedder: ["This model was taught no films. It needs an index beside it: index.py add.",
    "Эта модель не знает фильмов. Рядом с ней нужен индекс: index.py add."],
  index: ["The index here is damaged or of another model ({detail}). Try index.py check, or make it anew.",
    "Индекс здесь повреждён или от другой модели ({detail}). Проверь его (index.py check) или создай заново."],
  empty: ["The index here holds no films yet: index.py add.", "В индексе здесь пока нет фильмов: index.py add."],
  many: ["The index here has more than 100,000 stills, too many for this page.",
    "В индексе здесь больше 100 000 кадров, для этой страницы это слишком много."],
  engine: ["web/vendor is missing here: run make web.", "Здесь нет web/vendor: запусти make web."],
  wasm: ["This browser has no WebAssembly: take a newer one.", "В этом браузере нет WebAssembly: нужен более новый."],
  picture: ["This is not a picture that the browser can read.", "Это не картинка, которую браузер может прочитать."],
  large: ["This picture has more than 20 MB or 50 megapixels.", "В этой картинке больше 20 МБ или 50 мегапикселей."],
  small: ["This picture is too small to be a frame.", "Эта картинка слишком мала для кадра."],
};
const language = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => ["en", "ru"].includes(tag)) ?? "en";
const say = (key, values) => TEXTS[key][+(language === "ru")].replace(/{(\w+)}/g, (_, name) => values[name]);
const find = (selector, inside = document) => inside.querySelector(selector);
const [input, status, progress, answer] = ["input", "#status", "progress", "#answer"].map((at) => find(at));

document.documentElement.lang = language;
for (const element of language === "ru" ? document.querySelectorAll("[data-ru]") : [])
  element.textContent = element.dataset.ru;
document.title = find("h1").textContent;

let worker, reply;

function ask(message) {
  worker.postMessage(message);
  return new Promise((done) => (reply = done));
}

// offline visits: the first one waits, since a service worker keeps only what is loaded once it is active
async function keepFiles() {
  const { installing } = await navigator.serviceWorker.register("sw.js");
  const settled = (done) => () => /activated|redundant/.test(installing.state) && done();
  if (installing) await new Promise((done) => (installing.onstatechange = settled(done)));
}

async function start() {
  status.textContent = say("loading");
  progress.hidden = false;
  if (!globalThis.WebAssembly) return { error: "wasm" };
  await keepFiles().catch(() => {}); // plain http and private windows have none, and the page works all the same
  // from a blob it is bound by this page's policy, from a file it would have none
  const code = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
  worker.onmessage = ({ data }) => ("loaded" in data ? (progress.value = data.loaded) : reply(data));
  worker.onerror = () => reply({ error: "engine" });
  const { href } = new URL(new URLSearchParams(location.search).get("model") ?? "../export/", location.href);
  return ask({ model: href.endsWith(".onnx") ? href : href.replace(/\/?$/, "/model.web.onnx") });
}

const settle = () => (answer.ariaBusy = String(Boolean(find("article:not([data-kind])"))));
const loading = start().then((found) => {
  progress.hidden = true;
  const texts = found.error ? [found.error] : ["ready", found.without].filter(Boolean);
  status.textContent = texts.map((key) => say(key, found)).join(" ");
  status.classList.toggle("error", Boolean(found.error));
  settle();
  return found;
});
let queue = loading;

function identify(files) {
  for (const file of files) {
    const card = find("template").content.firstElementChild.cloneNode(true);
    find("h2", card).textContent = say("working");
    answer.prepend(card);
    settle();
    queue = queue.then(() => look(file, card)).then(settle);
  }
}

async function look(file, card) {
  const begun = performance.now();
  let found = await loading;
  if (!found.error) found = file.size > MAX_BYTES ? { error: "large" } : await ask({ blob: file });
  const { error, kind = "error", candidates = [], look = "", reason = "" } = found;
  const ms = Math.round(performance.now() - begun);
  const [{ title, confidence } = { title: "" }] = candidates;
  const shown = confidence?.toFixed(4) ?? "";
  const data = { kind, title, confidence: shown, look, reason, ms, file: file.name, still: "", at: "" };
  if (!error) card.prepend(Object.assign(new Image(), { alt: file.name, src: URL.createObjectURL(file) }));
  find("h2", card).textContent = say(error ?? (reason || kind), { ...found, title });
  find("p", card).textContent = error ? file.name : say(look ? "inside" : "time", { ms });
  find("ol", card).append(...candidates.map(showCandidate));
  status.textContent = `${file.name}: ${find("h2", card).textContent}`;
  const still = candidates[0]?.frames && (await ask({ nearest: candidates[0] }));
  if (still?.thumbnail) Object.assign(data, showStill(card, title, still));
  for (const place of [card, answer]) Object.assign(place.dataset, data);
}

function showStill(card, title, { file, time, thumbnail }) {
  const at = time < 0 ? "" : `, ${Math.floor(time / 3600e3)}${new Date(time).toISOString().slice(13, 19)}`;
  find("figure img", card).src = URL.createObjectURL(thumbnail);
  find("figcaption", card).textContent = say("still", { title, at });
  find("figure", card).hidden = false;
  return { still: file, at: time };
}

function showCandidate({ title, confidence }) {
  const [line, name, meter, share] = ["li", "span", "meter", "span"].map((tag) => document.createElement(tag));
  name.textContent = title;
  Object.assign(meter, { value: confidence, ariaLabel: title });
  share.textContent = `${Math.round(100 * confidence)} %`;
  line.append(name, meter, share);
  return line;
}

input.onchange = () => {
  identify([...input.files]);
  input.value = ""; // so that the same file can be chosen again
};
document.onpaste = (event) => identify(event.clipboardData.files);
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  identify(event.dataTransfer.files);
};
