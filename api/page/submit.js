// A form that submits a job, made from the schema of the REST interface; or any job or plan as JSON.

import { add, copied, el, fill, newId, table, terms } from "./dom.js";
import { bytes, count, duration } from "./format.js";
import { fieldOf, isObject, leaves, listField, lost, numberField, textField } from "./schema.js";
import { Problem, get, newKey, post, request } from "./rest.js";

const ESTIMATE_MS = 700;
const LONG_FORMS = { model: "id", data: "files", budget: "candidates", strategy: "kind", objective: "kind" };

export async function show(place, { signal, go }) {
  const description = await get("/openapi.json", signal);
  const view = new View(place, description, signal, go);
  view.draw();
}

class View {
  constructor(place, description, signal, go) {
    Object.assign(this, { place, signal, go });
    this.schemas = description.components.schemas;
    this.canEstimate = "/v1/estimate" in description.paths;
    this.fields = this.build(this.schemas.JobSpec.properties);
    this.key = newKey();
    signal.addEventListener("abort", () => clearTimeout(this.timer));
  }

  // The usual fields, and all others of the schema behind them.
  build(properties) {
    const schemas = this.schemas, inData = schemas.DataSpec.properties, inModel = schemas.ModelSpec.properties, inBudget = schemas.BudgetSpec.properties;
    const described = (path, title, schema, isRequired = false) => ({ path, title, description: schema.description, default: schema.default ?? undefined, isRequired });
    this.usual = [
      textField(described(["model", "id"], "Model", inModel.id, true)),
      listField(described(["data", "files"], "Documents", inData.files, true), "string"),
      numberField(described(["target_length"], "Target length", properties.target_length, true)),
      textField(described(["name"], "Name", properties.name)),
      numberField(described(["budget", "candidates"], "Candidates", inBudget.candidates)),
      listField(described(["space", "initial_tokens"], "Initial tokens", schemas.SpaceSpec.properties.initial_tokens), "integer"),
    ];
    const isUsual = (path) => this.usual.some((field) => field.path.join() === path.join());
    this.advanced = Object.entries(properties).map(([name, schema]) => fieldOf(schema, [name], schemas)).map((field) => without(field, isUsual)).filter(Boolean);
    return [...this.usual, ...this.advanced];
  }

  draw() {
    const advanced = el("details", {}, el("summary", {}, "Advanced"), this.advanced.map((field) => field.element));
    this.advancedDetails = advanced;
    this.problem = el("div");
    this.json = el("textarea", { class: "json", id: newId("json"), spellcheck: "false", "aria-label": "Specification as JSON" });
    this.formPart = el("div", {}, this.usual.map((field) => field.element), advanced);
    this.jsonPart = el("div", { hidden: true }, el("label", { for: this.json.id }, "A job, or a plan with a recipe or stages"), this.json);
    this.toggle = el("button", { type: "button", "aria-pressed": "false", onclick: () => this.switchView() }, "Edit as JSON");
    this.summary = el("div");
    this.estimate = el("div");
    const form = el("form", { class: "spec", novalidate: true },
      el("div", {}, this.problem, this.formPart, this.jsonPart,
        el("p", { class: "buttons" }, el("button", { class: "main" }, "Submit"), this.toggle)),
      el("aside", { "aria-label": "Estimate and equivalents" }, this.estimate, this.summary));
    form.addEventListener("input", () => this.edited());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    add(this.place, el("h1", {}, "Submit a job"), form);
    this.edited();
  }

  get isJson() {
    return !this.jsonPart.hidden;
  }

  // Throws where the JSON cannot be parsed, or is something else.
  document() {
    if (!this.isJson) return this.inForm();
    const given = JSON.parse(this.json.value);
    if (!isObject(given)) throw new Error("A specification is an object: { ... }");
    return given;
  }

  inForm() {
    const found = {};
    for (const field of leaves(this.fields)) {
      const value = field.read();
      if (value !== undefined) put(found, field.path, value);
    }
    return found;
  }

