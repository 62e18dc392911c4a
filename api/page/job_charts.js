// The charts of a job's search, from its course and, once it is finished, from its report.

import { Chart, axis, hasCharts, line, prepare, vertical, withoutCharts } from "./charts.js";
import { count, number } from "./format.js";
import { el, fill } from "./dom.js";
import { perplexityAt, thinned } from "./course.js";

const MOST_POINTS = 1200, MOST_ROWS = 500;

// A closed form looks the same in all charts; known factors, which are no closed form, come after them.
function placeOf(course, name) {
  const forms = course.about.closed_forms, place = forms.findIndex((form) => form.name === name);
  return place < 0 ? forms.length : place;
}

export class Charts {
  constructor() {
    prepare();
    this.factors = new Chart("Rescale factors", "Of the best candidate and of every closed form, on a logarithmic axis.");
    this.search = new Chart("Perplexity against tokens spent", "Candidates on all search documents, the best so far, and as lines the closed forms that were evaluated on all of them.");
    this.lengths = new Chart("Perplexity by length", "");
    this.outcomes = el("figure", { hidden: true });
    const missing = hasCharts ? null : el("p", { class: "note" }, withoutCharts);
    const figures = el("div", { class: "figures" }, this.search.figure, this.factors.figure, this.lengths.figure, this.outcomes);
    this.element = el("section", { "aria-label": "Charts", hidden: true }, el("h2", {}, "The search in charts"), missing, figures);
  }

  async show(course, report, signal) {
    if (!course.about) return;
    this.element.hidden = false;
    this.showOutcomes(course);
    if (course.rows.length) this.showSearch(course);
    const best = course.best && !report ? await course.evaluation(course.best.number, signal) : null;
    const text = report ? "report" : `${best?.number}, ${course.closedForms().length}`;
    if (text === this.shown) return;
    this.showFactors(course.about, report?.factors ?? best, report ? "found" : `best so far, candidate ${best?.number}`);
    await this.showLengths(course, report, best, signal);
    this.shown = text;
  }

  showFactors(about, found, name) {
    const pairs = about.closed_forms[0]?.rescale_factors.map((_, i) => i) ?? found?.rescale_factors.map((_, i) => i) ?? [];
    const forms = about.closed_forms.map((form, place) => line(form.name, pairs, form.rescale_factors, place));
    const traces = found ? [...forms, line("found", pairs, found.rescale_factors, 0, { wide: true })] : forms;
    if (found) traces.at(-1).name = name;
    const marks = about.critical_pair === null ? [] : [vertical(about.critical_pair, "critical")];
    const scale = about.scale && { type: "line", xref: "paper", x0: 0, x1: 1, y0: about.scale, y1: about.scale, line: { dash: "dot", width: 1, color: "#888888" } };
    const range = found ? `from ${number(Math.min(...found.rescale_factors), 2)} to ${number(Math.max(...found.rescale_factors), 2)}` : "not known yet";
    this.factors.show({
      traces,
      layout: () => ({
        xaxis: axis("rotary pair i"),
        yaxis: axis("rescale factor λ", { type: "log", dtick: "D2" }),
        shapes: [...marks.map((mark) => mark.shape), ...(scale ? [scale] : [])],
        annotations: marks.map((mark) => mark.note),
      }),
      said: `${pairs.length} rotary pairs; the factors of the ${name} are ${range}; the scale is ${number(about.scale, 2)}, the critical pair ${about.critical_pair}`,
      rows: () => ({
        titles: ["Pair", ...(found ? [name] : []), ...about.closed_forms.map((form) => form.name)],
        cells: pairs.map((i) => [String(i), ...(found ? [number(found.rescale_factors[i])] : []), ...about.closed_forms.map((form) => number(form.rescale_factors[i]))]),
      }),
    });
  }

