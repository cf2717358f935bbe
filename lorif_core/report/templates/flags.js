// Buttons of an example, and the list of flagged examples, which `lorif remove --ids` takes.
(() => {
  const menu = document.getElementById("flags");
  const FLAGS = "lorif-flags";
  const flagged = new Set(JSON.parse(sessionStorage.getItem(FLAGS) ?? "[]"));

  function store() {
    sessionStorage.setItem(FLAGS, JSON.stringify([...flagged]));
    menu.hidden = flagged.size === 0;
    menu.querySelector("summary").textContent = `${flagged.size} flagged`;
    for (const button of document.querySelectorAll("[data-flag]")) drawFlag(button);
  }

  function drawFlag(button) {
    const isFlagged = flagged.has(lorif.hitId(button.closest(".hit")));
    button.setAttribute("aria-pressed", String(isFlagged));
    button.textContent = isFlagged ? "Flagged" : "Flag";
  }

  function toggle(id) {
    if (!flagged.delete(id)) flagged.add(id);
    store();
  }

  function addActions(hit) {
    const id = lorif.hitId(hit);
    const button = (text, onclick, more = {}) => lorif.element("button", { type: "button", onclick, ...more }, text);
    const actions = [
      button("Whole record", () => lorif.openPanel(id), { "aria-label": `Whole record of ${id}` }),
      button("Flag", () => toggle(id), { "data-flag": "", "aria-label": `Flag ${id}` }),
      button("Only this file", () => {
        lorif.addFilter(`uri = ${lorif.quoted(hit.dataset.file)}`);
        lorif.submit();
      }, { "aria-label": `Only the file of ${id}` }),
    ];
    hit.append(lorif.element("p", { className: "card-actions" }, ...actions));
  }

  document.getElementById("download-flags").addEventListener("click", () => {
    lorif.download(new Blob([...flagged].map((id) => `${id}\n`), { type: "text/plain" }), "ids.txt");
  });
  document.getElementById("clear-flags").addEventListener("click", () => {
    flagged.clear();
    store();
  });
  document.addEventListener("answered", () => {
    for (const hit of lorif.allHits()) addActions(hit);
    store();
  });
  store();
})();
