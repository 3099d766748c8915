"use strict";
(function () {
  // The heat map and the matrix of differences show one score at a time.
  document.querySelectorAll(".choice input").forEach(function (choice) {
    choice.addEventListener("change", function () {
      document.querySelectorAll("." + choice.name).forEach(function (table) {
        table.hidden = table.dataset.score !== choice.value;
      });
    });
  });

  // A link into a folded section opens it; paper shows all sections.
  const folds = document.querySelectorAll("section > details");
  function unfold(name) {
    const section = document.getElementById(name);
    const fold = section && section.querySelector(":scope > details");
    if (fold) fold.open = true;
    if (section) section.scrollIntoView();
  }
  if (location.hash) unfold(location.hash.slice(1));
  window.addEventListener("hashchange", () => unfold(location.hash.slice(1)));
  let folded = [];
  window.addEventListener("beforeprint", function () {
    folded = Array.from(folds).filter((fold) => !fold.open);
    folded.forEach((fold) => { fold.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((fold) => { fold.open = false; }));

  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data) return;
  const AT_ONCE = 50;
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const place = Object.fromEntries(data.scores.map((name, i) => [name, i]));
  const fields = ["q", "method", "filter", "relation"];
  let shown = [];
  let texts = null;

  // Texts of cases are strangers': they enter the page as text alone, never as markup.
  function make(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function score(result, name) {
    const found = result.scores && name in place ? result.scores[place[name]] : null;
    return found === undefined ? null : found;
  }

  const tests = {
    ES0: (result) => score(result, "ES") === 0,
    PS1: (result) => score(result, "PS") !== null && score(result, "PS") < 1,
    NS1: (result) => score(result, "NS") !== null && score(result, "NS") < 1,
    failed: (result) => result.failure !== undefined,
  };

  function searchable(i) {
    const one = data.cases[i];
    const written = data.results.map((row) => Object.values(row[i].generated || {}).join(" "));
    const own = [one.id, (one.prompt || "").split("{}").join(one.subject), one.new, one.true];
    return own.concat(one.paraphrases || [], written).join("\n").toLowerCase();
  }

  function matches(i, wanted) {
    if (wanted.relation !== "" && String(data.cases[i].relation) !== wanted.relation) return false;
    const test = tests[wanted.filter];
    if (test) {
      const rows = data.methods.map((_, m) => m).filter((m) =>
        wanted.method === "" ? data.methods[m] !== data.base : data.methods[m] === wanted.method);
      if (!rows.some((m) => test(data.results[m][i]))) return false;
    }
    if (wanted.q === "") return true;
    texts = texts || data.cases.map((_, j) => searchable(j));
    return texts[i].includes(wanted.q.toLowerCase());
  }

  function shade(value) {
    const stops = [[247, 251, 255], [107, 174, 214], [8, 48, 107]];
    const at = Math.min(Math.max(value, 0), 1) * 2;
    const low = at < 1 ? 0 : 1;
    const mixed = stops[low].map((a, i) => Math.round(a + (at - low) * (stops[low + 1][i] - a)));
    return "rgb(" + mixed.join(",") + ")";
  }

  function boxes(result) {
    const made = make("span", "boxes");
    if (result.failure !== undefined) {
      made.append(make("span", "failed", "failed"));
      made.title = result.failure;
      return made;
    }
    const told = [];
    for (const name of ["ES", "PS", "NS"]) {
      const value = score(result, name);
      const box = make("i", value === null ? "none" : "");
      if (value !== null) box.style.background = shade(value);
      told.push(name + " " + written(name, value));
      made.append(box);
    }
    made.title = told.join(", ");
    return made;
  }

  function written(name, value) {
    const place = data.scores.indexOf(name);
    if (place < 0 || value === null || value === undefined) return "–";
    const unit = 10 ** data.digits[place];
    return (Math.round(unit * data.scales[place] * value) / unit + 0).toFixed(data.digits[place]);
  }

  function factOf(one) {
    const fact = make("span", "fact");
    if (one.prompt === undefined) return fact;
    const around = one.prompt.split("{}");
    fact.append(around[0], make("b", "", one.subject), around.slice(1).join("{}"), " → ");
    fact.append(make("b", "", one.new));
    if (one.true !== null) fact.append(make("span", "was", "  (was " + one.true + ")"));
    return fact;
  }

  function cardOf(i) {
    const one = data.cases[i];
    const card = make("details", "case");
    card.dataset.id = one.id;
    const line = make("summary", "line");
    line.append(make("span", "id", one.id), factOf(one));
    data.results.forEach((row) => line.append(boxes(row[i])));
    card.append(line);
    card.addEventListener("toggle", function () {
      if (card.open && card.children.length === 1) card.append(insideOf(i));
    });
    return card;
  }

  function promptsOf(one) {
    const made = make("div", "prompts");
    const kinds = { Paraphrases: one.paraphrases, "Neighbours, whose answer should stay": one.neighbours };
    for (const [title, prompts] of Object.entries(kinds)) {
      if (!prompts || !prompts.length) continue;
      const part = make("div");
      const items = make("ul");
      prompts.forEach((prompt) => items.append(make("li", "", prompt)));
      part.append(make("h4", "", title), items);
      made.append(part);
    }
    return made;
  }

  function tableOf(heads, className) {
    const table = make("table", className);
    const head = make("tr");
    heads.forEach((text) => head.append(make("th", "", text)));
    table.append(make("thead"), make("tbody"));
    table.tHead.append(head);
    return table;
  }

  function rowOf(m) {
    const row = make("tr", data.methods[m] === form.elements.method.value ? "chosen" : "");
    row.dataset.method = data.methods[m];
    row.append(make("th", "", data.methods[m]));
    return row;
  }

  function scoresOf(i) {
    const rows = data.results.map((row) => row[i]);
    const timed = rows.some((result) => result.seconds !== undefined);
    const sized = rows.some((result) => result.bytes !== undefined);
    const heads = ["method"].concat(data.labels, timed ? ["seconds"] : [], sized ? ["bytes"] : []);
    const table = tableOf(heads, "scores");
    rows.forEach(function (result, m) {
      const row = rowOf(m);
      if (result.failure !== undefined) {
        const why = make("td", "why", "failed: " + result.failure);
        why.colSpan = heads.length - 1;
        row.append(why);
      } else {
        data.scores.forEach((name) => row.append(make("td", "", written(name, score(result, name)))));
        if (timed) row.append(make("td", "", result.seconds === undefined ? "–" : result.seconds.toFixed(2)));
        if (sized) row.append(make("td", "", result.bytes === undefined ? "–" : String(result.bytes)));
      }
      table.tBodies[0].append(row);
    });
    return table;
  }

  function writtenOf(i) {
    const before = data.methods.indexOf(data.base);
    const told = (m) => (m >= 0 && data.results[m][i].generated) || {};
    const names = new Set(data.methods.flatMap((_, m) => Object.keys(told(m))));
    if (!names.size) return null;
    const part = make("div");
    part.append(make("h4", "", "Written by the model, before and after the edit"));
    const table = tableOf(["prompt", "before (" + data.base + ")", "method", "after"], "written");
    for (const name of names) {
      const after = data.methods.map((_, m) => m).filter((m) => m !== before && name in told(m));
      after.forEach(function (m, k) {
        const row = rowOf(m);
        if (k === 0) {
          const first = make("td", "", name);
          const was = make("td", "text", name in told(before) ? told(before)[name] : "–");
          first.rowSpan = was.rowSpan = after.length;
          row.prepend(first, was);
        }
        row.append(make("td", "text", told(m)[name]));
        table.tBodies[0].append(row);
      });
    }
    part.append(table);
    return part;
  }

  function insideOf(i) {
    const inside = make("div", "inside");
    inside.append(promptsOf(data.cases[i]), scoresOf(i));
    const written = writtenOf(i);
    if (written) inside.append(written);
    return inside;
  }

  function showMore() {
    const start = list.children.length;
    shown.slice(start, start + AT_ONCE).forEach((i) => list.append(cardOf(i)));
    const left = shown.length - list.children.length;
    more.hidden = left <= 0;
    more.textContent = "Show " + Math.min(left, AT_ONCE) + " more of " + left;
  }

  function wantedNow() {
    return Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
  }

  function render(only) {
    const wanted = wantedNow();
    shown = data.cases.map((_, i) => i).filter((i) =>
      matches(i, wanted) && (!only || data.cases[i].id === only));
    list.replaceChildren();
    document.getElementById("found").textContent = shown.length + " of " + data.cases.length + " cases";
    showMore();
  }

  function writeAddress() {
    const told = Object.entries(wantedNow()).filter((pair) => pair[1] !== "");
    const hash = new URLSearchParams(told).toString();
    history.replaceState(null, "", "#" + (hash || "cases"));
  }

  function readAddress() {
    const told = new URLSearchParams(location.hash.slice(1));
    const asked = fields.some((name) => told.has(name)) || told.has("case");
    if (asked) fields.forEach(function (name) {
      form.elements[name].value = told.get(name) || "";
      if (form.elements[name].selectedIndex === -1) form.elements[name].value = "";
    });
    render(told.get("case"));
    if (!asked) return;
    unfold("cases");
    if (told.has("case") && list.firstChild) list.firstChild.open = true;
  }

  function option(select, value, text) {
    const made = make("option", "", text);
    made.value = value;
    select.append(made);
  }

  data.methods.forEach((method) => option(form.elements.method, method, method));
  data.relations.forEach((name, i) => option(form.elements.relation, String(i), name));
  document.getElementById("kinds-choice").hidden = data.relations.length < 2;
  const heads = document.getElementById("heads");
  heads.append(make("span", "", "case"), make("span"));
  data.methods.forEach(function (method) {
    const head = make("span", "", method);
    head.append(make("small", "", "ES PS NS"));
    heads.append(head);
  });
  document.getElementById("browser").style.setProperty("--methods", data.methods.length);

  let waiting = 0;
  form.addEventListener("input", function () {
    clearTimeout(waiting);
    waiting = setTimeout(function () { render(); writeAddress(); }, 120);
  });
  form.addEventListener("reset", () => setTimeout(function () { render(); writeAddress(); }, 0));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  window.addEventListener("hashchange", readAddress);
  readAddress();
})();
