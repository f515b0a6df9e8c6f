/* A completion with its tokens coloured by what the policy thought of them. */

/* How a token is coloured: a number from -1 to 1, and what the colours mean. */
const COLOURINGS = {
  "Log-prob": [
    logprob => -Math.sqrt(Math.min(1, Math.max(0, -logprob) / 5)),
    "the darker, the less likely the policy found the token: from certain to 1 in 150 and below",
  ],
  Advantage: [
    (logprob, advantage) => Math.max(-1, Math.min(1, advantage / 2)),
    "blue is pushed up, orange down; a rollout has one advantage, so all of its tokens have one colour",
  ],
  Pull: [
    (logprob, advantage) => Math.max(-1, Math.min(1, advantage * (1 - Math.exp(logprob)))),
    "advantage × (1 − probability): how hard the update pulls at the token's own logit; blue is up, orange down",
  ],
};

function completion(row, vocabulary) {
  const plain = el("pre", {}, String(row.completion ?? ""));
  const heading = el("h3", {}, "Completion");
  if (!Array.isArray(row.token_ids) || !row.token_ids.length) return [heading, plain];
  const place = el("div", {}, plain),
    meaning = el("p", { class: "fine", role: "status" });
  const names = ["Text", "Log-prob", ...(isNumber(row.advantage) ? ["Advantage", "Pull"] : [])];
  const buttons = names.map(name =>
    el(
      "button",
      {
        type: "button",
        class: "small",
        "aria-pressed": String(name === "Text"),
        on: {
          click: () => {
            buttons.forEach(button => button.setAttribute("aria-pressed", String(button.textContent === name)));
            place.replaceChildren(
              name === "Text" ? plain : colouredTokens(row, vocabulary, COLOURINGS[name][0], meaning),
            );
            meaning.textContent = name === "Text" ? "" : COLOURINGS[name][1];
          },
        },
      },
      name,
    ),
  );
  return [
    heading,
    el("div", { class: "modes", role: "group", "aria-label": "Colour the tokens by" }, buttons),
    meaning,
    place,
  ];
}

function colouredTokens(row, vocabulary, colouring, meaning) {
  const cut = isNumber(row.num_tokens) && row.num_tokens > row.token_ids.length;
  const spans = row.token_ids.map((id, index) => {
    const logprob = row.logprobs[index],
      share = colouring(logprob, row.advantage),
      text = vocabulary[id] ?? `⟨${id}⟩`;
    const span = el(
      "span",
      { class: `token ${share < 0 ? "down" : "up"}`, tabIndex: index ? -1 : 0 },
      text === "" ? "∅" : text,
    );
    span.style.setProperty("--strength", Math.abs(share).toFixed(3));
    span.title = span.said = `token ${index + 1}, id ${id}, log-prob ${short(logprob)}, probability ${percent(
      Math.exp(logprob),
    )}`;
    return span;
  });
  const told = span => {
    if (span && span.said) meaning.textContent = span.said;
  };
  return el(
    "pre",
    {
      class: "tokens",
      on: {
        focusin: event => told(event.target),
        mouseover: event => told(event.target),
        keydown: event => {
          const to = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key],
            other = to && event.target[to];
          if (other && other.said) {
            event.preventDefault();
            event.target.tabIndex = -1;
            other.tabIndex = 0;
            other.focus();
          }
        },
      },
    },
    spans,
    cut
      ? el(
          "span",
          { class: "fine" },
          ` … the page holds the first ${short(row.token_ids.length)} of ${short(row.num_tokens)} tokens`,
        )
      : null,
  );
}
