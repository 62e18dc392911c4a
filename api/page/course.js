// What is known of a job's search: its candidates in columns, asked for piece by piece, only those that may have changed.

import { get } from "./rest.js";

const PIECE = 500;

export class Course {
  constructor(jobId) {
    this.path = `/v1/jobs/${jobId}`;
    this.about = null;
    this.rows = [];
    this.outcomes = {};
    this.workers = [];
    this.settled = -1;
    this.hasLater = false;
    this.measured = new Map();
  }

  // Closed forms are among the candidates of the first generation, each from when its evaluation begins.
  get areFormsKnown() {
    return this.about !== null && (this.hasLater || this.about.closed_forms.every((form) => form.number !== null));
  }

  // Asks for all candidates after those that will not change any more; true if something has changed.
  async refresh(signal) {
    let after = this.areFormsKnown ? this.settled : -1, isSettling = true, changed = false;
    for (;;) {
      const page = await get(`${this.path}/course?after=${after}&limit=${PIECE}`, signal);
      if (page.about) {
        this.about = page.about;
        this.hasLater = page.next !== null || page.generation.some((generation) => generation > 0);
      }
      page.number.forEach((number, i) => {
        this.rows[number] = {
          number,
          generation: page.generation[i],
          candidate: page.candidate[i],
          documents: page.documents[i],
          tokens: page.tokens[i],
          perplexity: page.perplexity[i],
          outcome: page.outcome[i],
        };
      });
      changed ||= page.number.length > 0;
      if (isSettling) this.settled = page.settled;
      isSettling &&= page.next !== null && page.settled === page.next;
      if (page.next === null) {
        this.outcomes = page.outcomes;
        this.workers = page.workers;
        break;
      }
      after = page.next;
    }
    if (changed) this.count();
    return changed;
  }

  // Tokens spent until each candidate, and the best so far among those on all documents.
  count() {
    const seen = new Map();
    const all = this.about?.documents.search ?? this.rows.reduce((most, row) => Math.max(most, row?.documents ?? 0), 0);
    let spent = 0;
    this.complete = [];
    this.pruned = [];
    this.improvements = [];
    for (const row of this.rows) {
      if (!row) continue;
      spent += Math.max(row.tokens - (seen.get(row.candidate) ?? 0), 0);
      if (row.tokens) seen.set(row.candidate, row.tokens);
      row.spent = spent;
      if (row.perplexity === null) continue;
      if (row.outcome !== "ok" || row.documents !== all) {
        this.pruned.push(row);
        continue;
      }
      this.complete.push(row);
      if (!this.improvements.length || row.perplexity < this.improvements.at(-1).perplexity) this.improvements.push(row);
    }
    this.spent = spent;
  }

  get best() {
    return this.improvements?.at(-1) ?? null;
  }

  // The closed forms that were evaluated on all documents, the best first.
  closedForms() {
    const found = [];
    for (const form of this.about?.closed_forms ?? []) {
      const first = form.number === null ? null : this.rows[form.number];
      if (!first) continue;
      const row = this.complete?.find((one) => one.candidate === first.candidate);
      if (row) found.push({ name: form.name, row });
    }
    return found.sort((a, b) => a.row.perplexity - b.row.perplexity);
  }

  // The factors of one candidate, and its perplexity by length.
  async evaluation(number, signal) {
    if (!this.measured.has(number)) {
      const page = await get(`${this.path}/evaluations?after=${number - 1}&limit=1`, signal);
      this.measured.set(number, page.evaluations[0]);
    }
    return this.measured.get(number);
  }
}

// All documents count alike within a length, since all have as many tokens there.
export function perplexityAt(evaluation) {
  return Object.entries(evaluation.losses_at).map(([length, losses]) =>
    [Number(length), Math.exp(losses.reduce((sum, loss) => sum + loss, 0) / losses.length)]);
}

// At most about so many of these points, sorted by x: of each piece of the axis the lowest and the highest.
export function thinned(points, most, x, y) {
  if (points.length <= most) return points;
  const pieces = Math.floor(most / 2), first = x(points[0]), width = (x(points.at(-1)) - first) / pieces || 1;
  const low = new Map(), high = new Map();
  for (const point of points) {
    const piece = Math.min(Math.floor((x(point) - first) / width), pieces - 1);
    if (!low.has(piece) || y(point) < y(low.get(piece))) low.set(piece, point);
    if (!high.has(piece) || y(point) > y(high.get(piece))) high.set(piece, point);
  }
  return [...new Set([...low.values(), ...high.values()])].sort((a, b) => x(a) - x(b));
}