  showSearch(course) {
    const x = (row) => row.spent, y = (row) => row.perplexity;
    const points = thinned(course.complete, MOST_POINTS, x, y), early = thinned(course.pruned, MOST_POINTS / 4, x, y);
    const steps = course.improvements, forms = course.closedForms();
    const marks = (name, rows, marker) => ({ type: "scatter", mode: "markers", name, x: rows.map(x), y: rows.map(y), text: rows.map((row) => `candidate ${row.number}`), marker });
    const traces = [
      ...(early.length ? [marks("stopped early, on fewer documents", early, { size: 5, symbol: "circle-open", color: "#999999" })] : []),
      marks("candidate", points, { size: 5, color: "#777777" }),
      ...forms.map((form) => line(form.name, [0, course.spent], [y(form.row), y(form.row)], placeOf(course, form.name))),
      line("found", [...steps.map(x), course.spent], [...steps.map(y), ...steps.slice(-1).map(y)], 0, { wide: true }),
    ];
    traces.at(-1).line.shape = "hv";
    traces.at(-1).name = "best so far";
    const shown = points.map(y).sort((a, b) => a - b);
    const low = shown[0], top = Math.max(shown[Math.floor(0.8 * (shown.length - 1))] ?? 0, forms[0] ? y(forms[0].row) : 0);
    const range = top > low ? { range: [low - 0.06 * (top - low), top + 0.06 * (top - low)] } : {};
    this.search.show({
      traces,
      layout: () => ({ xaxis: axis("tokens scored"), yaxis: axis("perplexity", range) }),
      said: course.best ? `${count(course.complete.length)} candidates on all documents, the best has ${number(course.best.perplexity)} after ${count(course.best.spent)} tokens; ${forms[0] ? `the best closed form, ${forms[0].name}, has ${number(y(forms[0].row))}` : "no closed form was evaluated on all documents"}` : "No candidate was evaluated on all documents yet",
      rows: () => ({
        titles: ["Best so far", "Candidate", "Tokens", "Perplexity"],
        cells: [
          ...steps.map((row, i) => [String(i + 1), count(row.number), count(x(row)), number(y(row))]).slice(-MOST_ROWS),
          ...forms.map((form) => [form.name, count(form.row.number), count(x(form.row)), number(y(form.row))]),
        ],
      }),
    });
  }

  async showLengths(course, report, best, signal) {
    const curves = [];
    if (report) {
      for (const row of report.results) curves.push({ name: row.name, points: Object.entries(row.perplexity_at).filter(([, value]) => value !== null).map(([length, value]) => [Number(length), value]) });
    } else if (best) {
      curves.push({ name: "found", points: perplexityAt(best) });
      for (const form of course.closedForms()) curves.push({ name: form.name, points: perplexityAt(await course.evaluation(form.row.number, signal)) });
    }
    const known = curves.filter((curve) => curve.points.length);
    if (!known.length) return;
    const lengths = [...new Set(known.flatMap((curve) => curve.points.map(([length]) => length)))].sort((a, b) => a - b);
    const forms = known.filter((curve) => curve.name !== "found"), found = known.find((curve) => curve.name === "found");
    const shown = (curve, wide) => line(curve.name, curve.points.map(([length]) => length), curve.points.map(([, value]) => value), placeOf(course, curve.name), { wide, mode: "lines+markers" });
    this.lengths.sentence.textContent = report ? "Of the first n tokens of the held-out documents." : "Of the first n tokens of the search documents, so far.";
    this.lengths.show({
      traces: [...forms.map((curve) => shown(curve, false)), ...(found ? [shown(found, true)] : [])],
      layout: () => ({
        xaxis: axis("tokens", { type: "log", tickvals: lengths, ticktext: lengths.map(count) }),
        yaxis: axis("perplexity", { type: "log" }),
      }),
      said: known.map((curve) => `${curve.name} ${number(curve.points.at(-1)[1])} at ${count(curve.points.at(-1)[0])} tokens`).join(", "),
      rows: () => ({
        titles: ["Tokens", ...known.map((curve) => curve.name)],
        cells: lengths.map((length) => [count(length), ...known.map((curve) => number(curve.points.find(([at]) => at === length)?.[1]))]),
      }),
    });
  }

  showOutcomes(course) {
    const entries = Object.entries(course.outcomes).sort((a, b) => b[1] - a[1]);
    const most = Math.max(...entries.map(([, value]) => value), 1);
    const text = JSON.stringify(entries);
    if (!entries.length || text === this.outcomesShown) return;
    this.outcomesShown = text;
    const bars = entries.map(([name, value]) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = `${(100 * value) / most}%`;
      return [el("span", {}, name.replaceAll("_", " ")), el("span", { "aria-hidden": "true" }, bar), el("span", { class: "number" }, count(value))];
    });
    for (const [, cell] of bars) cell.firstChild.style.display = "block";
    this.outcomes.hidden = false;
    fill(this.outcomes, el("figcaption", {}, el("h3", {}, "Evaluations by outcome")), el("div", { class: "bars" }, bars));
  }
}
