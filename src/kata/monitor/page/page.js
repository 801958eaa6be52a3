// The two views of the page, the list of sandboxes and one sandbox, kept up to date by the server's events.

import { age, bytes, clock, element, meter, milliseconds, percent, rate, say, setState, state } from "/page/format.js";
import { legend, plot } from "/page/plot.js";

// Of a point, as the server sends it.
const [, CPU, MEMORY, GUEST_MEMORY, RECEIVED, SENT] = [0, 1, 2, 3, 4, 5];
const HOUR_S = 3600;
const EVENTS_SHOWN = 200;

const main = document.getElementById("main");
const link = document.getElementById("link");

const label = (one) => (one.pod.name ? `${one.pod.namespace}/${one.pod.name}` : short(one.id));
const address = (one) => `/sandbox/${encodeURIComponent(one.name)}`;
// Container engines make up ids of 64 digits, and show twelve.
const short = (id) => (/^[0-9a-f]{64}$/.test(id) ? id.slice(0, 12) : id);
const total = (one) => (one.now ? one.now.received + one.now.sent : null);

function panel(title, ...children) {
  return element("section", { class: "panel", "aria-label": title }, element("h2", {}, title), ...children);
}

function eventLine(event, withSandbox) {
  const detail = Object.entries(event.detail).map(([name, value]) => `${name.replaceAll("_", " ")} ${short(String(value))}`);
  const [sandbox] = event.sandbox.split("@");
  const place = [withSandbox ? short(sandbox) : null, event.container && event.container !== sandbox ? short(event.container) : null];
  return element("li", { data: { type: event.type } },
    element("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)),
    element("b", {}, event.type),
    element("span", {}, [...place, ...detail].filter((part) => part).join("  ·  ")));
}

function eventList(withSandbox) {
  const list = element("ol", { class: "events", tabindex: "0", "aria-label": "Events, the newest first" });
  const empty = element("p", { class: "empty" }, "Nothing has happened since kata-monitor was started.");
  const made = panel("Events", list, empty);
  made.add = (event) => {
    list.prepend(eventLine(event, withSandbox));
    while (list.childElementCount > EVENTS_SHOWN) list.lastElementChild.remove();
    empty.hidden = true;
  };
  made.reset = (events) => {
    list.replaceChildren(...events.slice(-EVENTS_SHOWN).reverse().map((event) => eventLine(event, withSandbox)));
    empty.hidden = events.length > 0;
  };
  return made;
}

// ------------------------------------------------------------------------------------------------------------- the list

const COLUMNS = [
  { name: "Sandbox", of: label },
  { name: "State", of: (one) => one.state },
  { name: "Containers", of: (one) => one.containers.length, number: true },
  { name: "CPU", of: (one) => one.now?.cpu ?? -1, number: true },
  { name: "Memory", of: (one) => one.now?.memory ?? -1, number: true },
  { name: "Network", of: (one) => total(one) ?? -1, number: true },
  { name: "Age", of: (one) => -one.started, number: true },
];

function tile(title, options) {
  const figure = element("p", { class: "figure" }, "–");
  const drawn = plot(title, { height: 44, axis: false, ...options });
  const made = element("section", { class: "panel", "aria-label": title }, element("h2", {}, title), figure, drawn);
  made.set = (text, more, points) => { figure.replaceChildren(text, " ", element("small", {}, more)); drawn.show(points); };
  return made;
}

function listView() {
  document.title = "kata-monitor";
  const sandboxes = new Map();
  const rows = new Map();
  let totals = [];
  let sorted = { column: 0, up: true };
  let wanted = "";

  const tiles = {
    count: element("section", { class: "panel", "aria-label": "Sandboxes" }, element("h2", {}, "Sandboxes")),
    cpu: tile("CPU", { format: percent, least: 10, series: [{ name: "CPU", of: (point) => point[CPU] }] }),
    memory: tile("Memory", { format: bytes, base: 1024, series: [{ name: "memory", of: (point) => point[MEMORY] }] }),
    network: tile("Network", { format: rate, base: 1024, least: 1024, series: [{ name: "network", of: (point) => point[RECEIVED] + point[SENT] }] }),
  };
  const count = element("p", { class: "figure", id: "count" }, "–");
  const states = element("p", { class: "muted small" });
  tiles.count.append(count, states);

  const search = element("input", { type: "search", id: "filter", placeholder: "Filter", "aria-label": "Filter the sandboxes",
    oninput: () => { wanted = search.value.trim().toLowerCase(); order(); } });
  const heads = COLUMNS.map((column, index) => element("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
    element("button", { type: "button", onclick: () => { sorted = { column: index, up: sorted.column === index ? !sorted.up : !column.number }; order(); } }, column.name)));
  const body = element("tbody");
  const empty = element("p", { class: "empty" });
  const list = element("section", { class: "panel", id: "list", "aria-label": "Sandboxes of this host" },
    element("div", { class: "bar" }, element("h2", {}, "Sandboxes of this host"), search),
    element("table", { class: "cards" }, element("thead", {}, element("tr", {}, ...heads)), body), empty);
  const events = eventList(true);
  main.replaceChildren(element("div", { class: "tiles" }, ...Object.values(tiles)), list, events);

  function row(one) {
    const name = element("a", { href: address(one) });
    const below = element("span");
    const cells = COLUMNS.slice(1).map((column) => element("td", { class: column.number ? "number" : null, data: { label: column.name } }));
    const shown = state(one.state);
    const load = element("span");
    const used = element("span");
    const loadMeter = meter();
    const usedMeter = meter();
    cells[0].append(shown);
    cells[2].append(load, loadMeter);
    cells[3].append(used, usedMeter);
    const made = element("tr", { data: { name: one.name } }, element("th", { scope: "row" }, name, below), ...cells);
    made.update = (now) => {
      say(name, label(now));
      say(below, [now.pod.name ? short(now.id) : null, now.engine || now.namespace, now.vm.accelerator].filter((part) => part).join("  ·  "));
      setState(shown, now.state);
      shown.title = now.problem;
      const running = now.containers.filter((each) => each.state === "running").length;
      say(cells[1], now.containers.length ? `${running}/${now.containers.length}` : "–");
      say(load, percent(now.now?.cpu));
      loadMeter.set((now.now?.cpu ?? 0) / (100 * (now.vm.vcpus || 1)));
      say(used, bytes(now.now?.memory));
      usedMeter.set((now.now?.memory ?? 0) / ((now.vm.memory_mib || 1024) * 1048576));
      say(cells[4], rate(total(now)));
      say(cells[5], age(Date.now() / 1000 - now.started));
    };
    return made;
  }

  function order() {
    const { column, up } = sorted;
    heads.forEach((head, index) => head.setAttribute("aria-sort", index === column ? (up ? "ascending" : "descending") : "none"));
    const kept = [...sandboxes.values()].filter((one) => `${label(one)} ${one.id} ${one.namespace} ${one.state}`.toLowerCase().includes(wanted));
    kept.sort((one, other) => {
      const [first, second] = [COLUMNS[column].of(one), COLUMNS[column].of(other)];
      const difference = typeof first === "string" ? first.localeCompare(second, undefined, { numeric: true }) : first - second;
      return (up ? difference : -difference) || one.name.localeCompare(other.name);
    });
    const wantedRows = kept.map((one) => rows.get(one.name));
    // Rows that are in their place stay there: moving one takes the focus from it.
    wantedRows.forEach((node, index) => { if (body.children[index] !== node) body.insertBefore(node, body.children[index] ?? null); });
    while (body.childElementCount > wantedRows.length) body.lastElementChild.remove();
    empty.hidden = kept.length > 0;
    say(empty, sandboxes.size ? "No sandbox fits the filter." : "No sandbox runs on this host.");
  }

  function put(one) {
    sandboxes.set(one.name, one);
    if (!rows.has(one.name)) rows.set(one.name, row(one));
    rows.get(one.name).update(one);
  }

  function sum() {
    const all = [...sandboxes.values()];
    const add = (of) => all.reduce((so, one) => so + (of(one) ?? 0), 0);
    say(count, String(all.length));
    const by = new Map();
    all.forEach((one) => by.set(one.state, (by.get(one.state) ?? 0) + 1));
    say(states, [...by].sort().map(([name, number]) => `${number} ${name}`).join(", ") || "none");
    const now = [Date.now() / 1000, add((one) => one.now?.cpu), add((one) => one.now?.memory), add((one) => one.now?.guest_memory), add((one) => one.now?.received), add((one) => one.now?.sent)];
    const points = [...totals, now];
    tiles.cpu.set(percent(now[CPU]), `of ${add((one) => one.vm.vcpus)} vCPUs`, points);
    tiles.memory.set(bytes(now[MEMORY]), `of ${bytes(add((one) => one.vm.memory_mib) * 1048576)}`, points);
    tiles.network.set(rate(now[RECEIVED] + now[SENT]), `${rate(now[RECEIVED])} in`, points);
  }

  function takeUsage(given) {
    given.forEach(put);
    const now = Date.now() / 1000;
    if (!totals.length || now - totals.at(-1)[0] >= 9) {
      sum();
      const add = (name) => given.reduce((so, one) => so + (one.now?.[name] ?? 0), 0);
      totals.push([now, add("cpu"), add("memory"), add("guest_memory"), add("received"), add("sent")]);
      totals = totals.filter((point) => point[0] > now - HOUR_S);
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); return; }
    if (event.key === "Escape" && document.activeElement === search) { search.value = ""; wanted = ""; order(); search.blur(); return; }
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step === undefined || document.activeElement?.closest(".events")) return;
    const links = [...body.querySelectorAll("th a")];
    const next = links[Math.max(0, Math.min(links.length - 1, links.indexOf(document.activeElement) + step))];
    if (next) { event.preventDefault(); next.focus(); }
  });

  return {
    all: (given) => {
      sandboxes.clear(); rows.clear(); body.replaceChildren();
      totals = given.totals;
      given.sandboxes.forEach(put);
      events.reset(given.events);
      order(); sum();
    },
    usage: (given) => { takeUsage(given.sandboxes); order(); sum(); },
    sandbox: (given) => { put(given); order(); sum(); },
    gone: ({ name }) => { sandboxes.delete(name); rows.delete(name); order(); sum(); },
    event: events.add,
  };
}

