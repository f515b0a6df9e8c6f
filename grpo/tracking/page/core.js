/* What every part of the page stands on: elements, numbers for people, colours, and what is shown at the moment.
   Text reaches the document by textContent and by no other way. */

const SVG = "http://www.w3.org/2000/svg";

const app = {
  runs: new Map(), // data of the runs that are loaded, by id
  listed: [], // live: all runs of the folder
  selected: null, // id of the run whose tables and rollouts are shown
  compared: new Set(), // ids of the runs whose curves are drawn
  smoothing: 10, // span of the moving average, in percent of a curve's points
  zoom: null, // steps that all charts show, or null
  isLive: false,
  isOutdated: false, // live: what came in asks for a page that is made anew
  browser: null, // the browser of rollouts that is on the page
  listedText: "", // live: what the names of the listed runs have to hold
};

const run = () => app.runs.get(app.selected);
const drawn = () => [...app.compared].map(id => app.runs.get(id)).filter(Boolean);

/* An element with properties, attributes (those with a dash, role and for) and children; a child that is no node is
   text. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name.includes("-") || name === "role" || name === "for" || name === "colspan" || name === "scope")
      node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const isNumber = value => typeof value === "number" && Number.isFinite(value);

/* Three significant digits as a person writes them: 0.412, 1,280, 3.4 M, 2e-5. */
function short(value) {
  if (!isNumber(value)) return value === null || value === undefined || value === "" ? "–" : String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  for (const [floor, letter] of [
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
  ])
    if (size >= floor) return `${String(Number((value / floor).toPrecision(3)))} ${letter}`;
  if (size >= 1000 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(3)));
}

const percent = value =>
  isNumber(value) ? `${String(Number((100 * value).toPrecision(value < 0.1 ? 2 : 3)))} %` : "–";
const mean = values => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const NUM_COLORS = 6;
const colorOf = index => css(`--run-${index % NUM_COLORS}`);
const runColor = id => colorOf(runPlace(id));
const runPlace = id => Math.max(0, [...app.runs.keys()].indexOf(id));

/* One metric of a run as the steps and values at which it is known. */
function curve(of, name) {
  const column = of.metrics.columns[name],
    steps = [],
    values = [];
  if (!column) return { steps, values };
  column.forEach((value, index) => {
    if (value !== null) {
      steps.push(of.metrics.steps[index]);
      values.push(value);
    }
  });
  return { steps, values };
}

/* Exponential moving average of that span, without the start's pull towards zero (Kingma & Ba 2015, section 3). */
function smoothed(values, span) {
  const decay = 1 - 2 / (span + 1);
  let average = 0,
    weight = 0;
  return values.map(value => {
    average = decay * average + (1 - decay) * value;
    weight = decay * weight + (1 - decay);
    return average / weight;
  });
}

const absent = (what, path) =>
  el("p", { class: "absent" }, `${what} Left out: this run has no `, el("code", {}, path), ".");

/* A table: headings as [text, class], rows as lists of nodes or texts in the headings' order. */
function table(headings, rows, name = "", label = "") {
  const cell = (content, index, tag) =>
    el(tag, { class: headings[index] ? headings[index][1] : "", scope: tag === "th" ? "col" : null }, content);
  return el(
    "div",
    { class: "scroll", tabIndex: 0, role: "group", "aria-label": label || "Table" },
    el(
      "table",
      { class: name },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          headings.map((heading, index) => cell(heading[0], index, "th")),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(row =>
          el(
            "tr",
            { class: row.name || "" },
            (row.cells || row).map((content, index) => cell(content, index, "td")),
          ),
        ),
      ),
    ),
  );
}

const section = (id, title, lead, ...children) =>
  el(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    lead ? el("p", { class: "lead" }, lead) : null,
    children,
  );
