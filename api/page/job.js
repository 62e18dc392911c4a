// One job, live: its state, its search in charts, its results, its events, and what can be done with it.

import { Actions } from "./actions.js";
import { Charts } from "./job_charts.js";
import { Course } from "./course.js";
import { count, duration, moment, number, percent, signed } from "./format.js";
import { add, announceProblem, badge, copied, el, fill, progressBar, table, terms } from "./dom.js";
import { ENDED, Following, SEARCHES } from "./following.js";
import { History, timeLeft } from "./history.js";
import { get, hasKey, save } from "./rest.js";

const LOOK_MS = 10_000;

export async function show(place, { id, signal, go }) {
  const view = new View(place, id, signal, go);
  await view.begin();
}

class View {
  constructor(place, id, signal, go) {
    Object.assign(this, { place, id, signal, path: `/v1/jobs/${id}` });
    this.course = new Course(id);
    this.history = new History(() => this.following.from(0));
    this.following = new Following(this.path, this.history, signal, {
      onEvent: (event) => this.happened(event),
      look: () => this.look(),
    });
    this.actions = new Actions("jobs", {
      onChange: (job) => this.changed(job),
      onDeleting: (isDeleting) => this.following.rest(isDeleting, this.job),
      onDeleted: () => go("/"),
    });
    this.isStale = false;
    this.head = el("div");
    this.results = el("div");
    this.downloads = el("div");
    this.workers = el("div");
  }

  async begin() {
    this.job = await get(this.path, this.signal);
    const isSearch = SEARCHES.includes(this.job.kind);
    if (isSearch) this.charts = new Charts();
    add(this.place, 
      el("h1", {}, this.job.name),
      this.head,
      this.actions.element,
      this.following.problem,
      this.results,
      isSearch ? this.charts.element : "",
      this.downloads,
      this.workers,
      this.history.element,
      el("section", { "aria-label": "Specification" }, el("details", {}, el("summary", {}, "Specification"), copied(JSON.stringify(this.job.spec, null, 2), "the specification"))),
    );
    this.draw();
    this.following.begin(this.job);
    this.following.look();
    const timer = setInterval(() => this.ask(), LOOK_MS);
    this.signal.addEventListener("abort", () => clearInterval(timer));
  }

  happened(event) {
    if (event.number <= this.job.events) return;
    this.job = { ...this.job, events: event.number };
    if (event.kind === "progress") {
      this.job = { ...this.job, note: null, progress: { ...this.job.progress, ...event.data } };
      this.draw();
    } else {
      this.isStale = true;
    }
    this.following.look();
  }

  // That a coordinator is silent is no event.
  ask() {
    if (document.hidden || ENDED.includes(this.job.state)) return;
    this.isStale = true;
    this.following.look();
  }

  changed(job) {
    this.job = { ...job, events: Math.max(job.events, this.job.events) };
    this.draw();
    this.following.look();
  }

  draw() {
    const { job } = this, progress = job.progress;
    const share = job.state === "finished" ? 1 : progress?.share ?? 0;
    const better = progress?.best_perplexity && progress?.closed_form_perplexity ? progress.closed_form_perplexity - progress.best_perplexity : null;
    fill(this.head, 
      el("p", {}, badge(job.state), job.request && ` asked to ${job.request}`, " ", progress?.phase && job.state === "running" ? progress.phase : "",
        progress?.to_score ? ` ${count(progress.scored)} of ${count(progress.to_score)}` : ""),
      progressBar(share, "Progress"),
      el("span", {}, ` ${percent(share)}`),
      job.error && el("p", { class: "problem" }, job.error),
      job.note && el("p", { class: "note" }, job.note),
      terms([
        ["Best on search documents", number(progress?.best_perplexity)],
        ["Best closed form there", progress?.closed_form && `${number(progress.closed_form_perplexity)} (${progress.closed_form})`],
        ["Lower by", better > 0 && number(better)],
        ["Candidates", progress && count(progress.candidates) + (progress.candidates_budget ? ` of ${count(progress.candidates_budget)}` : "")],
        ["Tokens", progress && count(progress.tokens)],
        ["Step", progress?.steps && `${count(progress.step)} of ${count(progress.steps)}`],
        ["Loss", progress?.loss && number(progress.loss)],
        ["Time left", timeLeft(job, this.history)],
        ["Took", job.started_at && job.ended_at && duration((new Date(job.ended_at) - new Date(job.started_at)) / 1000)],
        ["Workers", progress && count(progress.workers)],
        ["Model", job.spec?.model?.id],
        ["Target length", job.spec?.target_length && `${count(job.spec.target_length)} tokens`],
        ["Submitted", moment(job.submitted_at) + (job.submitted_by ? ` by ${job.submitted_by}` : "")],
        ["Kept as", job.kept],
        ["Plan", job.plan && el("a", { href: `/plans/${job.plan}` }, `stage ${job.stage} of a plan`)],
        ["Study", this.course.about?.study && el("a", { href: this.course.about.study }, "on Optuna's dashboard")],
      ]),
    );
    this.actions.show(job);
  }