// ---------------------------------------------------------------------------------------------------------- one sandbox

const CONTAINER_COLUMNS = [["Container", false], ["State", false], ["CPU", true], ["Memory", true], ["Limit", true], ["Processes", true]];

function usage(one) {
  const lives = one.state === "running" || one.state === "paused";
  return [["CPU", percent(lives ? one.cpu : null)], ["Memory", bytes(lives ? one.memory : null)],
    ["Limit", one.limit == null ? "none" : bytes(one.limit)], ["Processes", lives ? one.pids ?? "–" : "–"]];
}

function phaseBars(phases, sandboxId) {
  const end = Math.max(1, ...phases.map((phase) => phase.begin_ms + phase.length_ms));
  return phases.flatMap((phase) => {
    const bar = element("i");
    bar.style.left = `${(phase.begin_ms / end) * 100}%`;
    bar.style.width = `${(phase.length_ms / end) * 100}%`;
    return [element("dt", {}, phase.name, phase.subject && phase.subject !== sandboxId ? element("span", { class: "muted small" }, ` ${short(phase.subject)}`) : null), element("dd", { class: "track", "aria-hidden": "true" }, bar), element("dd", { class: "took" }, milliseconds(phase.length_ms))];
  });
}

function sandboxView(name) {
  let points = [];
  let known = null;
  let gone = false;
  const title = element("h1");
  const shown = state("starting");
  const notice = element("p", { class: "notice", role: "alert", hidden: "" });
  const facts = element("dl", { class: "facts" });
  const plots = {
    cpu: plot("CPU of the VM", { format: percent, least: 10, series: [{ name: "CPU", of: (point) => point[CPU] }] }),
    memory: plot("Memory", { format: bytes, base: 1024, least: 1048576, series: [{ name: "VM", of: (point) => point[MEMORY] }, { name: "containers", of: (point) => point[GUEST_MEMORY] }] }),
    network: plot("Network", { format: rate, base: 1024, least: 1024, series: [{ name: "in", of: (point) => point[RECEIVED] }, { name: "out", of: (point) => point[SENT] }] }),
  };
  const body = element("tbody");
  const bars = element("dl", { class: "phases" });
  const console_ = element("pre", { tabindex: "0", id: "console", "aria-label": "The end of the guest's console" });
  const follow = element("input", { type: "checkbox", checked: "" });
  const events = eventList(false);
  const containers = panel("Containers", element("table", { class: "cards" },
    element("thead", {}, element("tr", {}, ...CONTAINER_COLUMNS.map(([text, number]) => element("th", { scope: "col", class: number ? "number" : null }, text)))), body));
  main.replaceChildren(
    element("p", {}, element("a", { href: "/" }, "← All sandboxes")),
    element("div", { class: "title" }, title, shown),
    notice,
    element("section", { class: "panel", "aria-label": "About it" }, facts),
    element("div", { class: "plots" }, panel("CPU", legend("VM"), plots.cpu), panel("Memory", legend("VM", "containers"), plots.memory),
      panel("Network", legend("in", "out"), plots.network)),
    panel("Start", bars),
    containers,
    element("section", { class: "panel", "aria-label": "Console" },
      element("div", { class: "bar" }, element("h2", {}, "Console"), element("label", { class: "switch" }, follow, "follow")), console_),
    events);

  function fact(text, value) {
    return value == null || value === "" ? [] : [element("div", {}, element("dt", {}, text), element("dd", {}, String(value)))];
  }

  function put(one) {
    known = one;
    document.title = `${label(one)} – kata-monitor`;
    say(title, label(one));
    setState(shown, one.state);
    const trouble = one.why_ended || one.problem;
    if (!gone) { notice.hidden = !trouble; say(notice, trouble); }
    facts.replaceChildren(
      ...fact("Id", one.id), ...fact("Engine", one.engine), ...fact("Namespace", one.namespace),
      ...fact("Pod", one.pod.name && `${one.pod.namespace}/${one.pod.name}`),
      ...fact("vCPUs", one.vm.vcpus), ...fact("Memory", one.vm.memory_mib && bytes(one.vm.memory_mib * 1048576)),
      ...fact("Accelerator", one.vm.accelerator), ...fact("VMM's process", one.vm.pid || null),
      ...fact("Started", `${age(Date.now() / 1000 - one.started)} ago`),
      ...fact("CPU now", percent(one.now?.cpu)), ...fact("Memory now", bytes(one.now?.memory)));
    body.replaceChildren(...one.containers.map((each) => element("tr", {},
      element("th", { scope: "row" }, each.name || null, each.name ? " " : null, element("span", { class: "id muted", title: each.id }, short(each.id))),
      element("td", { data: { label: "State" } }, state(each.state, each.exit_status == null ? each.state : `${each.state}, exit status ${each.exit_status}`)),
      ...usage(each)
        .map(([text, value]) => element("td", { class: "number", data: { label: text } }, String(value))))));
    const now = one.now && [one.now.time, one.now.cpu, one.now.memory, one.now.guest_memory, one.now.received, one.now.sent];
    if (now && (!points.length || now[0] - points.at(-1)[0] >= 9)) points.push(now);
    points = points.filter((point) => point[0] > (now ? now[0] : Date.now() / 1000) - HOUR_S);
    const drawn = now && points.at(-1)[0] < now[0] ? [...points, now] : points;
    Object.values(plots).forEach((each) => each.show(drawn));
  }

  async function ask(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  async function load() {
    try {
      const found = await (await ask(`/api/sandboxes/${encodeURIComponent(name)}`)).json();
      points = found.history;
      bars.replaceChildren(...phaseBars(found.phases, found.id));
      events.reset(found.events);
      gone = false;
      put(found);
    } catch (error) {
      end(known ? "This sandbox has ended." : error.message.trim());
    }
  }

  async function tail() {
    if (!follow.checked || gone || document.hidden) return;
    try {
      const text = await (await ask(`/api/sandboxes/${encodeURIComponent(name)}/console`)).text();
      // A reader who has scrolled up stays there.
      const below = console_.scrollHeight - console_.scrollTop - console_.clientHeight < 30;
      say(console_, text || "The guest has written nothing.");
      if (below) console_.scrollTop = console_.scrollHeight;
    } catch { /* the next look will tell */ }
  }

  function end(text) {
    gone = true;
    if (!known) { say(title, name); document.title = `${name} – kata-monitor`; }
    setState(shown, "gone");
    notice.hidden = false;
    say(notice, text);
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") location.assign("/");
  });
  setInterval(tail, 2000);

  return {
    all: async () => { await load(); await tail(); },
    usage: ({ sandboxes }) => { const mine = sandboxes.find((one) => one.name === name); if (mine) put(mine); },
    sandbox: (one) => { if (one.name === name) { if (known && !bars.childElementCount) load(); else put(one); } },
    gone: (one) => { if (one.name === name) end("This sandbox has ended."); },
    event: (event) => { if (event.sandbox === name) events.add(event); },
  };
}

// ------------------------------------------------------------------------------------------------------------- the link

const here = location.pathname.match(/^\/sandbox\/([^/]+)$/);
const view = here ? sandboxView(decodeURIComponent(here[1])) : listView();
const stream = new EventSource("/api/stream");
stream.onopen = () => { say(link, "live"); link.dataset.state = "live"; };
stream.onerror = () => {
  say(link, "connection lost, trying again");
  link.dataset.state = "lost";
  // After an answer that is none, a browser does not try again by itself.
  if (stream.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
};
for (const type of ["all", "usage", "sandbox", "gone", "event"]) {
  stream.addEventListener(type, (message) => view[type](JSON.parse(message.data)));
}
