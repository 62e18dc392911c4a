// Builds elements. Text of others only ever becomes text: nothing here or elsewhere parses HTML.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return add(element, ...children);
}

// Appends nodes and texts, also within lists; what is null, undefined or false is left out.
export function add(place, ...children) {
  place.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return place;
}

// The same in place of what is there; a link or button that has the focus keeps it.
export function fill(place, ...children) {
  const name = (element) => element.getAttribute("href") ?? element.textContent;
  const focused = place.contains(document.activeElement) ? name(document.activeElement) : null;
  place.replaceChildren();
  add(place, ...children);
  if (focused) [...place.querySelectorAll("a, button")].find((element) => name(element) === focused)?.focus();
  return place;
}

let idsGiven = 0;
export function newId(word) {
  idsGiven += 1;
  return `${word}-${idsGiven}`;
}

// Said to those who use a screen reader, without interrupting them.
export function say(text) {
  document.getElementById("said").textContent = text;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A table; cells are text or nodes. On narrow screens each row is shown as a list of its cells, with their titles.
export function table(caption, titles, rows, { numbers = [], highlighted = [] } = {}) {
  const head = el("tr", {}, titles.map((title, i) => el("th", { scope: "col", class: numbers.includes(i) && "number" }, title)));
  const body = rows.map((row, place) =>
    el("tr", { class: highlighted.includes(place) && "found" }, row.map((cell, i) => tableCell(cell, titles[i], i === 0, numbers.includes(i)))),
  );
  const made = el("table", { "aria-label": caption }, el("thead", {}, head), el("tbody", {}, body));
  const scrolled = el("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption }, made);
  return el("div", {}, el("p", { class: "caption" }, caption), scrolled);
}

export function tableCell(cell, title, isHead, isNumber) {
  const shown = cell === null || cell === undefined ? "–" : cell;
  const attributes = { "data-title": typeof title === "string" ? title : "", class: [isNumber && "number", shown === "–" && "nothing"].filter(Boolean).join(" ") || null };
  return isHead ? el("th", { scope: "row", ...attributes }, shown) : el("td", attributes, shown);
}

export function terms(pairs) {
  return el("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "")
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

export function badge(state) {
  return el("span", { class: `state ${state}` }, state);
}

export function progressBar(share, label) {
  return el("progress", { max: "1", value: Math.min(Math.max(share, 0), 1), "aria-label": label });
}

// Text to copy, with a button.
export function copied(text, label) {
  const code = el("code", {}, text);
  const button = el("button", { type: "button", class: "small", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      say(`Copied ${label}`);
    } catch {
      getSelection().selectAllChildren(code);
      say("Selected: copy it with the keyboard");
    }
  });
  return el("div", { class: "copied" }, el("pre", { tabindex: "0", role: "group", "aria-label": label }, code), button);
}

// A dialog that answers with the values of its fields, or null. The browser returns the focus to where it was.
export function ask(title, fields, { action = "OK", explained = "", danger = false } = {}) {
  return new Promise((resolve) => {
    const heading = newId("title");
    const inputs = fields.map((field) => field.input ?? el("input", { type: "text", id: newId("field"), required: true, ...field.attributes }));
    const form = el(
      "form",
      {},
      el("h2", { id: heading }, title),
      explained && el("p", {}, explained),
      fields.map((field, i) => el("label", {}, field.label, inputs[i])),
      el("p", { class: "buttons" },
        el("button", { class: danger ? "danger" : "main" }, action),
        el("button", { type: "button", value: "cancel", onclick: () => dialog.close() }, "Do not")),
    );
    const dialog = el("dialog", { "aria-labelledby": heading }, form);
    const before = document.activeElement;
    let answer = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = inputs.map((input) => input.value);
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export function announceProblem(place, error) {
  place.replaceChildren(el("p", { class: "problem", role: "alert" }, error.message));
}
