// One plan, live: its stages as a chain with what each gained, its events, and what can be done with it.

import { Actions } from "./actions.js";
import { count, duration, moment, number, percent } from "./format.js";
import { add, announceProblem, badge, copied, el, fill, progressBar, terms } from "./dom.js";
import { ENDED, Following, SEARCHES } from "./following.js";
import { History } from "./history.js";
import { get, hasKey, save } from "./rest.js";

const PROGRESS_MS = 2000;

export async function show(place, { id, signal, go }) {
  const view = new View(place, id, signal, go);
  await view.begin();
}

class View {
  constructor(place, id, signal, go) {
    Object.assign(this, { place, id, signal, path: `/v1/plans/${id}` });
    this.history = new History(() => this.following.from(0));
    this.following = new Following(this.path, this.history, signal, {
      onEvent: (event) => this.happened(event),
      look: () => this.look(),
    });
    this.actions = new Actions("plans", {
      onChange: (plan) => this.changed(plan),
      onDeleting: (isDeleting) => this.following.rest(isDeleting, this.plan),
      onDeleted: () => go("/"),
    });
    this.head = el("div");
    this.chain = el("ol", { class: "chain", "aria-label": "Stages" });
    this.between = el("div");
    this.downloads = el("p", { class: "buttons" });
    this.gained = new Map();
    this.told = 0;
  }

  async begin() {
    this.plan = await get(this.path, this.signal);
    add(this.place, 
      el("h1", {}, this.plan.name),
      this.head,
      this.actions.element,
      this.following.problem,
      el("section", { "aria-label": "Stages" }, el("h2", {}, "Stages"), this.chain, this.between, this.downloads),
      this.history.element,
      el("section", { "aria-label": "Specification" }, el("details", {}, el("summary", {}, "Specification"), copied(JSON.stringify(this.plan.spec, null, 2), "the specification"))),
    );
    this.draw();
    this.following.begin(this.plan);
    this.following.look();
    const timer = setInterval(() => this.ask(), PROGRESS_MS);
    this.signal.addEventListener("abort", () => clearInterval(timer));
  }

  happened(event) {
    if (event.number > this.plan.events) this.following.look();
  }

  // The progress of the present stage is not among the plan's events.
  ask() {
    if (!document.hidden && !ENDED.includes(this.plan.state)) this.following.look();
  }

  changed(plan) {
    this.become(plan);
    this.following.look();
  }

  become(plan) {
    const wasEnded = ENDED.includes(this.plan.state);
    this.plan = { ...plan, events: Math.max(plan.events, this.plan.events) };
    this.draw();
    if (wasEnded && !ENDED.includes(plan.state)) this.following.from(this.plan.events);
  }

  get finished() {
    return this.plan.stages.filter((stage) => stage.state === "finished").length;
  }

  // Brings the plan and what its stages gained up to date.
  async look() {
    this.become(await get(this.path, this.signal));
    const { finished } = this;
    if (finished === this.told) return;
    const report = finished ? await get(`${this.path}/report?format=json`, this.signal) : { stages: [], comparisons: [] };
    this.gained = new Map(report.stages.map((stage) => [stage.name, stage.summary]));
    this.comparisons = report.comparisons.map((one) => one.summary);
    this.told = finished;
    this.draw();
  }

  draw() {
    const { plan } = this;
    fill(this.head, 
      el("p", {}, badge(plan.state), plan.request && ` asked to ${plan.request}`),
      plan.error && el("p", { class: "problem" }, plan.error),
      plan.note && el("p", { class: "note" }, plan.note),
      terms([
        ["Stages finished", `${this.finished} of ${plan.stages.length}`],
        ["Present stage", plan.stage],
        ["Model", plan.spec?.model?.id],
        ["Submitted", moment(plan.submitted_at) + (plan.submitted_by ? ` by ${plan.submitted_by}` : "")],
        ["Took", plan.ended_at && duration((new Date(plan.ended_at) - new Date(plan.submitted_at)) / 1000)],
        ["Kept as", plan.kept],
      ]),
    );
    const text = JSON.stringify([plan.stages, plan.stage, plan.progress, [...this.gained], this.comparisons]);
    if (text !== this.drawn) {
      this.drawn = text;
      fill(this.chain, plan.stages.map((stage) => this.stage(stage)));
      fill(this.between, (this.comparisons ?? []).map((summary) => el("p", {}, summary)));
    }
    this.drawDownloads();
    this.actions.show(plan);
  }

  stage(stage) {
    const isPresent = stage.name === this.plan.stage, progress = isPresent ? this.plan.progress : null;
    return el("li", { class: stage.state, "aria-current": isPresent && "step" },
      el("h3", {}, stage.job ? el("a", { href: `/jobs/${stage.job}` }, stage.name) : stage.name, " ", badge(stage.state)),
      el("p", { class: "quiet" }, stage.kind.replaceAll("_", " "), stage.reused && ", an earlier result was reused"),
      this.gained.get(stage.name) && el("p", {}, this.gained.get(stage.name)),
      stage.state === "finished" && SEARCHES.includes(stage.kind) && el("p", {},
        this.button(`Download the factors of ${stage.name}`, `factors?stage=${encodeURIComponent(stage.name)}`, `${stage.name}.json`)),
      stage.model && el("p", { class: "quiet" }, "Checkpoint: ", el("code", {}, stage.model)),
      progress && !ENDED.includes(this.plan.state) && el("p", {}, progressBar(progress.share, `Progress of ${stage.name}`), ` ${percent(progress.share)} `, progress.phase,
        progress.best_perplexity && `, best perplexity ${number(progress.best_perplexity)}`, progress.steps && `, step ${count(progress.step)} of ${count(progress.steps)}`));
  }

  button(text, path, name) {
    return el("button", {
      type: "button", class: "small",
      onclick: async () => {
        this.actions.problem.replaceChildren();
        try {
          await save(`${this.path}/${path}`, name);
        } catch (error) {
          announceProblem(this.actions.problem, error);
        }
      },
    }, text);
  }

  drawDownloads() {
    const isReadjusted = this.plan.stages.some((stage) => stage.kind === "readjust" && stage.state === "finished");
    const drawn = this.finished && `${isReadjusted}`;
    if (drawn === this.downloadsDrawn) return;
    this.downloadsDrawn = drawn;
    fill(this.downloads, this.finished > 0 && [
      this.button("Download the factors for its last model", "factors", "factors.json"),
      isReadjusted && this.button("Download the short factors", "factors?half=short", "short_factors.json"),
      this.button("Download report.html", "report?format=html", "report.html"),
      !hasKey() && el("a", { class: "button", href: `${this.path}/report?format=html` }, "Open the report")]);
  }
}
