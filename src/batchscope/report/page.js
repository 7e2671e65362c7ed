"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("charts");
  const views = new Map();
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const hidden = () => Array.from(document.querySelectorAll('.chip[aria-pressed="false"]'), (chip) => chip.dataset.row);

  let stop = data.slider?.asked;
  const follows = (spec) => spec?.params?.some((p) => p.name === "stop");

  function specification(figure) {
    if (!figure.switches) {
      const spec = data.specs[figure.name];
      if (!follows(spec)) return spec;
      return { ...spec, params: spec.params.map((p) => (p.name === "stop" ? { ...p, value: stop } : p)) };
    }
    const spec = data.specs[[figure.name, chosen("x"), chosen("y"), chosen("span")].join(".")];
    const params = spec.params.map((p) => (p.name === "hidden" ? { ...p, value: hidden() } : p));
    return { ...spec, params, datasets: { curves: data.curves } };
  }

  let turn = 0; // of two drawings of one chart, the later one stays
  async function draw(figure) {
    const place = document.getElementById(`chart-${figure.name}`);
    const mine = (place.dataset.turn = String(++turn));
    const theme = isDark() ? "dark" : "light";
    try {
      const made = document.createElement("div");
      place.style.minHeight = `${place.offsetHeight}px`; // so that the page does not jump
      place.replaceChildren(made);
      const result = await vegaEmbed(made, specification(figure), {
        mode: "vega-lite",
        renderer: "svg",
        actions: false,
        ast: true, // expressions are interpreted, since the page's policy forbids evaluating text as code
        config: { ...data.configs[theme], autosize: { type: "fit-x", contains: "padding" } },
        tooltip: { theme },
      });
      if (place.dataset.turn !== mine) return result.finalize();
      views.get(figure.name)?.finalize();
      views.set(figure.name, result);
      if (follows(data.specs[figure.name])) await result.view.signal("stop", stop).runAsync(); // moved while it was drawn
      place.style.minHeight = "";
      place.dataset.theme = theme;
      place.dataset.drawn = mine;
    } catch (error) {
      place.textContent = `This chart could not be drawn: ${error.message}`;
      place.classList.add("failed");
      console.error(error);
    }
  }
  const drawAll = () => Promise.all(data.figures.map(draw));
  const switched = data.figures.filter((figure) => figure.switches);

  const button = document.getElementById("theme");
  const label = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    drawAll();
  });
  system.addEventListener("change", () => {
    label();
    drawAll();
  });

  for (const input of document.querySelectorAll(".switches input")) {
    input.addEventListener("change", () => switched.forEach(draw));
  }
  for (const chip of document.querySelectorAll("button.chip")) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") === "false"));
      for (const figure of switched) views.get(figure.name)?.view.signal("hidden", hidden()).runAsync();
    });
  }

  const slider = document.getElementById("stop");
  if (slider) {
    const back = document.getElementById("asked");
    const move = () => {
      stop = slider.valueAsNumber;
      const [name, answer] = data.slider.stops[stop];
      slider.setAttribute("aria-valuetext", name);
      document.getElementById("stop-label").textContent = name;
      document.getElementById("stop-answer").textContent = answer;
      back.disabled = stop === data.slider.asked;
      for (const figure of data.figures) {
        if (follows(data.specs[figure.name])) views.get(figure.name)?.view.signal("stop", stop).runAsync();
      }
    };
    slider.addEventListener("input", move);
    back.addEventListener("click", () => {
      slider.value = data.slider.asked;
      move();
      slider.focus();
    });
    slider.hidden = slider.nextElementSibling.hidden = false;
  }

  for (const copier of document.querySelectorAll("[data-copy]")) {
    copier.hidden = false;
    copier.addEventListener("click", async () => {
      const listing = document.getElementById(copier.dataset.copy);
      try {
        await navigator.clipboard.writeText(listing.textContent);
        copier.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(listing); // where a page may not write there, a keystroke does
        copier.textContent = "Selected";
      }
      setTimeout(() => (copier.textContent = "Copy"), 4000);
    });
  }

  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  for (const saver of document.querySelectorAll("[data-save]")) {
    saver.addEventListener("click", async () => {
      const result = views.get(saver.dataset.save);
      if (result) save(await result.view.toSVG(), "image/svg+xml", `${saver.dataset.save}.svg`);
    });
  }
  const download = document.getElementById("download");
  async function recordText() {
    const { textContent, dataset } = document.getElementById("record");
    if (!dataset.packed) return textContent;
    const bytes = Uint8Array.from(atob(textContent), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream(dataset.packed))).text();
  }
  download.addEventListener("click", async () => {
    // The text itself: parsing it here would round whole numbers beyond 2^53.
    save((await recordText()) + "\n", "application/json", download.dataset.file);
  });

  label();
  drawAll();
})();
