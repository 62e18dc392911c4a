// What is known of a job or plan, kept up with: its events are followed, and what they make known is asked for.

import { events, isPassing } from "./rest.js";
import { announceProblem, el } from "./dom.js";

export const ENDED = ["finished", "failed", "cancelled"];
export const SEARCHES = ["search", "readjust"];
const AT_FIRST = 60;
const LEAST_PAUSE_MS = 400, LONGEST_PAUSE_MS = 5000;

export class Following {
  // onEvent(event) draws what an event says, and asks for nothing; look() asks for what is shown. What is wrong stands in
  // this.problem until a look has succeeded.
  constructor(path, history, signal, { onEvent, look }) {
    Object.assign(this, { path, history, signal, onEvent, lookOnce: look });
    this.problem = el("div");
  }

  // Follows the last events of an item, in place of those that were followed before.
  begin(item) {
    return this.from(Math.max(0, item.events - AT_FIRST));
  }

  async from(after) {
    this.end();
    const following = new AbortController(), { signal } = following;
    this.present = following;
    this.signal.addEventListener("abort", () => following.abort());
    this.history.clear(after);
    try {
      for await (const event of events(`${this.path}/events`, after, signal, (ok) => this.history.connected(ok))) {
        this.history.add(event);
        this.onEvent(event);
      }
    } catch (error) {
      if (!signal.aborted) this.report(error);
    }
    if (!signal.aborted) this.history.ended();
    following.abort();
  }

  end() {
    this.present?.abort();
  }

  // Looks, as often as wanted, one time after the other; again after a while where that failed.
  async look() {
    this.isWanted = true;
    if (this.isLooking) return;
    this.isLooking = true;
    let pause = LEAST_PAUSE_MS;
    while (this.isWanted && !this.isResting && !this.signal.aborted) {
      this.isWanted = false;
      this.looking = this.attempt();
      pause = (await this.looking) ? LEAST_PAUSE_MS : Math.min(2 * pause, LONGEST_PAUSE_MS);
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    this.isLooking = false;
  }

  async attempt() {
    try {
      await this.lookOnce();
      this.problem.replaceChildren();
      return true;
    } catch (error) {
      this.report(error);
      this.isWanted ||= isPassing(error);
      return false;
    }
  }

  // Asks for nothing any more, or again.
  async rest(isResting, item) {
    this.isResting = isResting;
    if (isResting) {
      this.end();
      await this.looking;
    } else {
      this.begin(item);
      this.look();
    }
  }

  report(error) {
    if (!this.signal.aborted && this.problem.textContent !== error.message) announceProblem(this.problem, error);
  }
}
