// Shows which words of the answer a coloured span of a passage speaks to.
(() => {
  const MOST_NAMED = 4;
  const MIN_SHARE = 0.05;
  const SHADES = 4;
  let pending = null;

  const spansOf = (text) => [...text.querySelectorAll(".s")];

  // one stop of Tab for each text; arrows move between its spans
  function initialise() {
    for (const text of document.querySelectorAll("#answer-container .hit .text")) {
      spansOf(text).forEach((span, i) => {
        span.setAttribute("role", "button");
        span.tabIndex = i === 0 ? 0 : -1;
      });
    }
  }

  async function show(span) {
    const hit = span.closest(".hit");
    const query = hit.closest(".query");
    if (query.querySelector(".shaded") === null) return; // such a question has no parts by token
    pending?.abort();
    pending = new AbortController();
    clear();
    span.setAttribute("aria-pressed", "true");
    const note = lorif.element("p", { className: "pair", role: "status" }, "Comparing it with the answer …");
    hit.querySelector(".source").before(note);
    const state = lorif.currentState();
    const body = {
      question: lorif.queryOf(state),
      generation: state.generation,
      example_id: lorif.hitId(hit),
      start: Number(span.dataset.start),
      end: Number(span.dataset.end),
    };
    try {
      const pair = await (await lorif.request("pairs", { body, signal: pending.signal })).json();
      draw(query, hit, span, note, pair);
    } catch (failure) {
      if (failure.name !== "AbortError") note.textContent = failure.message;
    }
  }

  function draw(query, hit, span, note, { shares }) {
    const words = sumByWord(query, shares);
    const largest = Math.max(...words.map(({ share }) => Math.abs(share)), Number.MIN_VALUE);
    const total = words.reduce((sum, { share }) => sum + Math.abs(share), 0) || 1;
    const levels = words.map(({ share }) => SHADES + Math.round((SHADES * share) / largest)).join("");
    lorif.shadeAnswer(query, levels, `“${span.textContent}” in ${lorif.hitId(hit)}`);
    const named = words.filter(({ share }) => Math.abs(share) >= MIN_SHARE * total)
      .sort((one, other) => Math.abs(other.share) - Math.abs(one.share)).slice(0, MOST_NAMED);
    const percent = (share) => `${share < 0 ? "−" : "+"}${Math.round((100 * Math.abs(share)) / total)} %`;
    note.replaceChildren(`“${span.textContent}” speaks to `, ...named.flatMap(({ text, share }, i) => [
      i === 0 ? "" : ", ", lorif.element("span", { className: "token" }, text.trim() || "␣"), ` ${percent(share)}`,
    ]), named.length === 0 ? "no word of the answer." : "");
  }

  // a word on the page can be several tokens
  function sumByWord(query, shares) {
    return [...query.querySelectorAll(".query-text .t")].map(({ textContent: text, dataset }) => {
      const [start, end] = dataset.tokens.split(" ").map(Number);
      return { text, share: shares.slice(start, end).reduce((sum, share) => sum + share, 0) };
    });
  }

  function clear() {
    for (const note of document.querySelectorAll(".pair")) note.remove();
    for (const span of document.querySelectorAll(".s[aria-pressed]")) span.removeAttribute("aria-pressed");
  }

  // whether there was something to clear
  lorif.clearPair = () => {
    const isShown = document.querySelector(".pair") !== null;
    pending?.abort();
    clear();
    for (const query of isShown ? document.querySelectorAll(".query") : []) lorif.restoreShades(query);
    return isShown;
  };

  document.addEventListener("click", (event) => {
    const span = event.target.closest("#answer-container .hit .s");
    if (!span || String(getSelection()) !== "") return;
    span.focus();
    show(span);
  });
  document.addEventListener("keydown", (event) => {
    const span = event.target.closest?.("#answer-container .hit .s");
    if (!span) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const spans = spansOf(span.closest(".text"));
      const next = spans[spans.indexOf(span) + step];
      if (next) {
        span.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      show(span);
    } else {
      return;
    }
    event.preventDefault();
  });
  document.addEventListener("answered", initialise);
})();
