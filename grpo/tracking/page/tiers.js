/* How hard the problems are, by the profile and while training, and which of them moved from tier to tier. */

function tiers() {
  const of = run(),
    profile = of.tiers,
    sizes = tierSizes();
  const children = [];
  if (profile)
    children.push(
      el(
        "p",
        { class: "lead" },
        `How the profile sorted ${short(profile.total)} problems before training, with ${short(
          profile.num_rollouts,
        )} rollouts (${short(profile.num_tokens)} tokens) at temperature ${short(profile.temperature)}.${
          profile.without_tier
            ? ` ${short(profile.without_tier)} more have no tier: no verdict about them had a value.`
            : ""
        }`,
      ),
      el(
        "div",
        { class: "pair" },
        table(
          [
            ["Tier"],
            ["Problems", "n"],
            ["Rollouts a problem", "n"],
            ["Tokens a rollout", "n"],
            ["Label wrong", "n"],
            ["Expected wrong labels", "n"],
          ],
          profile.summaries.map(tier => [
            [swatch(tierColor(tier.tier)), tier.tier],
            `${short(tier.num_problems)} · ${(100 * tier.share).toFixed(0)} %`,
            short(tier.mean_rollouts),
            short(tier.mean_tokens),
            tier.mean_label_error === null ? "–" : `${(100 * tier.mean_label_error).toFixed(1)} %`,
            short(tier.num_wrong),
          ]),
          "narrow",
          "Tiers by the profile",
        ),
        histogram(profile),
      ),
    );
  else children.push(absent("How hard the problems are for the policy before training.", "profile/tiers.parquet"));
  if (sizes) children.push(el("h3", {}, "While training"), el("div", { class: "charts wide" }, sizes));
  if (of.moves) children.push(...moves(of.moves));
  return section("tiers", "Tiers", null, children);
}

const swatch = color => {
  const node = el("span", { class: "swatch" });
  node.style.background = color;
  return node;
};

/* Problems by how hard they were: right ones among the first rollouts, then the rollout of the first success. */
function histogram(profile) {
  const totals = profile.labels.map((_, place) => profile.counts.reduce((sum, [, numbers]) => sum + numbers[place], 0));
  const most = Math.max(1, ...totals);
  const bars = profile.labels.map((label, place) => {
    const parts = [...profile.counts]
      .reverse()
      .filter(([, numbers]) => numbers[place])
      .map(([name, numbers]) => {
        const part = el("span", { class: "part" });
        part.style.height = `${(100 * numbers[place]) / most}%`;
        part.style.background = tierColor(name);
        return part;
      });
    return el(
      "div",
      { class: "bar-column", title: `${label}: ${short(totals[place])}` },
      el("div", { class: "bar-place" }, parts),
      el("span", { class: "bar-label" }, label),
    );
  });
  const words = profile.labels.map((label, place) => `${label} ${totals[place]}`).join(", ");
  return el(
    "figure",
    { class: "histogram" },
    el("div", { class: "bars", role: "img", "aria-label": `Problems by difficulty: ${words}` }, bars),
    el(
      "p",
      { class: "fine" },
      "Problems by right ones among the first rollouts, then by the rollout of the first success. profile/tiers.parquet has a row for each.",
    ),
  );
}

function moves(of) {
  const [first] = of.tables;
  const shade = (count, row, column, sum) => {
    const cell = el(
      "span",
      { class: `shade ${row === column ? "stayed" : column < row ? "easier" : "harder"}` },
      short(count),
    );
    cell.style.setProperty("--share", sum ? (count / sum).toFixed(3) : "0");
    return cell;
  };
  const matrix = move => [
    el("h4", {}, `${move.from} → ${move.to}: ${short(move.num_moved)} of ${short(move.num_problems)} moved`),
    table(
      [["from \\ to"], ...of.tiers.map(name => [name, "n"])],
      of.tiers.map((name, row) => [
        name,
        ...move.counts[row].map((count, column) =>
          shade(
            count,
            row,
            column,
            move.counts[row].reduce((a, b) => a + b, 0),
          ),
        ),
      ]),
      "narrow matrix",
      `Moves from ${move.from} to ${move.to}`,
    ),
  ];
  const listed = el(
    "details",
    {},
    el(
      "summary",
      {},
      "The problems that moved",
      el(
        "span",
        { class: "fine" },
        ` ${short(of.num_moved)}${
          of.num_moved > of.problems.length ? `, the first ${of.problems.length} listed` : ""
        }, the ones that became harder first`,
      ),
    ),
    table(
      [["Problem"], ...of.labellings.map(name => [name])],
      of.problems.map(([problem, path]) => [el("code", {}, problem), ...path]),
      "narrow",
      "Problems that changed their tier",
    ),
  );
  return [
    el("h3", {}, "Who moved where"),
    el(
      "p",
      { class: "lead" },
      "A row is the tier before, a column the tier after: blue became easier, orange harder, grey stayed, and a darker tone is a larger share of the row. Labels are estimates, so some moves are noise.",
    ),
    el("div", { class: "matrices" }, el("div", {}, matrix(first))),
    of.tables.length > 1
      ? el(
          "details",
          {},
          el("summary", {}, "Move by move"),
          el(
            "div",
            { class: "matrices" },
            of.tables.slice(1).map(move => el("div", {}, matrix(move))),
          ),
        )
      : null,
    listed,
  ];
}
