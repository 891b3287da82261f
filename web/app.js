// The page: pictures in, answers out; worker.js does the work.

const [MAX_BYTES, MAX_PIXELS, MIN_SIDE] = [20e6, 50e6, 16]; // as image.py
const TEXTS = {
  en: { // and what stands in index.html
    loading: "Fetching the model: {loaded} of {total} MB", starting: "Starting the model…",
    ready: "Ready. Films known: {films}.", working: "Looking…", time: "{ms} ms", movie: "This looks like {title}.",
    shortlist: "I doubt a little. Perhaps one of these:", unknown: "I don't know this film. Try another frame.",
    missing: "There is no model here ({detail} can't be fetched). Make one with export.py --web.",
    format: "This model has another format ({detail}). Export it again with export.py --web.",
    embedder: "This model was taught no films. It needs an index beside it: index.py add.",
    index: "The index here is damaged or of another model ({detail}). Try index.py check, or make it anew.",
    many: " The index has more than 100,000 stills, too many for this page: it is not asked.",
    broken: "The model can't run here: {detail}", engine: "web/vendor is missing on this host: run make web there.",
    wasm: "This browser has no WebAssembly. Another or a newer one is needed.",
    picture: "This is not a picture that the browser can read.", small: "This picture is too small to be a frame.",
    large: "This picture has more than 20 MB or 50 megapixels.", still: "The nearest still I know: {title}{at}",
    inside: "{ms} ms, by the still inside this screenshot",
  },
  ru: {
    title: "Что это за фильм?", choose: "Выбрать кадры", drop: "или перетащить или вставить их сюда",
    private: "Кадры смотрит сам браузер. Они никуда не отправляются и не сохраняются.",
    loading: "Загружаю модель: {loaded} из {total} МБ", starting: "Запускаю модель…",
    ready: "Готово. Знаю фильмов: {films}.", working: "Смотрю…", time: "{ms} мс", movie: "Похоже, это {title}.",
    shortlist: "Немного сомневаюсь. Возможно, один из этих:", unknown: "Я не знаю этот фильм. Попробуй другой кадр.",
    missing: "Здесь нет модели ({detail} не загружается). Её создаёт export.py --web.",
    format: "У этой модели другой формат ({detail}). Экспортируй её заново: export.py --web.",
    embedder: "Эта модель не знает фильмов. Рядом с ней нужен индекс: index.py add.",
    index: "Индекс здесь повреждён или от другой модели ({detail}). Проверь его (index.py check) или создай заново.",
    many: " В индексе больше 100 000 кадров, для этой страницы это слишком много: он не используется.",
    broken: "Модель здесь не работает: {detail}", engine: "На этом сервере нет web/vendor: запусти там make web.",
    wasm: "В этом браузере нет WebAssembly. Нужен другой или более новый.",
    picture: "Это не картинка, которую браузер может прочитать.", small: "Эта картинка слишком мала для кадра.",
    large: "В этой картинке больше 20 МБ или 50 мегапикселей.", still: "Ближайший известный кадр: {title}{at}",
    inside: "{ms} мс, по кадру внутри скриншота",
  },
};
const language = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in TEXTS) ?? "en";
const say = (key, values) => TEXTS[language][key].replace(/{(\w+)}/g, (_, name) => values[name]);
const find = (selector, inside = document) => inside.querySelector(selector);
const [input, status, progress, answer] = ["input", "#status", "progress", "#answer"].map((at) => find(at));

document.documentElement.lang = language;
for (const element of document.querySelectorAll("[data-text]"))
  element.textContent = TEXTS[language][element.dataset.text] ?? element.textContent;
document.title = find("h1").textContent;

// ------------------------------------------------------------------------------------------------- the worker

let worker;
let reply = () => {};

function ask(message) {
  worker.postMessage(message);
  return new Promise((done) => (reply = done));
}

// offline visits; without a service worker (plain http, private windows) the page works all the same
async function keepFiles() {
  const { installing, active } = await navigator.serviceWorker.register("sw.js");
  if (!installing || active) return;
  await new Promise((done) => {
    installing.onstatechange = () => /activated|redundant/.test(installing.state) && done();
  });
}

