// All plans and jobs, the newest first, looked at again every few seconds.

import { ago, moment, number, percent } from "./format.js";
import { add, announceProblem, badge, el, fill, progressBar, setText, tableCell } from "./dom.js";
import { get } from "./rest.js";

const PAGE = 50, MOST = 200;
const BUSY_MS = 3000, IDLE_MS = 15_000;
const ACTIVE = ["queued", "running", "waiting"];
const STATES = {
  plans: ["queued", "running", "paused", "waiting", "finished", "failed", "cancelled"],
  jobs: ["queued", "running", "paused", "finished", "failed", "cancelled"],
};

export async function show(place, { signal, go }) {
  const chosen = new Set();
  const compare = el("button", { type: "button", disabled: true, onclick: () => go(`/compare?jobs=${[...chosen].join(",")}`) }, "Compare");
  const onChosen = (id, isChosen) => {
    if (isChosen) chosen.add(id);
    else chosen.delete(id);
    compare.disabled = chosen.size < 2 || chosen.size > 8;
    setText(compare, chosen.size ? `Compare ${chosen.size} jobs` : "Compare");
  };
  const lists = [new List("plans", "Plans", null), new List("jobs", "Jobs", { chosen, onChosen })];
  add(place, 
    el("h1", {}, "Jobs and plans"),
    el("p", { class: "buttons" }, el("a", { class: "button main", href: "/submit" }, "Submit a job"), compare),
    lists.map((list) => list.section),
  );
  await Promise.all(lists.map((list) => list.refresh()));
  keepFresh(lists, signal);
}

function keepFresh(lists, signal) {
  let timer = setTimeout(() => look(), BUSY_MS), isLooking = false;
  const look = async () => {
    if (isLooking) return;
    isLooking = true;
    clearTimeout(timer);
    if (!document.hidden) await Promise.all(lists.map((list) => list.refresh()));
    isLooking = false;
    if (!signal.aborted) timer = setTimeout(look, lists.some((list) => list.isActive()) ? BUSY_MS : IDLE_MS);
  };
  document.addEventListener("visibilitychange", () => document.hidden || look(), { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
}

class List {
  constructor(word, title, choice) {
    this.word = word;
    this.choice = choice;
    this.items = [];
    this.rows = new Map();
    this.wanted = PAGE;
    this.state = el("select", { onchange: () => this.restart() }, el("option", { value: "" }, "all"),
      STATES[word].map((state) => el("option", { value: state }, state)));
    this.titles = [choice && "Compare", "Name", "State", "Progress", "Best", "Best closed form", "Submitted", "By"].filter(Boolean);
    this.body = el("tbody");
    this.more = el("button", { type: "button", hidden: true, onclick: () => this.showMore() }, "Show more");
    this.note = el("p", { class: "quiet" });
    const heads = this.titles.map((head) => el("th", { scope: "col", class: head.startsWith("Best") && "number" }, head));
    this.table = el("table", { class: "list" }, el("caption", { class: "unseen" }, title), el("thead", {}, el("tr", {}, heads)), this.body);
    this.section = el("section", { "aria-label": title },
      el("div", { class: "title" }, el("h2", {}, title), el("label", {}, "State ", this.state)),
      this.table, this.note, el("p", {}, this.more));
  }

  isActive() {
    return this.items.some((item) => ACTIVE.includes(item.state));
  }

  async restart() {
    this.wanted = PAGE;
    await this.refresh();
  }

  async showMore() {
    this.wanted += PAGE;
    await this.refresh();
  }

  // Only the last answer that was asked for is shown: others may be of another state, or of fewer.
  async refresh() {
    const asked = (this.asked = (this.asked ?? 0) + 1), items = [];
    let next = "";
    try {
      do {
        const query = new URLSearchParams({ limit: Math.min(this.wanted - items.length, MOST), ...(this.state.value && { state: this.state.value }), ...(next && { cursor: next }) });
        const page = await get(`/v1/${this.word}?${query}`);
        if (asked !== this.asked) return;
        items.push(...page[this.word]);
        next = page.next;
      } while (next && items.length < this.wanted);
    } catch (error) {
      if (asked === this.asked) announceProblem(this.note, error);
      return;
    }
    this.items = items;
    this.more.hidden = !next;
    this.draw();
  }

  draw() {
    const kept = new Map();
    const focused = this.body.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    const rows = this.items.map((item) => {
      const text = JSON.stringify(item) + ago(item.submitted_at);
      const known = this.rows.get(item.id);
      const row = known?.text === text ? known : { text, element: this.row(item) };
      kept.set(item.id, row);
      return row.element;
    });
    const unchanged = rows.length === this.body.children.length && rows.every((row, i) => row === this.body.children[i]);
    if (!unchanged) fill(this.body, ...rows);
    this.rows = kept;
    if (focused && !unchanged) this.body.querySelector(`[data-place="${focused}"]`)?.focus();
    this.table.hidden = !rows.length;
    const which = this.state.value ? ` that are ${this.state.value}` : "";
    const none = this.word === "jobs" ? "No jobs" : "No plans";
    setText(this.note, rows.length ? "" : `${none}${which}.`);
  }

  row(item) {
    const progress = item.progress;
    const ended = item.state === "finished";
    const share = ended ? 1 : progress?.share ?? 0;
    const stage = item.stages ? `${item.stages.filter((one) => one.state === "finished").length} of ${item.stages.length} stages` : "";
    const shown = [stage || progress?.phase, progress && !ended && !item.stages && percent(share)].filter(Boolean).join(", ");
    const cells = [
      this.choice && this.choiceOf(item),
      el("span", {}, el("a", { href: `/${this.word}/${item.id}`, "data-place": `${item.id}-link` }, item.name),
        item.plan && el("span", {}, " ", el("a", { class: "quiet", href: `/plans/${item.plan}` }, "of a plan")),
        item.kept && el("span", { class: "quiet" }, ` kept as ${item.kept}`)),
      el("span", {}, badge(item.state), item.request && ` ${item.request} asked`),
      el("span", {}, progressBar(item.stages ? item.stages.filter((one) => one.state === "finished").length / item.stages.length : share, `Progress of ${item.name}`), " ", shown),
      number(progress?.best_perplexity),
      progress?.closed_form ? `${number(progress.closed_form_perplexity)} (${progress.closed_form})` : "–",
      el("time", { datetime: item.submitted_at, title: moment(item.submitted_at) }, ago(item.submitted_at)),
      item.submitted_by ?? "–",
    ].filter((cell) => cell !== null);
    const head = this.choice ? 1 : 0;
    return el("tr", {}, cells.map((cell, i) => tableCell(cell, this.titles[i], i === head, this.titles[i].startsWith("Best"))));
  }

  choiceOf(item) {
    if (item.kind !== "search" && item.kind !== "readjust") return el("span");
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${item.name}`, "data-place": `${item.id}-box` });
    box.checked = this.choice.chosen.has(item.id);
    box.addEventListener("change", () => this.choice.onChosen(item.id, box.checked));
    return box;
  }
}
