// Fields of a form from a JSON schema: plain ones for plain values, groups for objects, JSON for what is left.

import { el, newId } from "./dom.js";

// A field has element, path, write(value) and, unless it is a group of fields, input and read() (undefined keeps the default).
export function fieldOf(schema, path, schemas, isRequired = false) {
  const { shape, nullable } = resolved(schema, schemas);
  const known = { path, title: path.at(-1).replaceAll("_", " "), description: schema.description ?? shape.description ?? "", isRequired };
  known.default = schema.default ?? shape.default;
  if (shape.choices) return choiceField(known, shape.choices, schemas);
  if (shape.properties) return groupField(known, shape, schemas);
  if (shape.enum) return selectField(known, shape.enum, nullable);
  if (shape.type === "boolean") return selectField(known, [true, false], nullable);
  if (shape.type === "integer" || shape.type === "number") return numberField(known, shape);
  if (shape.type === "string") return textField(known);
  if (shape.type === "array" && ["string", "integer", "number"].includes(shape.items?.type)) return listField(known, shape.items.type);
  if (shape.alternatives) return eitherField(known, shape.alternatives);
  return jsonField(known);
}

// The shape of a schema among its alternatives: short forms and null are left out, for the full form says the same. Of an
// object or a boolean it does not.
function resolved(schema, schemas) {
  let options = schema.anyOf ?? [schema];
  const nullable = options.some((one) => one.type === "null");
  options = options.filter((one) => one.type !== "null").map((one) => referred(one, schemas));
  if (options.length > 1 && options.some((one) => one.type === "boolean")) return { shape: {}, nullable };
  const rich = options.find((one) => one.oneOf) ?? options.find((one) => one.properties);
  if (rich?.oneOf) return { shape: { choices: rich.oneOf.map((one) => referred(one, schemas)), description: rich.description }, nullable };
  if (rich) return { shape: rich, nullable };
  if (options.length === 1) return { shape: options[0], nullable };
  const isPlain = options.every((one) => ["string", "integer", "number"].includes(one.type));
  return { shape: isPlain ? { alternatives: options } : {}, nullable };
}

function referred(schema, schemas) {
  return schema.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
}

export function plainField(known, input, { read, write }) {
  const id = newId("field"), wrong = el("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  input.id = id;
  input.setAttribute("aria-describedby", `${id}-about ${id}-wrong`);
  if (known.isRequired) input.setAttribute("aria-required", "true");
  const shown = known.default === undefined || known.default === null ? "" : `Default: ${typeof known.default === "object" ? JSON.stringify(known.default) : known.default}.`;
  const element = el("div", { class: "field" }, el("label", { for: id }, known.title, known.isRequired && " (needed)"),
    input, el("small", { id: `${id}-about` }, known.description, " ", shown), wrong);
  return {
    ...known, element, input, read, write,
    complain(text) {
      wrong.textContent = text;
      wrong.hidden = !text;
      if (text) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    },
  };
}

export function textField(known, attributes = {}) {
  const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes });
  return plainField(known, input, {
    read: () => input.value.trim() || undefined,
    write: (value) => { input.value = value ?? ""; },
  });
}

export function numberField(known, shape = {}) {
  const input = el("input", { type: "text", inputmode: shape.type === "number" ? "decimal" : "numeric", autocomplete: "off" });
  return plainField(known, input, {
    read: () => {
      const text = input.value.trim();
      return text === "" ? undefined : Number.isFinite(Number(text)) ? Number(text) : text;
    },
    write: (value) => { input.value = value ?? ""; },
  });
}

function selectField(known, values, nullable) {
  const input = el("select", {}, el("option", { value: "" }, known.default === undefined ? (nullable ? "not given" : "") : "default"),
    values.map((value) => el("option", { value: JSON.stringify(value) }, String(value))));
  return plainField(known, input, {
    read: () => (input.value === "" ? undefined : JSON.parse(input.value)),
    write: (value) => { input.value = value === undefined || value === null ? "" : JSON.stringify(value); },
  });
}

