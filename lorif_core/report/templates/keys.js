// Moves between the examples by keys, and shows what a link points to.
(() => {
  const box = document.querySelector(".find");
  const letters = box.querySelector("[name=letters]");

  function moveFocus(step) {
    const visible = lorif.allHits().filter(lorif.isVisible);
    if (visible.length === 0) return;
    const current = visible.indexOf(document.activeElement.closest(".hit"));
    const next = current < 0 ? nearestHit(visible, step) : visible[current + step];
    next?.querySelector(".rank").focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  // the first example at or below the top of the window for a step forward, else the last one above it
  function nearestHit(visible, step) {
    const first = visible.findIndex((hit) => hit.getBoundingClientRect().bottom > 0);
    if (first < 0) return visible.at(-1);
    return step > 0 ? visible[first] : visible[Math.max(0, first - 1)];
  }

  const actions = {
    "/": () => lorif.focusFilter(),
    j: () => moveFocus(1),
    k: () => moveFocus(-1),
    o: () => {
      const details = document.activeElement.closest(".hit")?.querySelector(".full");
      if (details) details.open = !details.open;
    },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || box.hidden) return;
    const isTyping = lorif.isTextInput(event.target);
    if (event.key === "Escape" && lorif.isFiltered() && (box.contains(event.target) || !isTyping)) {
      event.preventDefault();
      lorif.clearFilter();
    } else if (actions[event.key] && !isTyping && letters.checked && document.querySelector("dialog[open]") === null) {
      event.preventDefault();
      actions[event.key]();
    }
  });

  // opens or unhides the target of a link
  function revealLinkTarget() {
    const target = document.getElementById(location.hash.slice(1));
    if (target === null) return;
    if (target.closest("[hidden]") && lorif.isFiltered()) lorif.clearFilter();
    if (lorif.isVisible(target)) return;
    lorif.reveal(target);
    target.scrollIntoView();
  }

  window.addEventListener("hashchange", revealLinkTarget);
  revealLinkTarget();
})();
