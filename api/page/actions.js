// What can be done with a job or a plan: the buttons for it, shown as its state allows.

import { announceProblem, ask, el, newId, say } from "./dom.js";
import { ENDED } from "./following.js";
import { post, request } from "./rest.js";

// word is jobs or plans; onChange gets the job or plan after an action. onDeleting stops what would ask for it while it is
// deleted, and with false begins again since it was not; onDeleted leaves the view.
export class Actions {
  constructor(word, { onChange, onDeleting, onDeleted }) {
    this.word = word;
    this.onChange = onChange;
    this.onDeleting = onDeleting;
    this.onDeleted = onDeleted;
    this.problem = el("div");
    this.buttons = {
      pause: this.button("Pause", () => this.act("pause")),
      resume: this.button("Resume", () => this.act("resume"), "main"),
      checkpoint: this.button("Supply a checkpoint", () => this.supply(), "main"),
      retry: this.button("Retry", () => this.retry()),
      keep: this.button("Keep", () => this.keep()),
      cancel: this.button("Cancel", () => this.cancel(), "danger"),
      remove: this.button("Delete", () => this.remove(), "danger"),
    };
    this.element = el("div", {}, el("p", { class: "buttons" }, Object.values(this.buttons)), this.problem);
  }

  button(text, does, kind) {
    const button = el("button", { type: "button", class: kind, hidden: true }, text);
    button.addEventListener("click", async () => {
      if (this.isBusy) return; // not disabled meanwhile: it would lose the focus
      this.isBusy = true;
      this.problem.replaceChildren();
      try {
        await does();
      } catch (error) {
        announceProblem(this.problem, error);
      } finally {
        this.isBusy = false;
      }
    });
    return button;
  }

  show(item) {
    this.item = item;
    const ended = ENDED.includes(item.state), own = !item.plan, isPlan = this.word === "plans";
    const shown = {
      pause: own && !ended && item.state !== "paused" && !item.request,
      resume: own && !ended && (item.state === "paused" || item.request === "pause"),
      checkpoint: isPlan && item.state === "waiting",
      retry: isPlan && ended,
      keep: own,
      cancel: own && !ended && item.request !== "cancel",
      remove: own && ended,
    };
    const focused = document.activeElement;
    for (const [name, isShown] of Object.entries(shown)) this.buttons[name].hidden = !isShown;
    this.buttons.keep.textContent = item.kept ? "Keep no longer" : "Keep";
    if (focused?.hidden && this.element.contains(focused)) this.element.querySelector("button:not([hidden])")?.focus();
  }

  get path() {
    return `/v1/${this.word}/${this.item.id}`;
  }

  async act(action, body) {
    const changed = await post(`${this.path}/${action}`, body);
    say(`${changed.name}: ${changed.request ? `asked to ${changed.request}` : changed.state}`);
    await this.onChange(changed);
  }

  async cancel() {
    const explained = "It ends for good. What it has evaluated and made is kept.";
    if (await ask(`Cancel ${this.item.name}?`, [], { action: "Cancel it", explained, danger: true })) await this.act("cancel");
  }

  async keep() {
    if (this.item.kept) return this.act("keep", { name: null });
    const answer = await ask(`Keep ${this.item.name}`, [{ label: "Name", attributes: { maxlength: 100 } }], {
      action: "Keep it",
      explained: "What has a name is not deleted when others are aged out.",
    });
    return answer && this.act("keep", { name: answer[0] });
  }

  async retry() {
    const stages = el("select", { id: newId("stage") }, el("option", { value: "" }, "the first that has not finished"),
      this.item.stages.map((stage) => el("option", { value: stage.name }, stage.name)));
    const answer = await ask(`Retry ${this.item.name}`, [{ label: "Start again at stage", input: stages }], { action: "Retry" });
    return answer && this.act("retry", { stage: answer[0] || null });
  }

  async supply() {
    const answer = await ask(`Supply a checkpoint to ${this.item.name}`, [{ label: "Folder, as the server sees it" }], {
      action: "Supply it",
      explained: `Stage ${this.item.stage} waits for a checkpoint that was fine-tuned elsewhere.`,
    });
    return answer && this.act("checkpoint", { model: answer[0] });
  }

  async remove() {
    const explained = "Its events, its study and all that nothing else refers to are deleted with it.";
    if (!(await ask(`Delete ${this.item.name}?`, [], { action: "Delete it", explained, danger: true }))) return;
    await this.onDeleting(true);
    try {
      await request(this.path, { method: "DELETE" });
    } catch (error) {
      await this.onDeleting(false);
      throw error;
    }
    say(`${this.item.name} is deleted`);
    await this.onDeleted();
  }
}
