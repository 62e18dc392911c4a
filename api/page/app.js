// Which view an address shows; links within the page change the view without loading the page again.

import { el, say } from "./dom.js";

const ROUTES = [
  [/^\/$/, "./lists.js"],
  [/^\/jobs\/([0-9a-f]+)$/, "./job.js"],
  [/^\/plans\/(p[0-9a-f]+)$/, "./plan.js"],
  [/^\/submit$/, "./submit.js"],
  [/^\/compare$/, "./compare.js"],
];
const content = document.getElementById("content");
let leaving = new AbortController();

function routeOf(path) {
  for (const [pattern, module] of ROUTES) {
    const match = pattern.exec(path);
    if (match) return { module, id: match[1] };
  }
  return null;
}

async function show(isFirst) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const route = routeOf(location.pathname);
  const place = el("div");
  content.replaceChildren(place);
  if (!isFirst) {
    content.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  try {
    if (!route) throw new Error(`There is no page ${location.pathname}`);
    const view = await import(route.module);
    if (signal.aborted) return;
    await view.show(place, { id: route.id, query: new URLSearchParams(location.search), signal, go });
  } catch (error) {
    if (signal.aborted) return;
    place.replaceChildren(
      el("h1", {}, "This cannot be shown"),
      el("p", { class: "problem", role: "alert" }, error.message),
      el("p", {}, el("a", { href: "/" }, "All jobs and plans")),
    );
  }
  if (signal.aborted) return;
  const title = place.querySelector("h1")?.textContent ?? "factor-search";
  document.title = title === "factor-search" ? title : `${title} · factor-search`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === location.pathname && !link.classList.contains("brand")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!isFirst) say(title);
}

export function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  return show(false);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  if (link.origin !== location.origin || link.hasAttribute("download") || link.target || link.hash || !routeOf(link.pathname)) return;
  event.preventDefault();
  go(link.pathname + link.search);
});
addEventListener("popstate", () => show(false));

const dashboard = document.querySelector('meta[name="dashboard"]').content;
document.getElementById("dashboard").hidden = !dashboard;
show(true);
