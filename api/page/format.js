// Figures as text.

const COUNT = new Intl.NumberFormat("en");
const MOMENT = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const STEPS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

export function count(value) {
  return value === null || value === undefined ? "–" : COUNT.format(value);
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) < 1e5 ? value.toFixed(digits) : value.toPrecision(3);
}

export function signed(value, error) {
  if (value === null || value === undefined) return "–";
  const shown = `${value > 0 ? "+" : ""}${value.toFixed(4)}`;
  return error === null || error === undefined ? shown : `${shown} ± ${error.toFixed(4)}`;
}

export function percent(share) {
  return `${Math.floor(100 * share)} %`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.round(seconds), minutes = Math.round(seconds / 60);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 172800) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(seconds / 86400)} days`;
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let scaled = value, unit = 0;
  while (scaled >= 1000 && unit < units.length - 1) [scaled, unit] = [scaled / 1000, unit + 1];
  return `${unit ? scaled.toPrecision(3) : scaled} ${units[unit]}`;
}

export function moment(text) {
  return MOMENT.format(new Date(text));
}

export function ago(text) {
  const seconds = (new Date(text) - Date.now()) / 1000;
  const [unit, size] = STEPS.find(([, length]) => Math.abs(seconds) >= length) ?? STEPS.at(-1);
  return RELATIVE.format(Math.round(seconds / size), unit);
}