async function start() {
  status.textContent = say("starting");
  if (!globalThis.WebAssembly) return { error: "wasm" };
  await keepFiles().catch(() => {});
  // from a blob it is bound by this page's policy, from a file it would have none
  const code = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
  worker.onmessage = ({ data }) => ("loaded" in data ? showProgress(data) : reply(data));
  worker.onerror = () => reply({ error: "engine" });
  const model = new URL(new URLSearchParams(location.search).get("model") ?? "../export/", location.href);
  return ask({ model: /(\/|\.onnx)$/.test(model.href) ? model.href : `${model.href}/` });
}

function showProgress({ loaded, total }) {
  if (total < 1e5) return; // model.json
  progress.hidden = false;
  progress.value = loaded / total;
  const [done, all] = [loaded, total].map((bytes) => (bytes / 1e6).toFixed(1));
  status.textContent = say(loaded < total ? "loading" : "starting", { loaded: done, total: all });
}

const loading = start().then((found) => {
  progress.hidden = true;
  status.textContent = found.error ? say(found.error, found) : say("ready", found.ready);
  if (found.ready?.many) status.textContent += say("many");
  status.classList.toggle("error", Boolean(found.error));
  answer.ariaBusy = String(waiting > 0);
  return found;
});

// ------------------------------------------------------------------------------------------------ the pictures

let queue = loading;
let waiting = 0;

function identify(files) {
  for (const file of files) {
    const card = find("template").content.firstElementChild.cloneNode(true);
    find("h2", card).textContent = say("working");
    answer.prepend(card);
    answer.ariaBusy = "true";
    waiting++;
    queue = queue.then(() => look(file, card)).then(() => (answer.ariaBusy = String(--waiting > 0)));
  }
}

// what is wrong with a picture, told before it is decoded
async function findFault(file, picture) {
  if (file.size > MAX_BYTES) return "large";
  await new Promise((done) => Object.assign(picture, { onload: done, onerror: done, src: URL.createObjectURL(file) }));
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width * height > MAX_PIXELS) return "large";
  return !width ? "picture" : Math.min(width, height) < MIN_SIDE ? "small" : null;
}

async function look(file, card) {
  const begun = performance.now();
  const picture = Object.assign(new Image(), { alt: file.name });
  let found = await loading;
  const error = found.error ? null : await findFault(file, picture);
  if (!found.error) found = error ? { error } : await ask({ blob: file });
  const [best] = found.candidates ?? [];
  const ms = Math.round(performance.now() - begun);
  const data = { kind: found.kind ?? "error", title: best?.title ?? "", ms, file: file.name, still: "", at: "" };
  Object.assign(data, { confidence: best?.confidence.toFixed(4) ?? "", look: found.look ?? "" });
  if (!found.error) card.prepend(picture);
  find("h2", card).textContent = say(found.error ?? found.kind, { ...found, title: best?.title });
  find("p", card).textContent = found.error ? file.name : say(found.look ? "inside" : "time", { ms });
  find("ol", card).append(...(found.candidates ?? []).map(showCandidate));
  status.textContent = `${file.name}: ${find("h2", card).textContent}`;
  const still = found.nearest && (await ask({ nearest: found.nearest }));
  if (still?.thumbnail) Object.assign(data, showStill(card, best.title, still));
  for (const place of [card, answer]) Object.assign(place.dataset, data);
}

function showStill(card, title, { file, time, thumbnail }) {
  const at = time < 0 ? "" : `, ${new Date(time).toISOString().slice(12, 19)}`;
  find("figure img", card).src = URL.createObjectURL(thumbnail);
  find("figcaption", card).textContent = say("still", { title, at });
  find("figure", card).hidden = false;
  return { still: file, at: time };
}

function showCandidate({ title, confidence }) {
  const [line, name, meter, share] = ["li", "span", "meter", "span"].map((tag) => document.createElement(tag));
  name.textContent = title;
  meter.value = confidence;
  meter.ariaLabel = title;
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