export function listField(known, type) {
  const isText = type === "string";
  const input = isText ? el("textarea", { rows: "3", spellcheck: "false" }) : el("input", { type: "text", autocomplete: "off" });
  const described = { ...known, description: `${known.description} ${isText ? "One a line." : "With commas between them."}` };
  return plainField(described, input, {
    read: () => {
      const parts = input.value.split(isText ? "\n" : /[\s,]+/).map((part) => part.trim()).filter(Boolean);
      if (!parts.length) return undefined;
      return isText ? parts : parts.map((part) => (Number.isFinite(Number(part)) ? Number(part) : part));
    },
    write: (value) => { input.value = Array.isArray(value) ? value.join(isText ? "\n" : ", ") : value ?? ""; },
  });
}

function jsonField(known) {
  const input = el("textarea", { rows: "2", spellcheck: "false" });
  return plainField({ ...known, description: `${known.description} As JSON.` }, input, {
    read: () => valueOf(input.value),
    write: (value) => { input.value = value === undefined ? "" : JSON.stringify(value); },
  });
}

// One of some words, or a number.
function eitherField(known, alternatives) {
  const input = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  const names = alternatives.flatMap((one) => one.enum ?? (one.const === undefined ? [one.type === "string" ? "a text" : "a number"] : [one.const]));
  return plainField({ ...known, description: `${known.description} One of: ${names.join(", ")}.` }, input, {
    read: () => valueOf(input.value),
    write: (value) => { input.value = value ?? ""; },
  });
}

// A text as the JSON value that it is, or as itself.
function valueOf(text) {
  if (!text.trim()) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return text.trim();
  }
}

function group(known, fields, lead = []) {
  const element = el("fieldset", {}, el("legend", {}, known.title), known.description && el("small", {}, known.description), lead, fields.map((field) => field.element));
  return { ...known, element, fields, complain() {} };
}

function groupField(known, shape, schemas) {
  const fields = Object.entries(shape.properties).map(([name, schema]) => fieldOf(schema, [...known.path, name], schemas, shape.required?.includes(name)));
  return { ...group(known, fields), write: (value) => writeAll(fields, value) };
}

// One of several kinds, each with its own fields.
function choiceField(known, choices, schemas) {
  const kinds = choices.map((choice) => choice.properties.kind.const);
  const select = selectField({ ...known, path: [...known.path, "kind"], title: "kind", description: "", isRequired: false, default: known.default?.kind }, kinds, false);
  const parts = choices.map((choice) => {
    const rest = Object.entries(choice.properties).filter(([name]) => name !== "kind");
    return rest.map(([name, schema]) => fieldOf(schema, [...known.path, name], schemas));
  });
  const place = el("div", { class: "fields" });
  const whole = group(known, [select], [place]);
  whole.element.append(place);
  const present = () => parts[Math.max(kinds.indexOf(select.read() ?? known.default?.kind), 0)];
  const draw = () => {
    place.replaceChildren(...present().map((field) => field.element));
    whole.fields = [select, ...present()];
  };
  select.input.addEventListener("change", draw);
  draw();
  whole.write = (value) => {
    const given = typeof value === "string" ? { kind: value } : value;
    select.write(given?.kind);
    draw();
    writeAll(present(), given);
  };
  return whole;
}

function writeAll(fields, value) {
  for (const field of fields) field.write(value?.[field.path.at(-1)]);
}

// All fields that hold a value, without groups.
export function leaves(fields) {
  return fields.flatMap((field) => (field.fields ? leaves(field.fields) : [field]));
}

// The first key of a document that these fields, having been given it, do not give back as found; null if there is none.
// What is not given back may be the default.
export function lost(given, found, fields, path = []) {
  for (const [key, value] of Object.entries(given)) {
    const here = [...path, key], back = found?.[key];
    if (isObject(value) && isObject(back)) {
      const inside = lost(value, back, fields, here);
      if (inside) return inside;
    } else if (!isSame(value, back === undefined ? defaultAt(fields, here) : back)) {
      return here.join(".");
    }
  }
  return null;
}

function defaultAt(fields, path) {
  const at = fields.filter((field) => field.path.every((key, i) => key === path[i]));
  for (const field of at) {
    if (field.path.length === path.length) return field.default ?? null;
    const inside = field.fields && defaultAt(field.fields, path);
    if (inside !== undefined) return inside;
  }
  return undefined;
}

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSame(one, other) {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return one === other;
  const keys = Object.keys(one);
  return Array.isArray(one) === Array.isArray(other) && keys.length === Object.keys(other).length && keys.every((key) => key in other && isSame(one[key], other[key]));
}
