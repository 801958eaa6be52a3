// Numbers and times as people read them, and elements: what is shown is always text, never markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  if (value == null) return "–";
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) { value /= 1024; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export const rate = (value) => (value == null ? "–" : `${bytes(value)}/s`);

export const percent = (value) => (value == null ? "–" : `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`);

export const milliseconds = (value) => (value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(value < 10 ? 1 : 0)} ms`);

export function age(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(seconds))} s`;
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value == null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(made.dataset, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Changes the page only where it differs: focus, selection and a reader's place stay.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function state(name, text = name) {
  return element("span", { class: "state", data: { state: name } }, text);
}

export function setState(node, name) {
  say(node, name);
  node.dataset.state = name;
}

export function meter() {
  const bar = element("i");
  const made = element("span", { class: "meter", "aria-hidden": "true" }, bar);
  made.set = (part) => { bar.style.width = `${Math.max(0, Math.min(1, part || 0)) * 100}%`; };
  return made;
}
