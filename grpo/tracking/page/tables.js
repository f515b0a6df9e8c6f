/* What is no curve: evaluations, temperature decisions, the bill, events, config. */

function evaluations() {
  const of = run();
  const lead =
    "pass@k is the chance that one of k rollouts is correct, pass^k that all are. The range beside a value is its 95 % interval over problems; a difference is taken problem by problem, on the same noise.";
  if (!of.evaluations.length)
    return section(
      "evaluation",
      "Evaluation",
      null,
      absent("What the policy reaches on problems that training never sees.", "evals/*.json"),
    );
  return section(
    "evaluation",
    "Evaluation",
    lead,
    of.evaluations.map(set => [el("h3", {}, set.name), setTable(set)]),
  );
}

function setTable(set) {
  const head = () =>
    set.policies.map(policy => [
      el("th", { class: "n", scope: "col" }, short(policy.name)),
      el(
        "th",
        { class: "fine", colspan: 2 },
        `step ${short(policy.step)} · ${short(policy.num_problems)} × ${short(policy.num_rollouts)} · T ${short(
          policy.temperature,
        )}`,
      ),
    ]);
  const of = blocks =>
    el(
      "div",
      { class: "scroll", tabIndex: 0, role: "group", "aria-label": `Evaluation on ${set.name}` },
      el(
        "table",
        { class: "narrow evaluation" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "line" }, "Metric"), head())),
        blocks.map(block =>
          el(
            "tbody",
            {},
            block.title
              ? el("tr", {}, el("th", { class: "block", colspan: 1 + 3 * set.policies.length }, block.title))
              : null,
            block.lines.map(line =>
              el(
                "tr",
                {},
                el("th", { scope: "row", class: "line" }, line.name),
                line.cells.map(cell => [
                  el("td", { class: "n" }, cell.value),
                  el("td", { class: "fine" }, cell.interval),
                  el("td", {}, interval(cell.drawn)),
                ]),
              ),
            ),
          ),
        ),
      ),
    );
  const [parts, whole] = [
    set.blocks.filter(block => block.title.startsWith("By ")),
    set.blocks.filter(block => !block.title.startsWith("By ")),
  ];
  return [of(whole), parts.map(part => el("details", {}, el("summary", {}, part.title), of([{ ...part, title: "" }])))];
}

/* A share with its interval as a small line from 0 to 1, to be compared down a column. */
function interval(drawn) {
  if (!drawn) return null;
  const [low, value, high] = drawn.map(number => 4 + 112 * Math.min(1, Math.max(0, number)));
  return svg(
    "svg",
    { class: "interval", viewBox: "0 0 120 14", "aria-hidden": "true" },
    svg("line", { class: "track", x1: 4, x2: 116, y1: 7, y2: 7 }),
    svg("line", { class: "range", x1: low, x2: high, y1: 7, y2: 7 }),
    svg("circle", { cx: value, cy: 7, r: 3.5 }),
  );
}

function temperature() {
  const of = run(),
    known = of.metrics.columns["sampling/temperature"];
  const marks = () =>
    run()
      .decisions.filter(made => isNumber(made.step))
      .map(made => [made.step, made.chosen === made.current ? "" : short(made.chosen)]);
  const drawing = known
    ? el("div", { class: "charts wide" }, metricChart(["sampling/temperature"], null, { marks }))
    : el(
        "p",
        { class: "absent" },
        "How hot the policy sampled. Left out: no row of ",
        el("code", {}, "metrics.jsonl"),
        " holds ",
        el("code", {}, "sampling/temperature"),
        ".",
      );
  if (!of.decisions.length)
    return section(
      "temperature",
      "Temperature",
      null,
      drawing,
      el(
        "p",
        { class: "absent" },
        "No decision to show: ",
        el("code", {}, "events.jsonl"),
        " holds none about the temperature.",
      ),
    );
  const cut =
    of.num_decisions > of.decisions.length
      ? ` The latest ${of.decisions.length} of ${short(of.num_decisions)} are shown.`
      : "";
  return section(
    "temperature",
    "Temperature",
    null,
    drawing,
    el("h3", {}, "Decisions"),
    el(
      "p",
      { class: "lead" },
      `What each candidate reached against the reference, problem by problem, and the one that was chosen.${cut}`,
    ),
    of.decisions.map((made, place) => decision(made, place === 0)),
  );
}