  switchView() {
    if (this.isJson) {
      let given;
      try {
        given = this.document();
      } catch (error) {
        this.complain(error);
        return;
      }
      if ("stages" in given || "recipe" in given) {
        this.complain(new Error("A plan is edited as JSON only"));
        return;
      }
      const key = lost(this.write(given), this.inForm(), this.fields);
      if (key !== null) {
        this.complain(new Error(`The form cannot show ${key} as it is here: it is edited as JSON only`));
        return;
      }
    } else {
      this.json.value = JSON.stringify(this.document(), null, 2);
    }
    const asJson = !this.isJson;
    this.jsonPart.hidden = !asJson;
    this.formPart.hidden = asJson;
    this.toggle.textContent = asJson ? "Edit in the form" : "Edit as JSON";
    this.toggle.setAttribute("aria-pressed", String(asJson));
    this.problem.replaceChildren();
    this.edited();
  }

  // Returns what the form is given: short forms are written out.
  write(given) {
    const long = Object.fromEntries(Object.entries(given).map(([name, value]) => {
      const key = LONG_FORMS[name];
      return [name, key && (typeof value !== "object" || Array.isArray(value)) ? { [key]: key === "files" ? [value].flat() : value } : value];
    }));
    for (const field of this.usual) field.write(field.path.reduce((value, key) => value?.[key], long));
    for (const field of this.advanced) field.write(long[field.path[0]]);
    return long;
  }

  edited() {
    let given;
    try {
      given = this.document();
    } catch {
      return;
    }
    this.key = newKey();
    this.problem.replaceChildren();
    this.estimate.classList.add("outdated");
    fill(this.summary, 
      el("h2", {}, "The same elsewhere"),
      el("p", {}, "On the command line:"), copied(commandOf(given), "the command"),
      el("p", {}, "As JSON, in a file or for the REST interface:"), copied(JSON.stringify(given, null, 2), "the JSON"));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(given), ESTIMATE_MS);
  }

  async ask(given) {
    const isPlan = "stages" in given || "recipe" in given;
    if (!this.canEstimate || !given.model || !given.data || (!isPlan && !given.target_length)) {
      this.estimate.replaceChildren();
      this.estimate.classList.remove("outdated");
      return;
    }
    const asked = this.key;
    try {
      const answer = await post("/v1/estimate", given);
      if (asked === this.key && !this.signal.aborted) fill(this.estimate, estimated(answer));
    } catch (error) {
      if (asked === this.key && !this.signal.aborted) fill(this.estimate, el("h2", {}, "Estimate"), el("p", { class: "note" }, error.message));
    }
    if (asked === this.key) this.estimate.classList.remove("outdated");
  }

  async submit() {
    for (const field of leaves(this.fields)) field.complain("");
    this.problem.replaceChildren();
    try {
      const given = this.document();
      const path = "stages" in given || "recipe" in given ? "/v1/plans" : "/v1/jobs";
      const response = await request(path, { method: "POST", body: given, more: { "Idempotency-Key": this.key } });
      const { id } = await response.json();
      await this.go(`${path.replace("/v1", "")}/${id}`);
    } catch (error) {
      this.complain(error);
    }
  }

  // Each fault at the field that it names, and all of them together before the form.
  complain(error) {
    const faults = error instanceof Problem ? error.errors : [];
    const placed = faults.map((fault) => ({ fault, field: this.isJson ? null : this.fieldAt(fault.pointer) }));
    for (const { fault, field } of placed) field?.complain(fault.detail);
    const listed = placed.filter(({ field }) => !field).map(({ fault }) => el("li", {}, `${fault.pointer}: ${fault.detail}`));
    fill(this.problem, el("div", { class: "problem", role: "alert" }, el("p", {}, error.message), listed.length ? el("ul", {}, listed) : ""));
    for (const { field } of placed) {
      for (let holder = field?.element; holder; holder = holder.parentElement) {
        if (holder.tagName === "DETAILS") holder.open = true;
      }
    }
    placed.find(({ field }) => field)?.field.input.focus();
  }

  // The field whose path is nearest to a JSON pointer.
  fieldAt(pointer) {
    const place = pointer.replace(/^#\/?/, "").split("/").filter(Boolean).map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    if (!place.length) return null;
    let nearest = null, agree = 0;
    for (const field of leaves(this.fields)) {
      let same = 0;
      while (same < field.path.length && field.path[same] === place[same]) same += 1;
      if (same > agree) [nearest, agree] = [field, same];
    }
    return nearest;
  }
}

