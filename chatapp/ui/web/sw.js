// The installed app is opened like a program, also when Quatrain is not running: then it says so instead of the browser.
const CACHE = "quatrain-1";

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.add("/offline.html")));
  self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  if (event.request.mode !== "navigate" || new URL(event.request.url).pathname !== "/") return;
  event.respondWith(fetch(event.request).catch(() => caches.match("/offline.html")));
});