function decision(made, isOpen) {
  const compared = made.compared !== "score" ? ` Differences are of ${made.compared}.` : "";
  const headings = [...made.columns.map(([name, what]) => [el("span", { title: what }, name), "n"]), ["Verdict"]];
  const rows = made.rows.map(row => ({
    name: row.chosen ? "chosen" : "",
    cells: [...row.cells.map(short), row.verdict + (row.chosen ? ", chosen" : "")],
  }));
  return el(
    "details",
    { open: isOpen, class: "decision" },
    el(
      "summary",
      {},
      `Step ${short(made.step)}: ${short(made.current)} → `,
      el("strong", {}, short(made.chosen)),
      " ",
      el("span", { class: "fine" }, short(made.reason)),
    ),
    made.plateau || compared ? el("p", { class: "fine" }, made.plateau + compared) : null,
    rows.length ? table(headings, rows, "narrow", `Readings of the decision at step ${short(made.step)}`) : null,
  );
}

function tokens() {
  const bills = run().ledger,
    total = bills.reduce((sum, bill) => sum + bill.tokens, 0);
  if (!total) return section("tokens", "Tokens", null, absent("What the tokens were drawn for.", "metrics.jsonl"));
  const bar = share => {
    const node = el("span", { class: "share" });
    node.style.width = `${(100 * share).toFixed(1)}%`;
    return el("span", { class: "share-place" }, node);
  };
  return section(
    "tokens",
    "Tokens",
    `What every token was drawn for: ${short(total)} in all.`,
    table(
      [
        ["Purpose"],
        ["Tokens", "n"],
        ["Share", "n"],
        [el("span", { class: "unseen" }, "as a bar")],
        ["What came of them"],
      ],
      bills.map(bill => [
        bill.purpose,
        short(bill.tokens),
        `${((100 * bill.tokens) / total).toFixed(1)} %`,
        bar(bill.tokens / total),
        el("span", { class: "fine" }, bill.note),
      ]),
      "narrow",
      "Tokens by purpose",
    ),
  );
}

function events() {
  const of = run();
  if (!of.events.length)
    return section("events", "Events", null, absent("Gates, stages, best checkpoints.", "events.jsonl"));
  const cut = of.num_events > of.events.length ? `The latest ${of.events.length} of ${short(of.num_events)}.` : null;
  return section(
    "events",
    "Events",
    cut,
    table(
      [["Step", "n"], ["Event"], ["What"]],
      [...of.events].reverse().map(event => [short(event.step), short(event.event), event.text]),
      "narrow events",
      "Events, the latest first",
    ),
  );
}

function config() {
  const rows = run().config,
    changed = rows.filter(row => row.is_changed);
  const by = new Map();
  for (const row of rows) by.set(row.name.split(".")[0], [...(by.get(row.name.split(".")[0]) || []), row]);
  const line = row => ({
    name: row.is_changed ? "changed" : "",
    cells: [
      el("code", {}, row.name),
      row.value,
      row.default === null ? el("span", { class: "fine" }, "has none") : row.default,
    ],
  });
  const headings = [["Field"], ["Value"], ["Default", "fine"]];
  return section(
    "config",
    "Config",
    `${changed.length} of ${rows.length} fields differ from their default, or have none.`,
    table(headings, changed.map(line), "config", "Fields that were changed"),
    el(
      "details",
      {},
      el("summary", {}, "Every field, as resolved"),
      [...by].map(([name, of]) => [el("h3", {}, name), table(headings, of.map(line), "config", `Fields of ${name}`)]),
    ),
  );
}
