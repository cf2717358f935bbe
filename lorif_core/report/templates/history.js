// The address has the question, so Back, reload, other tabs and links show the same answer.
(() => {
  const recent = document.getElementById("recent");
  const shownGeneration = Number(document.getElementById("generation").textContent);
  const title = document.title;
  const MAX_ANSWERS = 20;
  const answered = new Map(); // address fragment -> { state, html }, the newest last

  // `how` is pushState for a new question, and replaceState for one that the address has already
  function ask(state, how) {
    lorif.fillForm(state);
    let isFirst = true;
    return lorif.ask(state, (pinned, html) => {
      const hash = lorif.toHash(pinned);
      if (isFirst && location.hash !== hash) history[how](null, "", hash);
      isFirst = false;
      answered.delete(hash);
      answered.set(hash, { state: pinned, html });
      if (answered.size > MAX_ANSWERS) answered.delete(answered.keys().next().value);
      document.title = `${lorif.lineOf(pinned)} · ${title}`;
      noteGeneration(pinned.generation);
      listRecent();
    });
  }

  function showAddress() {
    const state = lorif.fromHash(location.hash);
    if (state === null) {
      if (location.hash === "") lorif.beginAgain();
      return;
    }
    const earlier = answered.get(location.hash);
    if (earlier === undefined) {
      if (lorif.needsToken()) lorif.fillForm(state);
      else ask(state, "replaceState");
      return;
    }
    lorif.fillForm(state);
    document.title = `${lorif.lineOf(state)} · ${title}`;
    lorif.showAgain(earlier.html);
    noteGeneration(state.generation);
    listRecent();
  }

  function noteGeneration(generation) {
    const newer = document.getElementById("newer");
    newer.textContent = "";
    if (generation > shownGeneration) newer.textContent = `Answers now come from generation ${generation}; reload the page to see the facts about it.`;
    if (generation < shownGeneration) {
      const button = lorif.element("button", { type: "button", onclick: lorif.askNewest }, "Ask the newest");
      newer.append(`This answer is from generation ${generation}; the newest is ${shownGeneration}. `, button);
    }
  }

  function listRecent() {
    const others = [...answered].filter(([hash]) => hash !== location.hash).reverse();
    recent.hidden = others.length === 0;
    recent.querySelector("ol").replaceChildren(...others.map(([hash, { state }]) => {
      const link = lorif.element("a", { href: hash }, lorif.lineOf(state));
      const options = [state.where && `where ${state.where}`, state.normalise !== "none" && state.normalise,
        state.generation !== shownGeneration && `generation ${state.generation}`].filter(Boolean);
      return lorif.element("li", {}, link, options.length ? ` ${options.join(", ")}` : "");
    }));
  }

  history.scrollRestoration = "manual"; // an answer scrolls itself into the window
  lorif.askNewest = () => ask(lorif.readForm(), "pushState");
  lorif.submit = () => {
    // a link that waits for its first answer, perhaps for a token, keeps its generation
    const linked = answered.has(location.hash) ? null : lorif.fromHash(location.hash);
    const isLinked = linked !== null && lorif.toHash({ ...linked, generation: null }) === lorif.toHash(lorif.readForm());
    return isLinked ? ask(linked, "replaceState") : lorif.askNewest();
  };
  lorif.currentState = () => lorif.fromHash(location.hash);
  lorif.newQuestion = () => {
    history.pushState(null, "", location.pathname);
    lorif.beginAgain();
    document.title = title;
    listRecent();
  };
  window.addEventListener("popstate", showAddress);
  document.addEventListener("ready", showAddress);
})();
