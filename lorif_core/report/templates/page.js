// What the scripts of a page share. The scripts are joined into one; each adds its functions to this object.
"use strict";
const lorif = {
  allHits: () => [...document.querySelectorAll(".hit")],
  isVisible: (element) => element.checkVisibility(),
  isTextInput: (target) => target.closest("textarea, select, input:not([type=checkbox], [type=radio])") !== null,
  hitId: (hit) => hit.querySelector(".id").textContent,

  // an element with properties, attributes (a name with a dash), listeners ("onclick") and children
  element(tag, properties = {}, ...children) {
    const created = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) created.addEventListener(name.slice(2), value);
      else if (name in created) created[name] = value;
      else created.setAttribute(name, value);
    }
    created.append(...children);
    return created;
  },

  // shows one side of a narrow page
  selectTab(query, side) {
    query.querySelector(".sides").dataset.tab = side;
    for (const tab of query.querySelectorAll("[role=tab]")) {
      tab.setAttribute("aria-selected", String(tab.dataset.tab === side));
      tab.tabIndex = tab.dataset.tab === side ? 0 : -1;
    }
  },

  // opens whatever hides an example: a folded list, or the other side of a narrow page
  reveal(element) {
    for (let details = element.parentElement.closest("details"); details; details = details.parentElement.closest("details")) {
      details.open = true;
    }
    const hit = element.closest(".hit");
    if (hit) lorif.selectTab(hit.closest(".query"), hit.dataset.side);
  },
};

(() => {
  function initialise() {
    for (const query of document.querySelectorAll(".query")) {
      const tabs = query.querySelector(".tabs");
      if (tabs.hidden) lorif.selectTab(query, "pro");
      tabs.hidden = false;
      query.querySelector(".shared-words").hidden = query.querySelector(".w") === null;
    }
  }

  document.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) lorif.selectTab(tab.closest(".query"), tab.dataset.tab);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]");
    if (!tab || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tab.parentElement.querySelector(`[role=tab]:not([data-tab=${tab.dataset.tab}])`);
    lorif.selectTab(tab.closest(".query"), other.dataset.tab);
    other.focus();
  });
  document.addEventListener("change", (event) => {
    if (event.target.name !== "shared") return;
    event.target.closest(".query").classList.toggle("show-shared", event.target.checked);
  });
  document.addEventListener("answered", initialise);
  initialise();
})();
