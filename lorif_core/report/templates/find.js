// Filters the examples on the page and highlights the text that was looked for.
(() => {
  const box = document.querySelector(".find");
  const form = box.querySelector(".filters");
  const fields = form.elements;
  const status = form.querySelector("[role=status]");
  const searchTexts = new WeakMap();
  const TYPING_MS = 120;
  const STATUS_MS = 150;
  const MAX_HIGHLIGHTS = 2000; // more would delay every key press on a long page
  let statusTimer = 0;
  let filterTimer = 0;

  const normalise = (text) => text.replace(/\s+/g, " ").trim().toLowerCase();
  const fullText = (hit) => hit.querySelector(".full > .text") ?? hit.querySelector(".text");

  function searchText(hit) {
    if (!searchTexts.has(hit)) searchTexts.set(hit, normalise(`${lorif.hitId(hit)} ${fullText(hit)?.textContent ?? ""}`));
    return searchTexts.get(hit);
  }

  const readFilter = () => ({
    text: normalise(fields.text.value),
    side: fields.side.value,
    file: fields.file.value,
    share: Number(fields.share.value) || 0,
  });
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
      const shown = applyToQuery(query, filter, active, counts);
      query.querySelector(".sides").classList.toggle("single", filter.side !== "");
      query.hidden = active && shown === 0;
      if (filter.side !== "") lorif.selectTab(query, filter.side);
      counts.shownHits += shown;
      counts.queries += 1;
      counts.shownQueries += shown > 0 ? 1 : 0;
    }
    highlight(filter.text);
    updateStatus(active, counts);
  }

  function applyToQuery(query, filter, active, counts) {
    let shownInQuery = 0;
    for (const side of query.querySelectorAll(".pro, .con")) {
      const hits = [...side.querySelectorAll(".hit")];
      for (const hit of hits) {
        hit.hidden = !matches(hit, filter);
        unfold(hit.querySelector(".full"), !hit.hidden && isMatchFolded(hit, filter.text));
      }
      const shown = hits.filter((hit) => !hit.hidden);
      unfold(side.querySelector(".rest"), active && shown.some((hit) => hit.closest(".rest")));
      const noMatch = side.querySelector(".no-match");
      if (noMatch) noMatch.hidden = shown.length > 0;
      side.hidden = filter.side !== "" && !side.classList.contains(filter.side);
      counts.hits += hits.length;
      shownInQuery += shown.length;
    }
    return shownInQuery;
  }

  const isMatchFolded = (hit, text) => text !== "" && hit.querySelector(".full") !== null
    && !normalise(hit.querySelector(".excerpt").textContent).includes(text);

  // opens what hides a match, and folds it again later
  function unfold(details, isNeeded) {
    if (details === null) return;
    if (isNeeded && !details.open) {
      details.open = true;
      details.dataset.unfolded = "";
    } else if (!isNeeded && "unfolded" in details.dataset) {
      details.open = false;
      delete details.dataset.unfolded;
    }
  }

  function highlight(text) {
    if (!CSS.highlights) return;
    CSS.highlights.delete("searched");
    if (text === "") return;
    const ranges = [];
    for (const hit of lorif.allHits().filter((hit) => !hit.hidden)) {
      for (const element of hit.querySelectorAll(".text, .id")) addRanges(element, text, ranges);
      if (ranges.length > MAX_HIGHLIGHTS) break;
    }
    CSS.highlights.set("searched", new Highlight(...ranges));
  }

  function addRanges(element, text, ranges) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const nodes = [];
    let joined = "";
    while (walker.nextNode()) {
      nodes.push([joined.length, walker.currentNode]);
      joined += walker.currentNode.data;
    }
    const lower = joined.toLowerCase();
    if (lower.length !== joined.length) return; // some letters are longer in lower case, which shifts offsets
    const place = (offset) => {
      const [start, node] = nodes.findLast(([first]) => first <= offset);
      return [node, Math.min(offset - start, node.data.length)];
    };
    for (let start = lower.indexOf(text); start >= 0; start = lower.indexOf(text, start + text.length)) {
      const range = new Range();
      range.setStart(...place(start));
      range.setEnd(...place(start + text.length));
      ranges.push(range);
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

  function listFiles() {
    const selected = fields.file.value;
    const files = [...new Set(lorif.allHits().map((hit) => hit.dataset.file))].sort();
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
    box.hidden = document.querySelector("section.query") === null;
    listFiles();
    applyFilter();
  }

  lorif.isFiltered = () => isActive(readFilter());
  lorif.clearFilter = () => {
    form.reset();
    applyFilter();
  };
  lorif.focusFilter = () => {
    box.open = true;
    fields.text.focus();
    fields.text.select();
  };

  form.addEventListener("input", (event) => {
    clearTimeout(filterTimer);
    filterTimer = setTimeout(applyFilter, event.target === fields.text ? TYPING_MS : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(applyFilter));
  document.addEventListener("answered", initialise);
  initialise();
})();
