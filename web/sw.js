// Keeps what the page loads: what the server has not changed since comes from the cache, and offline everything does.

const LASTS = /-[0-9a-f]{16}\.bin$/; // a file whose name changes with what it holds need not be asked for again

self.oninstall = (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open("movie-by-frame").then((cache) => cache.addAll(["./", "app.js", "style.css"])));
};
self.onactivate = (event) => event.waitUntil(self.clients.claim());
self.onfetch = (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event)); // all from this host, by the page's policy
};

async function answer(event) {
  const cache = await caches.open("movie-by-frame");
  const url = event.request.url.split(/[?#]/)[0];
  const kept = await cache.match(url);
  if (kept && LASTS.test(url)) return kept;
  const [tag, date] = ["etag", "last-modified"].map((name) => kept?.headers.get(name));
  const headers = tag ? { "if-none-match": tag } : date ? { "if-modified-since": date } : {};
  const response = await fetch(url, { headers, redirect: event.request.redirect }).catch(() => null);
  if (!response || response.status === 304) return kept ?? Response.error();
  if (response.status === 404) event.waitUntil(cache.delete(url));
  if (response.ok) event.waitUntil(cache.put(url, response.clone()));
  return response;
}