// A field without those leaves that are shown elsewhere; null if nothing is left.
function without(field, isElsewhere) {
  if (!field.fields) return isElsewhere(field.path) ? null : field;
  const gone = field.fields.filter((one) => !one.fields && isElsewhere(one.path));
  for (const one of gone) one.element.remove();
  if (!gone.length) return field;
  const fields = field.fields.filter((one) => !gone.includes(one));
  return fields.length ? { ...field, fields, write: (value) => fields.forEach((one) => one.write(value?.[one.path.at(-1)])) } : null;
}

function put(document, path, value) {
  const holder = path.slice(0, -1).reduce((inside, key) => (inside[key] ??= {}), document);
  holder[path.at(-1)] = value;
}

export function commandOf(given) {
  const words = ["factor-search", "submit"];
  const { model, data, target_length: length, name, seed, ...rest } = given;
  if ("stages" in given || "recipe" in given) return `${words.join(" ")} plan.json`;
  const modelId = typeof model === "object" ? model?.id : model, files = Array.isArray(data) ? data : typeof data === "object" ? data?.files : data;
  if (modelId) words.push("--model", quoted(modelId));
  if (files?.length) words.push("--data", ...[files].flat().map(quoted));
  if (length !== undefined) words.push("--target-length", quoted(String(length)));
  if (name !== undefined) words.push("--name", quoted(name));
  if (seed !== undefined) words.push("--seed", quoted(String(seed)));
  const settings = { ...rest };
  if (typeof model === "object") settings.model = { ...model, id: undefined };
  if (data && typeof data === "object" && !Array.isArray(data)) settings.data = { ...data, files: undefined };
  for (const [key, value] of flat(settings, [])) words.push("--set", quoted(`${key}=${typeof value === "string" ? textOf(value) : JSON.stringify(value)}`));
  return words.join(" ");
}

function* flat(value, path) {
  if (value === undefined) return;
  if (value === null || typeof value !== "object" || Array.isArray(value)) yield [path.join("."), value];
  else for (const [key, inside] of Object.entries(value)) yield* flat(inside, [...path, key]);
}

// A text that would be read as another JSON value is quoted.
function textOf(value) {
  try {
    JSON.parse(value);
    return JSON.stringify(value);
  } catch {
    return value;
  }
}

function quoted(word) {
  const text = String(word);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

function estimated(answer) {
  const { documents, evaluation, memory, search, total, speed } = answer;
  const parts = Object.entries(documents ?? {});
  return el("section", { "aria-label": "Estimate" },
    el("h2", {}, "Estimate"),
    answer.fits === false && el("p", { class: "problem" }, `It does not fit into memory: ${answer.too_large}.`),
    terms([
      ["Memory at its peak", memory && `${bytes(memory.peak)}${memory.available ? ` of ${bytes(memory.available)}` : ""}`],
      ["Weights", memory && bytes(memory.weights)],
      ["One evaluation", evaluation && `${count(evaluation.tokens)} tokens, ${duration(evaluation.seconds)}`],
      ["The search", search && `${count(search.tokens)} tokens, ${duration(search.seconds)}`],
      ["In all", total && `${count(total.tokens)} tokens, ${duration(total.seconds)}`],
      ["Speed", speed?.tokens_per_second && `${count(Math.round(speed.tokens_per_second))} tokens a second on ${speed.device}, ${speed.calibrated ? "measured" : "assumed"}`],
    ]),
    answer.stages?.length ? table("Stages", ["Stage", "Tokens", "Time"], answer.stages.map((stage) => [stage.name, count(stage.total?.tokens), duration(stage.total?.seconds)]), { numbers: [1, 2] }) : "",
    (answer.notes ?? []).map((note) => el("p", { class: "note" }, note)),
    parts.length ? el("details", {}, el("summary", {}, "Documents and how they are split"),
      table("Documents by part", ["Document", "Part", "Tokens"], parts.flatMap(([part, found]) => (found ?? []).map((one) => [one.file, part.replace("_", "-"), count(one.tokens)])), { numbers: [2] })) : "");
}
