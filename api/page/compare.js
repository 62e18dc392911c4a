// Two or more jobs side by side; the paired differences are computed by the server.

import { Chart, axis, hasCharts, line, vertical, withoutCharts } from "./charts.js";
import { Course } from "./course.js";
import { count, duration, number, signed } from "./format.js";
import { add, badge, el, table } from "./dom.js";
import { get } from "./rest.js";

const PLACES = ["found", "yarn", "ntk", "pi", "ntk-critical", "llama3", "first", "second"];

export async function show(place, { query, signal }) {
  const ids = (query.get("jobs") ?? "").split(",").filter(Boolean);
  add(place, el("h1", {}, "Compare jobs"));
  if (ids.length < 2) {
    add(place, el("p", {}, "Choose two to eight jobs in the ", el("a", { href: "/" }, "list of jobs"), "."));
    return;
  }
  const { jobs, pairs } = await get(`/v1/compare?jobs=${ids.map(encodeURIComponent).join(",")}`, signal);
  const label = labels(jobs);
  add(place, sideBySide(jobs, label), differences(pairs, label), ...(await charts(jobs, label, signal)));
}

// Names, with the end of the id where two jobs have the same.
function labels(jobs) {
  const names = jobs.map((job) => job.name);
  return new Map(jobs.map((job) => [job.id, names.filter((name) => name === job.name).length > 1 ? `${job.name} (${job.id.slice(-6)})` : job.name]));
}

function sideBySide(jobs, label) {
  const rows = [
    ["State", (job) => badge(job.state)],
    ["Model", (job) => job.model],
    ["Target length", (job) => count(job.target_length)],
    ["Objective", (job) => job.objective],
    ["Strategy", (job) => job.strategy],
    ["Candidates", (job) => count(job.candidates)],
    ["Tokens", (job) => count(job.tokens)],
    ["Time of evaluation", (job) => duration(job.seconds)],
    ["Best on its search documents", (job) => number(job.best_perplexity)],
    ["Held-out perplexity", (job) => job.held_out === null ? "–" : `${number(job.held_out)}${job.standard_error === null ? "" : ` ± ${number(job.standard_error)}`}`],
    ["Of", (job) => job.winner],
  ];
  const titles = ["", ...jobs.map((job) => el("a", { href: `/jobs/${job.id}` }, label.get(job.id)))];
  return el("section", { "aria-label": "Side by side" },
    table("What was asked for and found", titles, rows.map(([name, value]) => [name, ...jobs.map(value)])));
}

function differences(pairs, label) {
  const rows = pairs.map((pair) => [
    `${label.get(pair.second)} minus ${label.get(pair.first)}`,
    signed(pair.difference, pair.standard_error),
    pair.difference === null || !pair.standard_error ? "–" : number(pair.difference / pair.standard_error, 1),
    count(pair.documents.length),
    pair.note ?? (pair.verified ? "the texts are the same" : "sources and numbers of tokens are the same"),
  ]);
  return el("section", { "aria-label": "Paired differences" },
    el("h2", {}, "Paired differences"),
    table("Of the losses on shared held-out documents, nats per token; above 0 the second named is better", ["Pair", "Difference", "Standard errors", "Documents", ""], rows, { numbers: [1, 2, 3] }));
}

async function charts(jobs, label, signal) {
  const courses = await Promise.all(jobs.map(async (job) => {
    const course = new Course(job.id);
    await course.refresh(signal);
    return { course, name: label.get(job.id), best: course.best && (await course.evaluation(course.best.number, signal)) };
  }));
  const begun = courses.filter(({ course }) => course.best);
  const search = new Chart("Best perplexity against tokens spent", "Of each job on its own search documents.");
  const factors = new Chart("Rescale factors", "Of the best candidate of each job on its search documents.");
  const missing = !hasCharts && el("p", { class: "note" }, withoutCharts);
  const section = el("section", { "aria-label": "Charts" }, el("h2", {}, "In charts"), missing, el("div", { class: "figures" }, search.figure, factors.figure));
  if (!begun.length) return [];
  setTimeout(() => {
    search.show({
      traces: begun.map(({ course, name }, place) => named(name, place, [...course.improvements.map((row) => row.spent), course.spent], [...course.improvements, course.best].map((row) => row.perplexity), "hv")),
      layout: () => ({ xaxis: axis("tokens scored"), yaxis: axis("best perplexity", { type: "log" }) }),
      said: begun.map(({ course, name }) => `${name} ${number(course.best.perplexity)} after ${count(course.best.spent)} tokens`).join(", "),
      rows: () => ({ titles: ["Job", "Best", "Tokens until it", "Tokens"], cells: begun.map(({ course, name }) => [name, number(course.best.perplexity), count(course.best.spent), count(course.spent)]) }),
    });
    const pairs = begun[0].best.rescale_factors.map((_, i) => i), critical = begun[0].course.about.critical_pair;
    const marks = critical === null ? [] : [vertical(critical, "critical")];
    factors.show({
      traces: begun.map(({ name, best }, place) => named(name, place, best.rescale_factors.map((_, i) => i), best.rescale_factors)),
      layout: () => ({ xaxis: axis("rotary pair i"), yaxis: axis("rescale factor λ", { type: "log", dtick: "D2" }), shapes: marks.map((mark) => mark.shape), annotations: marks.map((mark) => mark.note) }),
      said: begun.map(({ name, best }) => `${name} up to ${number(Math.max(...best.rescale_factors), 2)}`).join(", "),
      rows: () => ({ titles: ["Pair", ...begun.map(({ name }) => name)], cells: pairs.map((i) => [String(i), ...begun.map(({ best }) => number(best.rescale_factors[i]))]) }),
    });
  });
  return [section];
}

function named(name, place, x, y, shape) {
  const trace = line(PLACES[place], x, y, place);
  trace.name = name;
  trace.line.width = 2.5;
  if (shape) trace.line.shape = shape;
  return trace;
}
