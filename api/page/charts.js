// Draws with Plotly, which is loaded when the first chart is drawn; without it, the tables beside the charts remain.

import { el, fill, setText, table } from "./dom.js";

const COLOURS = { found: "#d55e00", yarn: "#0072b2", ntk: "#009e73", pi: "#cc79a7", "ntk-critical": "#e69f00", llama3: "#56b4e9" };
const OTHERS = ["#8c6bb1", "#7f7f7f", "#a6761d", "#66a61e", "#1b9e77", "#e7298a"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const STROKES = { dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4" };
const address = document.querySelector('meta[name="charts"]').content;
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
let loading = null;

export const hasCharts = address !== "";
export const withoutCharts = "There are tables in place of charts: pip install plotly where the server runs, and start it again.";

function library() {
  loading ??= new Promise((resolve, reject) => {
    const style = document.querySelector('meta[name="chart-style"]').content;
    if (style) document.head.append(el("style", { id: style })); // Plotly's style for maps, which are not drawn here, is inline
    const script = el("script", { src: address });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => reject(new Error("the chart library cannot be loaded")));
    document.head.append(script);
  });
  return loading;
}

// Loads the library while the page still asks for what it is to draw.
export function prepare() {
  if (hasCharts) library().catch(() => {}); // said by the chart that needs it
}

export function colourOf(name, place) {
  return COLOURS[name] ?? OTHERS[place % OTHERS.length];
}

// A curve of a chart; each has a dash of its own too, for those who do not tell colours apart.
export function line(name, x, y, place, { wide = false, ...more } = {}) {
  return { type: "scatter", mode: "lines", name, x, y, line: { color: colourOf(name, place), width: wide ? 3.5 : 1.6, dash: wide ? "solid" : DASHES[place % DASHES.length] }, ...more };
}

export function vertical(x, label) {
  return {
    shape: { type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { dash: "dash", width: 1, color: "#888888" } },
    note: { x, y: 1, yref: "paper", text: label, showarrow: false, xanchor: "left", yanchor: "top" },
  };
}

// What a trace looks like, and its name: Plotly's own legend takes the room of the chart on narrow screens.
function legendEntry({ name, mode, line: { color, width, dash } = {}, marker }) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const part = document.createElementNS("http://www.w3.org/2000/svg", mode === "markers" ? "circle" : "line");
  const looks = mode === "markers"
    ? { cx: 14, cy: 5, r: 3, fill: marker.symbol ? "none" : marker.color, stroke: marker.color }
    : { x1: 0, y1: 5, x2: 28, y2: 5, stroke: color, "stroke-width": width, ...(STROKES[dash] && { "stroke-dasharray": STROKES[dash] }) };
  for (const [attribute, value] of Object.entries(looks)) part.setAttribute(attribute, value);
  for (const [attribute, value] of Object.entries({ width: 28, height: 10, "aria-hidden": "true" })) drawn.setAttribute(attribute, value);
  drawn.append(part);
  return el("li", {}, drawn, ` ${name}`);
}

// A chart with its title, a sentence and a table that says the same. Until there is something to draw it is hidden.
export class Chart {
  constructor(title, explained) {
    this.plot = el("div", { class: "plot", role: "img", hidden: !hasCharts });
    this.sentence = el("p", {}, explained);
    this.legend = el("ul", { class: "legend", hidden: !hasCharts, "aria-label": `Curves of ${title}` });
    this.rows = () => [];
    this.problem = el("p");
    this.details = el("details", { ontoggle: () => this.tabulate() }, el("summary", {}, "The figures as a table"));
    this.figure = el("figure", { hidden: true }, el("figcaption", {}, el("h3", {}, title), this.sentence, this.problem), this.plot, this.legend, this.details);
    this.title = title;
    this.isBusy = false;
    this.wanted = null;
    // The figures beside it that are shown later on leave less room.
    new ResizeObserver(() => this.last && this.plot.clientWidth && window.Plotly.Plots.resize(this.plot)).observe(this.plot);
    drawn.add(new WeakRef(this));
  }

  // rows() gives titles and rows of the table, when somebody opens it.
  show({ traces, layout, said, rows }) {
    this.figure.hidden = false;
    this.plot.setAttribute("aria-label", `${this.title}. ${said}`);
    this.rows = rows;
    this.tabulate();
    this.wanted = { traces, layout };
    const names = traces.map((trace) => trace.name).join();
    if (names !== this.names) fill(this.legend, traces.map(legendEntry));
    this.names = names;
    if (hasCharts) this.draw();
    else this.details.open = true;
  }

  tabulate() {
    if (!this.details.open) return;
    const { titles, cells } = this.rows();
    const made = table(this.title, titles, cells, { numbers: titles.map((_, i) => i).slice(1) });
    this.details.replaceChildren(this.details.firstChild, made);
  }

  async draw() {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      const plotly = await library();
      while (this.wanted && this.plot.isConnected) {
        const { traces, layout } = this.wanted;
        this.wanted = null;
        this.last = { traces, layout };
        await plotly.react(this.plot, traces, { ...look(), ...layout() }, { displayModeBar: false });
      }
    } catch (error) {
      setText(this.problem, error.message);
      this.details.open = true;
    } finally {
      this.isBusy = false;
    }
  }
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const [text, lines] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 64, r: 12, t: 8, b: 44 },
    showlegend: false,
    hovermode: "closest",
    dragmode: false,
    uirevision: "kept",
    xaxis: axis("", { gridcolor: lines }),
    yaxis: axis("", { gridcolor: lines }),
  };
}

export function axis(title, more = {}) {
  const lines = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
  return { title: { text: title, standoff: 8 }, gridcolor: lines, zeroline: false, ...more };
}

dark.addEventListener("change", () => {
  for (const known of drawn) {
    const chart = known.deref();
    if (!chart?.plot.isConnected) drawn.delete(known);
    else if (chart.last) {
      chart.wanted ??= chart.last;
      chart.draw();
    }
  }
});
