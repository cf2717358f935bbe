// Filters the examples on the page, moves between them by keys, and colours a query's tokens for the example in focus.
"use strict";
(() => {
  const form = document.querySelector(".filters");
  const fields = form.elements;
  const keys = document.querySelector(".keys");
  const status = form.querySelector("[role=status]");
  const searchTexts = new WeakMap();
  const TYPING_MS = 120;
  const STATUS_MS = 150;
  const MAX_HIGHLIGHTS = 2000; // more would delay every key press on a long page
  let statusTimer = 0;
  let filterTimer = 0;

  const allHits = () => [...document.querySelectorAll(".hit")];
  const isVisible = (hit) => !hit.hidden && hit.closest("[hidden]") === null;
  const normalise = (text) => text.replace(/\s+/g, " ").trim().toLowerCase();
  const fullText = (hit) => hit.querySelector("details > .text") ?? hit.querySelector(".text");

  function searchText(hit) {
    if (!searchTexts.has(hit)) {
      searchTexts.set(hit, normalise(`${hit.querySelector(".id").textContent} ${fullText(hit)?.textContent ?? ""}`));
    }
    return searchTexts.get(hit);
  }

  function readFilter() {
    return {
      text: normalise(fields.text.value),
      side: fields.side.value,
      file: fields.file.value,
      share: Number(fields.share.value) || 0,
    };
  }

  const isActive = (filter) => filter.text !== "" || filter.side !== "" || filter.file !== "" || filter.share > 0;

  function matches(hit, filter) {
    const { side, file, share } = hit.dataset;
    return (
      (filter.side === "" || side === filter.side) &&
      (filter.file === "" || file === filter.file) &&
      Number(share) >= filter.share &&
      (filter.text === "" || searchText(hit).includes(filter.text))
    );
  }

  function applyFilter() {
    const filter = readFilter();
    const active = isActive(filter);
    const counts = { hits: 0, shownHits: 0, queries: 0, shownQueries: 0 };
    for (const query of document.querySelectorAll("section.query")) {
      let shownInQuery = 0;
      for (const side of query.querySelectorAll(".pro, .con")) {
        const hits = [...side.querySelectorAll(".hit")];
        for (const hit of hits) {
          hit.hidden = !matches(hit, filter);
          unfoldMatch(hit, hit.hidden ? "" : filter.text);
        }
        const shown = hits.filter((hit) => !hit.hidden).length;
        const noMatch = side.querySelector(".no-match");
        if (noMatch) noMatch.hidden = shown > 0;
        side.hidden = filter.side !== "" && !side.classList.contains(filter.side);
        counts.hits += hits.length;
        shownInQuery += shown;
      }
      query.querySelector(".sides").classList.toggle("single", filter.side !== "");
      query.hidden = active && shownInQuery === 0;
      const link = document.querySelector(`nav a[href="#${query.id}"]`);
      if (link) link.parentElement.hidden = query.hidden;
      counts.shownHits += shownInQuery;
      counts.queries += 1;
      counts.shownQueries += shownInQuery > 0 ? 1 : 0;
    }
    highlight(filter.text);
    updateStatus(active, counts);
  }

  // shows the full text of an example whose match is outside the excerpt, and folds it again later
  function unfoldMatch(hit, text) {
    const details = hit.querySelector("details");
    if (details === null) return;
    const isOutsideExcerpt = text !== "" && !normalise(details.querySelector("summary .text").textContent).includes(text);
    if (isOutsideExcerpt && !details.open) {
      details.open = true;
      details.dataset.unfolded = "";
    } else if (!isOutsideExcerpt && "unfolded" in details.dataset) {
      details.open = false;
      delete details.dataset.unfolded;
    }
  }

  function highlight(text) {
    if (!CSS.highlights) return;
    CSS.highlights.delete("searched");
    if (text === "") return;
    const ranges = [];
    for (const hit of allHits().filter((hit) => !hit.hidden)) {
      for (const element of hit.querySelectorAll(".text, .id")) addRanges(element, text, ranges);
      if (ranges.length > MAX_HIGHLIGHTS) break;
    }
    CSS.highlights.set("searched", new Highlight(...ranges));
  }

  function addRanges(element, text, ranges) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      const lower = node.data.toLowerCase();
      if (lower.length !== node.data.length) continue; // some letters are longer in lower case, which shifts offsets
      for (let start = lower.indexOf(text); start >= 0; start = lower.indexOf(text, start + text.length)) {
        const range = new Range();
        range.setStart(node, start);
        range.setEnd(node, start + text.length);
        ranges.push(range);
      }
    }
  }

  function updateStatus(active, counts) {
    const plural = (number, singular, many) => `${number.toLocaleString("en")} ${number === 1 ? singular : many}`;
    let message = plural(counts.hits, "example", "examples");
    if (active) message = `${counts.shownHits.toLocaleString("en")} of ${message} shown`;
    if (counts.queries > 1) {
      message += `, ${active ? `in ${counts.shownQueries} of ` : ""}${plural(counts.queries, "query", "queries")}`;
    }
    clearTimeout(statusTimer);
    statusTimer = setTimeout(() => { status.textContent = `${message}.`; }, STATUS_MS);
  }

  function clearFilter() {
    form.reset();
    applyFilter();
  }

  function listFiles() {
    const selected = fields.file.value;
    const files = [...new Set(allHits().map((hit) => hit.dataset.file))].sort();
    const prefix = files.length > 1 ? commonFolderLength(files) : files[0]?.lastIndexOf("/") + 1;
    fields.file.replaceChildren(fields.file.options[0], ...files.map((file) => new Option(file.slice(prefix), file)));
    fields.file.value = files.includes(selected) ? selected : "";
  }

  // length of the longest folder prefix that all files share
  function commonFolderLength(files) {
    let length = 0;
    while (length < files[0].length && files.every((file) => file[length] === files[0][length])) length += 1;
    return files[0].lastIndexOf("/", length) + 1;
  }

  function initialise() {
    const hasQueries = document.querySelector("section.query") !== null;
    form.hidden = keys.hidden = !hasQueries;
    listFiles();
    applyFilter();
  }

  function shadeFor(hit) {
    const query = hit.closest(".query");
    const tokens = [...query.querySelectorAll(".query-text .t")];
    if (tokens.length === 0) return;
    const shaded = query.querySelector(".shaded");
    shaded.dataset.initial ??= JSON.stringify([shaded.textContent, tokens.map((token) => token.className)]);
    const [label, classes] = JSON.parse(shaded.dataset.initial);
    const levels = hit.dataset.levels;
    tokens.forEach((token, i) => { token.className = levels ? `t t${levels[i]}` : classes[i]; });
    shaded.textContent = levels ? hit.querySelector(".id").textContent : label;
    showOverall(query, !levels);
  }

  function showOverall(query, isShown) {
    const overall = query.querySelector(".overall");
    if (overall) overall.hidden = !isShown;
  }

  function restoreShades(query) {
    const shaded = query.querySelector(".shaded");
    if (!shaded?.dataset.initial) return;
    const [label, classes] = JSON.parse(shaded.dataset.initial);
    [...query.querySelectorAll(".query-text .t")].forEach((token, i) => { token.className = classes[i]; });
    shaded.textContent = label;
    showOverall(query, true);
  }

  function moveFocus(step) {
    const visible = allHits().filter(isVisible);
    if (visible.length === 0) return;
    const current = visible.indexOf(document.activeElement.closest(".hit"));
    const next = current < 0 ? nearestHit(visible, step) : visible[current + step];
    next?.querySelector(".rank").focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  // the first example at or below the top of the window for a step forward, else the last one above it
  function nearestHit(visible, step) {
    const queries = [...document.querySelectorAll("section.query")];
    const query = queries.find((query) => query.getBoundingClientRect().bottom > 0);
    const below = visible.findIndex((hit) => query?.contains(hit) && hit.getBoundingClientRect().top >= 0);
    const first = below < 0 ? visible.length - 1 : below;
    return step > 0 ? visible[first] : visible[Math.max(0, first - 1)];
  }

  const isTextInput = (target) => target.closest("textarea, select, input:not([type=checkbox], [type=radio])") !== null;

  const keyActions = {
    "/": () => { fields.text.focus(); fields.text.select(); },
    j: () => moveFocus(1),
    k: () => moveFocus(-1),
    o: () => {
      const details = document.activeElement.closest(".hit")?.querySelector("details");
      if (details) details.open = !details.open;
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || form.hidden) return;
    const isTyping = isTextInput(event.target);
    if (event.key === "Escape" && isActive(readFilter()) && (form.contains(event.target) || !isTyping)) {
      event.preventDefault();
      clearFilter();
    } else if (keyActions[event.key] && !isTyping && keys.querySelector("input").checked) {
      event.preventDefault();
      keyActions[event.key]();
    }
  });

  document.addEventListener("focusin", (event) => {
    const hit = event.target.closest(".hit");
    for (const query of document.querySelectorAll(".query")) {
      if (!query.contains(event.target)) restoreShades(query);
    }
    if (hit) shadeFor(hit);
  });

  document.addEventListener("click", (event) => {
    const hit = event.target.closest(".hit");
    if (hit && !event.target.closest("a, summary") && String(getSelection()) === "") {
      hit.querySelector(".rank").focus({ preventScroll: true });
    }
  });

  // clears the filter if it hides the target of a link
  function revealLinkTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.closest("[hidden]")) {
      clearFilter();
      target.scrollIntoView();
    }
  }

  form.addEventListener("input", (event) => {
    clearTimeout(filterTimer);
    filterTimer = setTimeout(applyFilter, event.target === fields.text ? TYPING_MS : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(applyFilter));
  window.addEventListener("hashchange", revealLinkTarget);
  document.addEventListener("answered", initialise);
  initialise();
})();
