// The page of hpml serve: asks /readyz what is served, sends pictures or texts, shows the answer and where its time went.
"use strict";

const $ = (id) => document.getElementById(id);
let served = null;
let key = sessionStorage.getItem("hpml-key") || "";

// Every request: the key where one is needed; an error of the server is its one line.
async function ask(path, options = {}) {
  const headers = new Headers(options.headers || {});
  if (key) headers.set("X-API-Key", key);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the server cannot be reached");
  }
  if (response.status === 401) $("key").hidden = false;
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    const again = response.headers.get("Retry-After");
    throw new Error(`${said.error || "the server answered with an error"} (${response.status}${again ? `, try again in ${again} s` : ""})`);
  }
  return response;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function picture(path) {
  return URL.createObjectURL(await (await ask(path)).blob());
}

function failed(error) {
  $("result").hidden = false;
  $("error").hidden = false;
  $("error").textContent = error.message;
  $("answer").replaceChildren();
  $("timing").hidden = true;
  document.body.dataset.state = "error";
}

// One request at a time: what is asked later wins.
let turn = 0;
async function answered(work) {
  const mine = ++turn;
  document.body.dataset.state = "busy";
  try {
    const answer = await work();
    if (mine !== turn) return;
    $("result").hidden = false;
    $("error").hidden = true;
    show(answer);
    if (!answer.results) $("result").scrollIntoView({ block: "nearest" });
    document.body.dataset.state = "done";
  } catch (error) {
    if (mine === turn) failed(error);
  }
}

function rows(items) {
  return element("table", {}, ...items.map(({ label, share, colour, note }) => {
    const bar = element("div");
    bar.style.width = `${100 * share}%`;
    const name = element("td", {}, label);
    if (colour) {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = `rgb(${colour})`;
      name.prepend(swatch);
    }
    return element("tr", {}, name, element("td", { className: "share" }, bar),
      element("td", { className: "number" }, note || `${(100 * share).toFixed(1)} %`));
  }));
}

function show(answer) {
  const parts = [];
  if (answer.top) parts.push(rows(answer.top.map((one) => ({ label: one.label, share: one.probability }))));
  if (answer.classes) parts.push(rows(answer.classes));
  if ("visible" in answer) {
    parts.push(element("p", {}, answer.visible
      ? `at ${answer.x.toFixed(1)}, ${answer.y.toFixed(1)} of ${answer.width} x ${answer.height} pixels (${(100 * answer.probability).toFixed(1)} %)`
      : `not visible (${(100 * (1 - answer.probability)).toFixed(1)} %)`));
    if (answer.visible) mark(answer);
  }
  if (answer.mask_png) overlay(answer.mask_png);
  if (answer.embeddings) parts.push(element("p", {}, `an embedding of ${answer.embeddings[0].length} numbers`));
  $("answer").replaceChildren(...parts);
  timing(answer.timing_ms);
}

function timing(spent) {
  const stages = ["decode", "wait", "model"];
  const total = stages.reduce((sum, stage) => sum + spent[stage], 0) || 1;
  $("timing").hidden = false;
  $("bar").replaceChildren(...stages.map((stage) => {
    const part = element("div", { className: stage, title: `${stage} ${spent[stage].toFixed(1)} ms` });
    part.style.width = `${100 * spent[stage] / total}%`;
    return part;
  }));
  $("timing-words").replaceChildren(...stages.flatMap((stage) => [element("span", {}, element("i", { className: stage }), `${stage} ${spent[stage].toFixed(1)} ms`), " "]),
    `= ${total.toFixed(1)} ms in the server`);
}

// ---- pictures

let drawn = null;  // the picture on the canvas
async function draw(blob) {
  $("shown").hidden = true;
  try {
    drawn = await createImageBitmap(blob);
  } catch {
    return;  // the server says what is wrong with it
  }
  const canvas = $("canvas");
  canvas.width = drawn.width;
  canvas.height = drawn.height;
  canvas.style.imageRendering = drawn.width < 128 ? "pixelated" : "auto";
  canvas.style.minWidth = drawn.width < 320 ? "min(100%, 20rem)" : "";
  canvas.getContext("2d").drawImage(drawn, 0, 0);
  $("shown").hidden = false;
}

