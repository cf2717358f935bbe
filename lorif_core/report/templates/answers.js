// Filters the answers on the page, moves between examples by keys, and shades a query by the example in focus.
"use strict";
(() => {
  const form = document.querySelector(".filters");
  const fields = form.elements;
  const keys = document.querySelector(".keys");
  const status = form.querySelector("[role=status]");
  const words = new WeakMap();
  const TYPING_MS = 120;
  const HIGHLIGHTED = 2000; // more would slow down every key on a long page
  let announcing = 0;
  let typed = 0;

  const hits = () => [...document.querySelectorAll(".hit")];
  const seen = (hit) => !hit.hidden && hit.closest("[hidden]") === null;
  const plain = (text) => text.replace(/\s+/g, " ").trim().toLowerCase();
  const wholeText = (hit) => hit.querySelector("details > .text") ?? hit.querySelector(".text");

  function wordsOf(hit) {
    if (!words.has(hit)) {
      words.set(hit, plain(`${hit.querySelector(".id").textContent} ${wholeText(hit)?.textContent ?? ""}`));
    }
    return words.get(hit);
  }

  function wanted() {
    return {
      text: plain(fields.text.value),
      side: fields.side.value,
      file: fields.file.value,
      share: Number(fields.share.value) || 0,
    };
  }

  const isActive = (want) => want.text !== "" || want.side !== "" || want.file !== "" || want.share > 0;

  function passes(hit, want) {
    const { side, file, share } = hit.dataset;
    return (
      (want.side === "" || side === want.side) &&
      (want.file === "" || file === want.file) &&
      Number(share) >= want.share &&
      (want.text === "" || wordsOf(hit).includes(want.text))
    );
  }

  function apply() {
    const want = wanted();
    const active = isActive(want);
    const counts = { hits: 0, shown: 0, queries: 0, answered: 0 };
    for (const query of document.querySelectorAll("section.query")) {
      let shownHere = 0;
      for (const side of query.querySelectorAll(".pro, .con")) {
        const all = [...side.querySelectorAll(".hit")];
        for (const hit of all) {
          hit.hidden = !passes(hit, want);
          unfold(hit, hit.hidden ? "" : want.text);
        }
        const shown = all.filter((hit) => !hit.hidden).length;
        const none = side.querySelector(".filtered");
        if (none) none.hidden = shown > 0;
        side.hidden = want.side !== "" && !side.classList.contains(want.side);
        counts.hits += all.length;
        shownHere += shown;
      }
      query.querySelector(".sides").classList.toggle("single", want.side !== "");
      query.hidden = active && shownHere === 0;
      const listed = document.querySelector(`nav a[href="#${query.id}"]`);
      if (listed) listed.parentElement.hidden = query.hidden;
      counts.shown += shownHere;
      counts.queries += 1;
      counts.answered += shownHere > 0 ? 1 : 0;
    }
    highlight(want.text);
    tell(active, counts);
  }

  // an example whose match lies in the folded part of its text is unfolded, and folded again later
  function unfold(hit, text) {
    const details = hit.querySelector("details");
    if (details === null) return;
    const inside = text !== "" && !plain(details.querySelector("summary .text").textContent).includes(text);
    if (inside && !details.open) {
      details.open = true;
      details.dataset.unfolded = "";
    } else if (!inside && "unfolded" in details.dataset) {
      details.open = false;
      delete details.dataset.unfolded;
    }
  }

  function highlight(text) {
    if (!CSS.highlights) return;
    CSS.highlights.delete("searched");
    if (text === "") return;
    const ranges = [];
    for (const hit of hits().filter((one) => !one.hidden)) {
      for (const part of hit.querySelectorAll(".text, .id")) rangesIn(part, text, ranges);
      if (ranges.length > HIGHLIGHTED) break;
    }
    CSS.highlights.set("searched", new Highlight(...ranges));
  }

  function rangesIn(part, text, ranges) {
    const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const lower = node.data.toLowerCase();
      if (lower.length !== node.data.length) continue; // of some letters the lower case is longer
      for (let at = lower.indexOf(text); at >= 0; at = lower.indexOf(text, at + text.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, at + text.length);
        ranges.push(range);
      }
    }
  }

  function tell(active, counts) {
    const some = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
    let told = some(counts.hits, "example", "examples");
    if (active) told = `${counts.shown.toLocaleString("en")} of ${told} shown`;
    if (counts.queries > 1) told += `, ${active ? `in ${counts.answered} of ` : ""}${some(counts.queries, "query", "queries")}`;
    clearTimeout(announcing);
    announcing = setTimeout(() => { status.textContent = `${told}.`; }, 150);
  }

  function clear() {
    form.reset();
    apply();
  }

  function listFiles() {
    const chosen = fields.file.value;
    const files = [...new Set(hits().map((hit) => hit.dataset.file))].sort();
    const shared = files.length > 1 ? sharedFolder(files) : files[0]?.lastIndexOf("/") + 1;
    fields.file.replaceChildren(fields.file.options[0], ...files.map((file) => new Option(file.slice(shared), file)));
    fields.file.value = files.includes(chosen) ? chosen : "";
  }

  // how many characters of the folders all files are in
  function sharedFolder(files) {
    let length = 0;
    while (length < files[0].length && files.every((file) => file[length] === files[0][length])) length += 1;
    return files[0].lastIndexOf("/", length) + 1;
  }

  function begin() {
    const any = document.querySelector("section.query") !== null;
    form.hidden = keys.hidden = !any;
    listFiles();
    apply();
  }

  function shade(hit) {
    const query = hit.closest(".query");
    const tokens = [...query.querySelectorAll(".ask .t")];
    if (tokens.length === 0) return;
    const shaded = query.querySelector(".shaded");
    shaded.dataset.first ??= JSON.stringify([shaded.textContent, tokens.map((token) => token.className)]);
    const [told, classes] = JSON.parse(shaded.dataset.first);
    const levels = hit.dataset.levels;
    tokens.forEach((token, place) => { token.className = levels ? `t t${levels[place]}` : classes[place]; });
    shaded.textContent = levels ? hit.querySelector(".id").textContent : told;
    tellOverall(query, !levels);
  }

  function tellOverall(query, is) {
    const overall = query.querySelector(".overall");
    if (overall) overall.hidden = !is;
  }

  function unshade(query) {
    const shaded = query.querySelector(".shaded");
    if (!shaded?.dataset.first) return;
    const [told, classes] = JSON.parse(shaded.dataset.first);
    [...query.querySelectorAll(".ask .t")].forEach((token, place) => { token.className = classes[place]; });
    shaded.textContent = told;
    tellOverall(query, true);
  }

  function move(step) {
    const shown = hits().filter(seen);
    if (shown.length === 0) return;
    const current = shown.indexOf(document.activeElement.closest(".hit"));
    const next = current < 0 ? nearest(shown, step) : shown[current + step];
    next?.querySelector(".rank").focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  // where to begin: the first example at or below the top of the window, or the last above it
  function nearest(shown, step) {
    const query = [...document.querySelectorAll("section.query")].find((one) => one.getBoundingClientRect().bottom > 0);
    const below = shown.findIndex((hit) => query?.contains(hit) && hit.getBoundingClientRect().top >= 0);
    const first = below < 0 ? shown.length - 1 : below;
    return step > 0 ? shown[first] : shown[Math.max(0, first - 1)];
  }

  const typing = (target) => target.closest("textarea, select, input:not([type=checkbox], [type=radio])") !== null;

  const letters = {
    "/": () => { fields.text.focus(); fields.text.select(); },
    j: () => move(1),
    k: () => move(-1),
    o: () => {
      const details = document.activeElement.closest(".hit")?.querySelector("details");
      if (details) details.open = !details.open;
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || form.hidden) return;
    if (event.key === "Escape" && isActive(wanted()) && (form.contains(event.target) || !typing(event.target))) {
      event.preventDefault();
      clear();
    } else if (letters[event.key] && !typing(event.target) && keys.querySelector("input").checked) {
      event.preventDefault();
      letters[event.key]();
    }
  });

  document.addEventListener("focusin", (event) => {
    const hit = event.target.closest(".hit");
    for (const query of document.querySelectorAll(".query")) {
      if (!query.contains(event.target)) unshade(query);
    }
    if (hit) shade(hit);
  });

  document.addEventListener("click", (event) => {
    const hit = event.target.closest(".hit");
    if (hit && !event.target.closest("a, summary") && String(getSelection()) === "") {
      hit.querySelector(".rank").focus({ preventScroll: true });
    }
  });

  // a link to something that the filter hides shows it
  function follow() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.closest("[hidden]")) {
      clear();
      target.scrollIntoView();
    }
  }

  form.addEventListener("input", (event) => {
    clearTimeout(typed);
    typed = setTimeout(apply, event.target === fields.text ? TYPING_MS : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  window.addEventListener("hashchange", follow);
  document.addEventListener("answered", begin);
  begin();
})();
