// Colours the words of the answer for the example in focus.
(() => {
  const tokensOf = (query) => [...query.querySelectorAll(".query-text .t")];

  function shadeFor(hit) {
    const query = hit.closest(".query");
    const shaded = query.querySelector(".shaded");
    if (shaded === null) return;
    if (!hit.dataset.levels) lorif.restoreShades(query);
    else lorif.shadeAnswer(query, hit.dataset.levels, lorif.hitId(hit));
  }

  // levels: one digit per scored token, 4 for none
  lorif.shadeAnswer = (query, levels, label) => {
    const tokens = tokensOf(query);
    const shaded = query.querySelector(".shaded");
    shaded.dataset.initial ??= JSON.stringify([shaded.textContent, tokens.map((token) => token.className)]);
    tokens.forEach((token, i) => { token.className = `t t${levels[i]}`; });
    shaded.textContent = label;
    showOverall(query, false);
  };

  function showOverall(query, isShown) {
    const overall = query.querySelector(".overall");
    if (overall) overall.hidden = !isShown;
  }

  lorif.restoreShades = (query) => {
    const shaded = query.querySelector(".shaded");
    if (!shaded?.dataset.initial) return;
    const [label, classes] = JSON.parse(shaded.dataset.initial);
    tokensOf(query).forEach((token, i) => { token.className = classes[i]; });
    shaded.textContent = label;
    showOverall(query, true);
  };

  document.addEventListener("focusin", (event) => {
    const hit = event.target.closest(".hit");
    for (const query of document.querySelectorAll(".query")) {
      if (!query.contains(event.target)) lorif.restoreShades(query);
    }
    if (hit) shadeFor(hit);
  });
  document.addEventListener("click", (event) => {
    const hit = event.target.closest(".hit");
    if (hit && !event.target.closest("a, summary, button, label, .s") && String(getSelection()) === "") {
      hit.querySelector(".rank").focus({ preventScroll: true });
    }
  });
})();
