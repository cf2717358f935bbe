// Lets the model answer the prompt; its words appear as it says them, and can then be edited.
(() => {
  const fields = document.getElementById("question").elements;
  const button = document.getElementById("generate");
  const progress = document.getElementById("progress");
  const MAX_NEW_TOKENS = 48; // two or three sentences
  const label = button.textContent;
  let running = null;

  async function generate() {
    if (fields.prompt.value.trim() === "") {
      lorif.showError("Write a prompt first; the model continues it.");
      fields.prompt.focus();
      return;
    }
    running = new AbortController();
    button.textContent = "Stop";
    fields.answer.value = "";
    lorif.setSpan(null);
    lorif.showError("");
    progress.textContent = "The model answers …";
    try {
      const response = await lorif.request("generations", {
        accept: "text/event-stream", body: { prompt: fields.prompt.value, max_new_tokens: MAX_NEW_TOKENS }, signal: running.signal,
      });
      await read(response.body.pipeThrough(new TextDecoderStream()).getReader());
      progress.textContent = fields.answer.value === "" ? "The model has nothing to add." : "This is what the model says. Edit it, or ask.";
    } catch (failure) {
      progress.textContent = failure.name === "AbortError" ? "Stopped." : "";
      if (failure.name !== "AbortError") lorif.showError(failure.message);
    } finally {
      running = null;
      button.textContent = label;
    }
  }

  // server-sent events, each with the whole text so far
  async function read(reader) {
    let unread = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (unread + value).split("\n\n");
      unread = events.pop();
      for (const event of events) step(event);
    }
  }

  function step(event) {
    const data = JSON.parse(event.slice(event.indexOf("data: ") + "data: ".length));
    if (event.startsWith("event: error")) throw new Error(data.error.message);
    fields.answer.value = data.text;
    fields.answer.scrollTop = fields.answer.scrollHeight;
  }

  lorif.isGenerating = () => running !== null;
  lorif.stopGenerating = () => running?.abort();
  button.addEventListener("click", () => {
    if (running === null) generate();
    else running.abort();
  });
})();