function mark({ x, y, width }) {
  const canvas = $("canvas"), pen = canvas.getContext("2d"), scale = canvas.width / width;
  for (const [colour, wide] of [["#000", 0.012], ["#ffe100", 0.006]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = wide * canvas.width;
    pen.beginPath();
    pen.arc(x * scale, y * scale, 0.025 * canvas.width, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function overlay(png) {
  const mask = new Image();
  mask.onload = () => {
    const canvas = $("canvas"), pen = canvas.getContext("2d");
    pen.globalAlpha = 0.5;
    pen.drawImage(mask, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = 1;
  };
  mask.src = `data:image/png;base64,${png}`;
}

function send(blob) {
  answered(async () => {
    await draw(blob);
    if (served.endpoints.includes("/v1/zero-shot")) {
      const form = new FormData();
      form.append("image", blob, "picture");
      form.append("labels", $("labels").value);
      return (await ask("/v1/zero-shot", { method: "POST", body: form })).json();
    }
    const type = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
    return (await ask("/v1/predict", { method: "POST", body: blob, headers: { "Content-Type": type } })).json();
  });
}

function postText(path, body) {
  return ask(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

async function find(text) {
  await answered(async () => {
    $("shown").hidden = true;
    const found = await (await postText("/v1/search", { text, k: 12 })).json();
    const frames = await Promise.all(found.results.map(async (one) => element("figure", {},
      element("img", { src: await picture(one.url), alt: one.name, loading: "lazy" }),
      element("figcaption", {}, `${one.score.toFixed(3)}  ${one.name}`))));
    $("find-results").replaceChildren(...frames);
    $("find-of").textContent = `the ${frames.length} nearest of ${found.of} frames`;
    return found;
  });
}

// ---- start

async function samples() {
  const texts = served.takes === "text", list = $("sample-list");
  list.classList.toggle("texts", texts);
  const count = Math.min(served.samples, texts ? 3 : 8);
  const made = await Promise.all(Array.from({ length: count }, async (_, i) => {
    const response = await ask(`/samples/${i}`);
    const truth = response.headers.get("X-Truth");
    if (texts) {
      const text = await response.text();
      return element("button", { type: "button", title: truth, onclick: () => { $("words-text").value = text; say(text); } },
        text.length > 160 ? `${text.slice(0, 160)} ...` : text);
    }
    const blob = await response.blob();
    return element("button", { type: "button", title: truth || `sample ${i}`, onclick: () => send(blob) },
      element("img", { src: URL.createObjectURL(blob), alt: truth || `sample ${i}` }));
  }));
  list.replaceChildren(...made);
  $("samples").hidden = false;
}

function say(text) {
  answered(async () => (await postText("/v1/predict", { text })).json());
}

async function start() {
  served = await (await ask("/readyz")).json();
  document.title = `${served.title}: hpml serve`;
  $("title").textContent = served.title;
  $("served").textContent = `${served.task}; ${served.engine}, ${served.precision}; ${served.weights}; ${served.data}; `
    + `deadline ${served.settings.deadline_ms} ms`;
  const has = (path) => served.endpoints.includes(path);
  $("words").hidden = served.takes !== "text";
  $("picture").hidden = served.takes === "text";
  $("labels-row").hidden = !has("/v1/zero-shot");
  $("find").hidden = !(has("/v1/search") && served.gallery);
  $("endpoints").replaceChildren(...[...served.endpoints.map((path) => `POST ${path}`), "GET /healthz", "GET /readyz", "GET /metrics",
    "GET /openapi.json"].map((line) => element("li", {}, line)));
  $("curl").textContent = served.takes === "text"
    ? `curl -H 'Content-Type: application/json' -d '{"text": "..."}' ${location.origin}/v1/predict`
    : `curl -H 'Content-Type: image/jpeg' --data-binary @picture.jpg ${location.origin}${served.endpoints[0]}`;
  document.body.dataset.state = "ready";
  await samples();
  document.body.dataset.samples = "ready";
}

$("file").addEventListener("change", (event) => { if (event.target.files[0]) send(event.target.files[0]); });
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) send(event.dataTransfer.files[0]);
  });
}
$("find-form").addEventListener("submit", (event) => { event.preventDefault(); find($("find-text").value); });
$("words-form").addEventListener("submit", (event) => { event.preventDefault(); say($("words-text").value); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key-value").value;
  sessionStorage.setItem("hpml-key", key);
  samples().then(() => { $("key").hidden = true; $("result").hidden = true; }).catch(failed);
});
start().catch(failed);