  // Brings the job, if it has changed, its charts, workers and results up to date.
  async look() {
    if (this.isStale) await this.lookAtJob();
    if (!SEARCHES.includes(this.job.kind)) return;
    const isFirst = !this.course.about;
    await this.course.refresh(this.signal);
    if (isFirst && this.course.about) this.draw();
    if (this.job.state === "finished" && !this.report) {
      const report = await get(`${this.path}/report?format=json`, this.signal);
      const { formats } = await get(`${this.path}/downloads`, this.signal);
      this.report = report;
      fill(this.results, heldOut(report));
      fill(this.downloads, this.downloadsOf(formats));
    }
    await this.charts.show(this.course, this.report, this.signal);
    const text = JSON.stringify(this.course.workers);
    if (text !== this.workersShown) fill(this.workers, workersOf(this.course.workers));
    this.workersShown = text;
  }

  // What is said meanwhile to have changed is asked for once more.
  async lookAtJob() {
    this.isStale = false;
    try {
      const job = await get(this.path, this.signal);
      this.job = { ...job, events: Math.max(job.events, this.job.events) };
      this.draw();
    } catch (error) {
      this.isStale = true;
      throw error;
    }
  }

  downloadsOf(formats) {
    const problem = el("div");
    const button = (text, label, path, name) => el("button", {
      type: "button", class: "small", "aria-label": label,
      onclick: async () => {
        problem.replaceChildren();
        try {
          await save(path, name);
        } catch (error) {
          announceProblem(problem, error);
        }
      },
    }, text);
    return el("section", { "aria-label": "Downloads" },
      el("h2", {}, "Downloads"),
      el("p", { class: "buttons" },
        button("factors.json", "Download factors.json", `${this.path}/factors`, "factors.json"),
        button("report.html", "Download report.html", `${this.path}/report?format=html`, "report.html"),
        button("report.json", "Download report.json", `${this.path}/report?format=json`, "report.json"),
        !hasKey() && el("a", { class: "button", href: `${this.path}/report?format=html` }, "Open the report")),
      problem,
      formats.map((one) => el("details", {},
        el("summary", {}, `${one.title} (${one.format})`),
        el("p", {}, `${one.writes[0].toUpperCase()}${one.writes.slice(1)}.`, " ",
          one.document && button(one.document, `Download ${one.document} for ${one.title}`, `${this.path}/factors?format=${one.format}`, one.document)),
        el("p", {}, "Write it where the model is, beside the downloaded factors.json:"), copied(one.export, `the command that exports for ${one.title}`),
        el("p", {}, "Load it:"), copied(one.load, `the command that loads it in ${one.title}`))));
  }
}

function heldOut(report) {
  const rows = report.results.map((row) => [row.name, number(row.validation), number(row.held_out), number(row.standard_error), signed(row.difference, row.difference_standard_error), ...(report.divergence ? [number(row.divergence)] : [])]);
  const { comparison } = report, documents = report.documents.held_out.length;
  const measured = report.objective?.measures ?? "perplexity";
  return el("section", { "aria-label": "Result" },
    el("h2", {}, "Result"),
    report.winner && !report.winner.startsWith("found") && el("p", {}, `No candidate was better than ${report.winner} on the validation documents: it is reported.`),
    comparison && comparison.standard_errors !== null && el("p", {},
      `${number(Math.abs(comparison.difference))} nats per token ${comparison.difference >= 0 ? "better" : "worse"} than ${comparison.best_closed_form}, the best other closed form on held-out documents: ${number(Math.abs(comparison.standard_errors), 1)} standard errors of the paired difference.`),
    table(`${measured[0].toUpperCase()}${measured.slice(1)} at ${count(report.spec.target_length)} tokens on ${documents} held-out documents, which the search has not seen`,
      ["Factors", "Validation", "Held-out", "Standard error", "Minus found (nats, paired)", ...(report.divergence ? ["Short KL"] : [])], rows, { numbers: [1, 2, 3, 4, 5], highlighted: [0] }),
    report.divergence && el("p", {}, `Short KL: divergence of the predictions from the untouched model's, in nats per token, on the first ${count(report.divergence.length)} tokens of ${report.divergence.documents} held-out documents.`));
}

function workersOf(workers) {
  if (!workers.length) return "";
  const rows = workers.map((one) => [one.name, count(one.evaluations), duration(one.seconds), el("time", { datetime: one.last_at }, moment(one.last_at))]);
  return el("section", { "aria-label": "Workers" }, el("h2", {}, "Workers"), table("What each worker evaluated for this job", ["Worker", "Evaluations", "Time", "Last"], rows, { numbers: [1, 2] }));
}
