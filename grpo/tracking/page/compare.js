/* Several runs side by side: where each stands, what each reached, and what differs in their configs. */

function compare() {
  const runs = drawn();
  if (runs.length < 2) return null;
  return section(
    "compare",
    "Comparison",
    "The runs whose curves are drawn. Names lead to a run's own tables.",
    table(
      [["Run"], ["State"], ["Step", "n"], ["Alarms", "n"], ...COMPARED.map(([label]) => [label, "n"])],
      runs.map(of => [
        runLink(of),
        of.state.word,
        short(of.state.step),
        short(of.alarms.length),
        ...COMPARED.map(([, name, write]) => write(mean(curve(of, name).values.slice(-RECENT)))),
      ]),
      "narrow",
      `Runs, with means of their last ${RECENT} steps`,
    ),
    el("p", { class: "fine" }, `Means of the last ${RECENT} steps.`),
    comparedEvaluations(runs),
    differences(runs),
  );
}

const COMPARED = VITALS.filter(([, name]) =>
  [
    "reward/mean",
    "reward/pass_rate",
    "policy/entropy",
    "completion/length_mean",
    "completion/truncated_fraction",
    "time/step",
  ].includes(name),
);

const runLink = of =>
  el("button", { type: "button", class: "link", on: { click: () => select(of.id) } }, swatch(runColor(of.id)), of.name);

/* The last policy of each run on each set. */
function comparedEvaluations(runs) {
  const sets = [...new Set(runs.flatMap(of => of.evaluations.map(set => set.name)))];
  return sets.map(name => {
    const cells = runs.map(of => {
      const set = of.evaluations.find(set => set.name === name);
      return new Map(set ? set.blocks[0].lines.map(line => [line.name, line.cells.at(-1)]) : []);
    });
    const metrics = [...new Set(cells.flatMap(of => [...of.keys()]))];
    return [
      el("h3", {}, `The last policy on ${name}`),
      table(
        [["Metric"], ...runs.map(of => [of.name])],
        metrics.map(metric => [
          metric,
          ...cells.map(of => {
            const cell = of.get(metric);
            return cell
              ? el(
                  "span",
                  { class: "compared" },
                  el("span", {}, `${cell.value} `),
                  el("span", { class: "fine" }, cell.interval),
                  interval(cell.drawn),
                )
              : "–";
          }),
        ]),
        "narrow",
        `Evaluations on ${name}`,
      ),
    ];
  });
}

function differences(runs) {
  const values = runs.map(of => new Map(of.config.map(row => [row.name, row.value])));
  const names = [...new Set(values.flatMap(of => [...of.keys()]))].filter(
    name => new Set(values.map(of => of.get(name))).size > 1,
  );
  if (!names.length) return el("p", {}, "Their configs are the same.");
  return [
    el("h3", {}, "What differs in their configs"),
    table(
      [["Field"], ...runs.map(of => [of.name])],
      names.map(name => [el("code", {}, name), ...values.map(of => (of.has(name) ? of.get(name) : "–"))]),
      "config differing",
      "Config fields that differ",
    ),
  ];
}
