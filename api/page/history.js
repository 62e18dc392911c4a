// The events of a job or plan, the last first, and how long the rest will take by the pace of the last ones.

import { bytes, count, duration, moment, number, percent } from "./format.js";
import { el } from "./dom.js";

const MOST_SHOWN = 2000, PACE_EVENTS = 30;

export class History {
  constructor(onAll) {
    this.list = el("ol", { class: "events", tabindex: "0", "aria-label": "Events, the last first", reversed: true });
    this.earlier = el("button", { type: "button", class: "small", hidden: true, onclick: onAll }, "Show earlier events");
    this.cut = el("p", { class: "quiet", hidden: true }, `The last ${count(MOST_SHOWN)} are shown; factor-search watch shows all.`);
    this.live = el("span", { class: "quiet" });
    this.element = el("section", { "aria-label": "Events" }, el("div", { class: "title" }, el("h2", {}, "Events"), this.live), this.list, this.earlier, this.cut);
    this.pace = [];
  }

  clear(after) {
    this.list.replaceChildren();
    this.pace = [];
    this.earlier.hidden = after === 0;
  }

  connected(isConnected) {
    this.live.textContent = isConnected ? "live" : "connecting again …";
  }

  ended() {
    this.live.textContent = "";
  }

  add(event) {
    this.list.prepend(el("li", {}, el("time", { datetime: event.at }, moment(event.at)), " ", el("strong", {}, event.kind.replaceAll("_", " ")), " ", described(event)));
    while (this.list.children.length > MOST_SHOWN) {
      this.list.lastChild.remove();
      this.earlier.hidden = true;
      this.cut.hidden = false;
    }
    if (event.kind === "progress") this.pace = [...this.pace, { at: Date.parse(event.at), share: event.data.share ?? 0 }].slice(-PACE_EVENTS);
    else if (["claimed", "paused", "resumed"].includes(event.kind)) this.pace = [];
  }

  // Seconds until all is done; null if nothing can be said.
  left() {
    const [first, last] = [this.pace[0], this.pace.at(-1)];
    const gained = (last?.share ?? 0) - (first?.share ?? 0), seconds = ((last?.at ?? 0) - (first?.at ?? 0)) / 1000;
    return gained > 0 && seconds > 0 ? (seconds * (1 - last.share)) / gained : null;
  }
}

function described({ kind, data }) {
  if (kind === "progress") {
    const parts = [data.phase, data.share > 0 && percent(data.share), data.candidates > 0 && `${count(data.candidates)} candidates`];
    if (data.best_perplexity) parts.push(`best ${number(data.best_perplexity)}`);
    if (data.step) parts.push(`step ${count(data.step)} of ${count(data.steps)}`);
    return parts.filter(Boolean).join(", ");
  }
  return Object.entries(data)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => (name === kind ? figure(name, value) : `${name.replaceAll("_", " ")}: ${figure(name, value)}`))
    .join(", ");
}

function figure(name, value) {
  if (Array.isArray(value) && value.every((one) => typeof one !== "object")) return value.join(", ");
  if (typeof value === "object") return JSON.stringify(value);
  if (typeof value !== "number") return String(value);
  if (name.endsWith("seconds")) return duration(value);
  if (name.endsWith("memory")) return bytes(value);
  return Number.isInteger(value) ? count(value) : number(value);
}

export function timeLeft(item, history) {
  if (item.state !== "running") return null;
  const seconds = history.left();
  return seconds === null ? "not known yet" : `about ${duration(seconds)}`;
}
