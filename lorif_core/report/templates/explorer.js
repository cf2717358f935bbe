// Folds the form after an answer, acts on keys, and starts the page; the last script, since it uses the others.
(() => {
  const form = document.getElementById("question");
  const folded = document.getElementById("folded");
  const edit = document.getElementById("edit");
  const hasAnswer = () => document.querySelector("#answer-container .query") !== null;

  lorif.fold = () => {
    edit.querySelector(".line").textContent = lorif.lineOf(lorif.readForm());
    form.hidden = true;
    folded.hidden = false;
    edit.setAttribute("aria-expanded", "false");
  };
  lorif.unfold = () => {
    form.hidden = false;
    folded.hidden = !hasAnswer();
    edit.setAttribute("aria-expanded", "true");
  };

  function editQuestion() {
    if (!form.hidden) {
      lorif.fold();
      edit.focus();
      return;
    }
    lorif.unfold();
    form.scrollIntoView({ block: "nearest" });
    form.elements.answer.focus();
  }

  // Esc ends what was begun last: a menu, a request, a look at a span, an edit
  function escape() {
    const menu = document.querySelector(".menu[open]");
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    } else if (lorif.isBusy()) {
      lorif.cancel();
    } else if (lorif.isGenerating()) {
      lorif.stopGenerating();
    } else if (lorif.clearPair()) {
      document.activeElement.blur();
    } else if (!form.hidden && hasAnswer()) {
      lorif.fillForm(lorif.currentState() ?? lorif.readForm());
      lorif.fold();
      edit.focus();
    } else {
      return false;
    }
    return true;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    lorif.submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  edit.addEventListener("click", editQuestion);
  document.getElementById("new").addEventListener("click", () => lorif.newQuestion());
  document.getElementById("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    lorif.newQuestion();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.querySelector(".find").contains(event.target) && lorif.isFiltered()) return;
    if (escape()) event.preventDefault();
  }, { capture: true });
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    // the address has the question, so a link within the page must not replace it
    const link = event.target.closest("a[href^='#']");
    const target = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!target) return;
    event.preventDefault();
    (target.matches(".hit") ? target.querySelector(".rank") : target).focus();
    target.scrollIntoView({ block: "nearest" });
  });
  document.dispatchEvent(new Event("ready"));
})();
