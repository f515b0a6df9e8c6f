/* The page as a whole: where its data come from, what stands in it, and what changes while runs go on. */

const POLL_MILLISECONDS = 2000;
const LIST_EVERY = 4;
const WHOLE_EVERY = 30;
const MANY_RUNS = 10;

async function ask(path, parameters = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error || answer.statusText);
  return said;
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/* Everything anew, in the order in which one asks. */
function render() {
  app.isOutdated = false;
  for (const chart of [...charts]) chart.drop();
  const main = document.getElementById("main");
  const { nodes, taken } = panels();
  const parts = [
    overview(),
    compare(),
    nodes[0],
    evaluations(),
    ...nodes.slice(1),
    tiers(),
    temperature(),
    rollouts(),
    tokens(),
    otherMetrics(taken),
    events(),
    config(),
  ];
  main.replaceChildren(...parts.filter(Boolean));
  const links = [...main.querySelectorAll("section")].map(part =>
    el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent),
  );
  document.getElementById("sections").replaceChildren(...links);
  spy();
  renderBar();
  renderSide();
}

/* Mark the section that one reads in the navigation. */
function spy() {
  const parts = [...document.querySelectorAll("main section")];
  const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
  const current = isAtEnd
    ? parts.at(-1)
    : parts.filter(part => part.getBoundingClientRect().top < 170).at(-1) || parts[0];
  for (const link of document.querySelectorAll("#sections a")) {
    const isCurrent = current && link.hash === `#${current.id}`;
    if (isCurrent && link.getAttribute("aria-current") !== "true")
      link.parentNode.scrollTo({ left: link.offsetLeft - 60 });
    if (isCurrent) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

function renderBar() {
  const of = run(),
    bad = of.alarms.some(alarm => alarm.level === "bad");
  document.title = `${of.name} · grpo`;
  document.getElementById("title").textContent = of.name;
  const status = document.getElementById("status");
  status.className = bad ? "bad" : of.alarms.length ? "warn" : "good";
  status.textContent =
    of.state.word +
    (of.state.step !== null ? ` · step ${short(of.state.step)}` : "") +
    (of.alarms.length ? ` · ${of.alarms.length}${of.alarms.length === 1 ? " alarm" : " alarms"}` : "");
  document.getElementById("footer").textContent = app.isLive
    ? "Served by grpo dashboard from the folder of the runs; this page only reads."
    : `Run folder ${of.folder}. This file is complete in itself: it fetches nothing.`;
}

function renderSide() {
  const listed = app.isLive ? app.listed : [...app.runs.values()].map(of => ({ id: of.id, ...of.state, fault: null }));
  const runs =
    listed.length < 2
      ? null
      : el(
          "fieldset",
          { class: "runs" },
          el("legend", {}, "Runs"),
          listed.length > MANY_RUNS ? runSearch() : null,
          listed.map(runRow),
        );
  const smoothing = el(
    "label",
    { class: "smoothing" },
    "Smoothing",
    el("input", {
      type: "range",
      min: 0,
      max: 50,
      value: app.smoothing,
      "aria-valuetext": `${app.smoothing} % of a curve`,
      on: {
        input: event => {
          app.smoothing = Number(event.target.value);
          for (const chart of charts) chart.changed();
        },
      },
    }),
  );
  const hint = el(
    "p",
    { class: "fine hint" },
    "Drag across a chart to zoom all of them, double-click to see all steps.",
  );
  document.getElementById("side").replaceChildren(...[runs, smoothing, hint].filter(Boolean));
}

function runSearch() {
  const find = event => {
    app.listedText = event.target.value;
    for (const row of document.querySelectorAll(".run-row")) row.hidden = !isListed(row.dataset.id);
  };
  return el("input", {
    type: "search",
    class: "run-search",
    placeholder: "find a run",
    value: app.listedText,
    "aria-label": "Find a run by its name",
    on: { input: find },
  });
}

const isListed = id => id.toLowerCase().includes(app.listedText.toLowerCase());

function runRow(listed) {
  const loaded = app.runs.get(listed.id),
    isDrawn = app.compared.has(listed.id);
  const box = el("input", {
    type: "checkbox",
    checked: isDrawn,
    disabled: Boolean(listed.fault),
    "aria-label": `Draw the curves of ${listed.id}`,
    on: { change: event => draw(listed.id, event.target.checked) },
  });
  if (isDrawn) box.style.accentColor = runColor(listed.id);
  const state = listed.fault || listed.word + (listed.step !== null ? `, step ${short(listed.step)}` : "");
  const row = el(
    "div",
    { class: `run-row${listed.id === app.selected ? " selected" : ""}`, hidden: !isListed(listed.id) },
    box,
    el(
      "button",
      {
        type: "button",
        class: "run-name",
        disabled: Boolean(listed.fault),
        "aria-pressed": String(listed.id === app.selected),
        on: { click: () => select(listed.id) },
      },
      el("span", {}, loaded ? loaded.name : listed.id),
      el("span", { class: "fine" }, state),
    ),
  );
  row.dataset.id = listed.id;
  return row;
}

async function load(id) {
  if (!app.runs.has(id)) app.runs.set(id, await whole(id));
}

async function select(id) {
  await load(id);
  if (!app.compared.has(id) || app.compared.size === 1) app.compared = new Set([id]);
  app.selected = id;
  render();
  scrollTo({ top: 0 });
}

async function draw(id, isWanted) {
  await load(id);
  if (isWanted) app.compared.add(id);
  else if (app.compared.size > 1) app.compared.delete(id);
  if (!app.compared.has(app.selected)) app.selected = [...app.compared][0];
  render();
}

/* --- live --- */

function merge(of, news) {
  const known = of.metrics,
    place = new Map(known.steps.map((step, index) => [step, index]));
  news.metrics.steps.forEach((step, row) => {
    let index = place.get(step);
    if (index === undefined) {
      index = known.steps.push(step) - 1;
      for (const column of Object.values(known.columns)) column.push(null);
    }
    for (const [name, column] of Object.entries(news.metrics.columns)) {
      known.columns[name] ??= Array(known.steps.length).fill(null);
      known.columns[name][index] = column[row];
    }
  });
  for (const [name, number] of Object.entries(news.metrics.not_finite))
    known.not_finite[name] = (known.not_finite[name] || 0) + number;
  known.num_steps += news.metrics.num_steps;
}

/* Take in what changed; returns whether the page has to be made anew. Moves between tiers come with the whole alone,
   which is asked for now and then. */
async function follow(id, isDue) {
  const of = app.runs.get(id),
    news = await ask("/api/news", { id, cursor: of.cursor });
  const before = Object.keys(of.metrics.columns).length,
    numDecisions = of.num_decisions;
  if (news.again || news.stamp !== of.stamp || (isDue && news.cursor !== of.cursorOfWhole)) {
    app.runs.set(id, await whole(id));
    return true;
  }
  const hasMoved = news.cursor !== of.cursor;
  merge(of, news);
  const { metrics, ...rest } = news;
  Object.assign(of, rest);
  if (hasMoved) for (const chart of charts) chart.changed();
  return Object.keys(of.metrics.columns).length !== before || of.num_decisions !== numDecisions;
}

async function whole(id) {
  const of = await ask("/api/run", { id });
  return { ...of, cursorOfWhole: of.cursor };
}

async function poll(turn) {
  let fault = null;
  try {
    if (turn % LIST_EVERY === 0) app.listed = (await ask("/api/runs")).runs;
    for (const id of [...app.compared]) app.isOutdated = (await follow(id, turn % WHOLE_EVERY === 0)) || app.isOutdated;
    if (app.isOutdated && !isTyping()) render();
    else {
      refreshed("overview", overview);
      refreshed("events", events);
      refreshed("tokens", tokens);
      renderBar();
      if (turn % LIST_EVERY === 0 && !document.getElementById("side").contains(document.activeElement)) renderSide();
      if (turn % LIST_EVERY === 0 && app.browser && !app.browser.isReading && app.browser.page === 0)
        await app.browser.show();
    }
  } catch (error) {
    fault = error;
  }
  document.body.classList.toggle("lost", fault !== null);
  if (fault) document.getElementById("status").textContent = `not connected: ${fault.message}`;
}

const isTyping = () => document.activeElement.matches("main input, main select");

/* A part of the page made anew, unless somebody stands in it. */
function refreshed(id, make) {
  const old = document.getElementById(id);
  if (old && !old.contains(document.activeElement)) old.replaceWith(make());
}

/* The run that was written to last, once there is one. */
async function firstRun() {
  for (;;) {
    app.listed = (await ask("/api/runs")).runs;
    const first = app.listed.find(listed => !listed.fault);
    if (first) return first;
    document.getElementById("title").textContent = app.listed.length
      ? app.listed[0].fault
      : "No run is in this folder yet; this page waits for one";
    await new Promise(resolve => setTimeout(resolve, POLL_MILLISECONDS));
  }
}

async function start() {
  const holder = document.getElementById("data");
  app.isLive = holder === null;
  if (app.isLive) {
    const first = await firstRun();
    await load(first.id);
    app.selected = first.id;
  } else {
    for (const of of (await unpacked(holder.textContent)).runs) app.runs.set(of.id, of);
    app.selected = [...app.runs.keys()][0];
  }
  app.compared = app.isLive ? new Set([app.selected]) : new Set(app.runs.keys());
  render();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  for (let turn = 1; app.isLive; turn++) {
    await new Promise(resolve => setTimeout(resolve, POLL_MILLISECONDS));
    if (!document.hidden) await poll(turn);
  }
}

addEventListener("scroll", () => requestAnimationFrame(spy), { passive: true });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (run()) render();
});
start().catch(error => {
  document.getElementById("title").textContent = String(error.message);
});
