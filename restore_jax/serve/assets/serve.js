"use strict";

const byId = (id) => document.getElementById(id);
const limits = document.querySelector("main").dataset;
const suffixes = limits.suffixes.split(" ");
const settings = byId("settings");

// Photographs, oldest first: file and name; state "waiting", "restoring", "done" or "failed";
// the settings they were last sent with; of a result its address, notes and extras.
const photographs = [];
let selected = null;
let selectedByUser = false;

// While one is restored, the next is uploaded.
const MAX_SENT = 2;
let sent = 0;

function wanted() {
  const form = new FormData(settings);
  const names = ["model", "strength", "tile", "trust"];
  return new URLSearchParams(names.map((name) => [name, form.get(name) ?? ""]));
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function problem(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

// Sends a photograph; where the queue is full, again after as long as the server asks for.
async function send(photograph) {
  const query = new URLSearchParams(photograph.settings);
  query.set("name", photograph.name);
  query.set("progress", photograph.token);
  for (;;) {
    const response = await fetch(`/photographs?${query}`, {
      method: "POST", body: photograph.file,
    });
    const wait = response.status === 503 && Number(response.headers.get("Retry-After"));
    if (!wait) {
      if (!response.ok) throw new Error(await problem(response));
      return response.json();
    }
    await pause(wait);
  }
}

async function restore(photograph) {
  const before = photograph.settings;
  photograph.state = "restoring";
  photograph.token = Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
  photograph.share = 0;
  show(photograph);
  watch(photograph);
  try {
    if (photograph.file.size > Number(limits.maxBytes)) {
      throw new Error(`the file has more than ${Math.floor(limits.maxBytes / 1e6)} MB`);
    }
    Object.assign(photograph, await send(photograph), { state: "done" });
  } catch (error) {
    const lost = error instanceof TypeError;
    photograph.state = "failed";
    photograph.error = lost ? "the server or the file cannot be reached" : error.message;
  }
  // Cleared, or sent again with other settings, in the meantime.
  if (!photographs.includes(photograph) || photograph.settings !== before) forget(photograph);
}

// Shows how much is restored, every second while it is.
async function watch(photograph) {
  const { token } = photograph;
  for (;;) {
    await pause(1);
    if (photograph.state !== "restoring" || photograph.token !== token) return;
    try {
      const response = await fetch(`/progress/${token}`);
      if (!response.ok) continue;  // not yet received, or just done
      photograph.share = (await response.json()).share;
    } catch {
      return;  // the request itself will say so
    }
    if (photograph.state === "restoring" && photograph.token === token) show(photograph);
  }
}

function forget(photograph) {
  if (photograph.address) fetch(photograph.address, { method: "DELETE" }).catch(() => {});
  photograph.address = null;
}

async function work() {
  while (sent < MAX_SENT) {
    const next = photographs.find((one) => one.state === "waiting");
    if (!next) return;
    sent += 1;
    restore(next).finally(() => {
      sent -= 1;
      if (photographs.includes(next)) {
        show(next);
        const better = !selectedByUser && selected?.state === "failed" && next.state === "done";
        if (!selected || selected === next || better) select(next);
      }
      summarise();
      work();
    });
  }
}

function add(files) {
  for (const { file, name } of files) {
    const photograph = { file, name, state: "waiting", settings: wanted().toString() };
    photograph.item = document.createElement("li");
    photograph.button = document.createElement("button");
    photograph.button.type = "button";
    photograph.button.addEventListener("click", () => {
      selectedByUser = true;
      select(photograph);
    });
    for (const part of ["name", "state", "marks"]) {
      const span = document.createElement("span");
      span.className = part;
      photograph.button.append(span);
    }
    photograph.item.append(photograph.button);
    byId("list").append(photograph.item);
    photographs.push(photograph);
    show(photograph);
  }
  summarise();
  work();
}

function show(photograph) {
  const [name, state, marks] = photograph.button.children;
  name.textContent = name.title = photograph.name;
  const percent = Math.floor(100 * photograph.share);
  const texts = { restoring: percent ? `restoring… ${percent} %` : "restoring…", done: "restored" };
  state.textContent = texts[photograph.state] ?? photograph.state;
  const count = photograph.state === "done" ? photograph.notes.length : 0;
  marks.textContent = count ? `${count} note${count === 1 ? "" : "s"}` : "";
  marks.hidden = !count;
  photograph.item.className = photograph.state;
  photograph.button.setAttribute("aria-current", String(photograph === selected));
}

function summarise() {
  const count = (state) => photographs.filter((one) => one.state === state).length;
  const failed = count("failed");
  byId("status").textContent =
    `${count("done")} of ${photographs.length} restored${failed ? `; ${failed} failed` : ""}`;
  byId("work").hidden = !photographs.length;
  byId("drop").classList.toggle("small", photographs.length > 0);
  const busy = count("waiting") + count("restoring") > 0;
  byId("save-all").disabled = busy || !count("done");
  document.querySelector("[name=addresses]").value =
    photographs.filter((one) => one.state === "done").map((one) => one.address).join(" ");
  const current = wanted().toString();
  settings.querySelector("button").hidden =
    busy || photographs.every((one) => one.settings === current);
}

// The view of one photograph.

const stage = byId("stage");
const divider = byId("divider");
const pictures = [byId("before"), byId("after")];
const pan = { x: 0, y: 0 };

function select(photograph) {
  const previous = selected;
  selected = photograph;
  if (previous) show(previous);
  byId("title").textContent = photograph ? photograph.name : "";
  byId("viewer").hidden = true;
  tell(null);
  byId("notes").hidden = true;
  if (!photograph) return;
  show(photograph);
  if (photograph.state !== "done") {
    tell(photograph.state === "failed" ? photograph.error : "not restored yet");
    return;
  }
  byId("notes").replaceChildren(...photograph.notes.map((note) => {
    const item = document.createElement("li");
    item.textContent = note;
    return item;
  }));
  byId("notes").hidden = !photograph.notes.length;
  const choices = [{ title: "Restored", picture: "after" }, ...photograph.extras];
  byId("right").replaceChildren(
    ...choices.map((one) => new Option(one.title, one.picture)));
  byId("right-label").hidden = choices.length === 1;
  byId("save").href = `${photograph.address}/file`;
  byId("save").download = "";
  byId("viewer").hidden = false;
  stage.setAttribute("aria-busy", "true");
  pan.x = pan.y = 0;
  pictures[0].src = `${photograph.address}/before.png`;
  showRight();
}

function showRight() {
  const right = byId("right");
  pictures[1].src = `${selected.address}/${right.value}.png`;
  byId("right-side").textContent = right.selectedOptions[0].text;
  byId("legend").hidden = right.value !== "Trust%20map";
  pictures[0].alt = `${selected.name}: before`;
  pictures[1].alt = `${selected.name}: ${right.selectedOptions[0].text}`;
}

function tell(line) {
  byId("message").textContent = line ?? "";
  byId("message").hidden = !line;
}

// 100 %: a pixel of the photograph is one of the screen.
function layOut() {
  const [width, height] = [pictures[0].naturalWidth, pictures[0].naturalHeight];
  if (!width || byId("viewer").hidden) return;
  const zoom = document.querySelector("[name=zoom]:checked").value;
  const room = byId("viewer").clientWidth;
  const actual = 1 / devicePixelRatio;
  const tallest = 0.72 * innerHeight;
  const scale = zoom === "fit" ? Math.min(actual, room / width, tallest / height) : actual * zoom;
  const frame = byId("viewer").style;
  frame.setProperty("--width", `${width * scale}px`);
  frame.setProperty("--height", `${height * scale}px`);
  stage.classList.toggle("enlarged", scale > actual);
  // On whole pixels, where nothing is blended with its neighbour.
  stage.style.setProperty("--shift", "0px");
  const top = stage.getBoundingClientRect().top + scrollY;
  stage.style.setProperty("--shift", `${Math.ceil(top) - top}px`);
  const [spareX, spareY] = [stage.clientWidth - width * scale, stage.clientHeight - height * scale];
  stage.classList.toggle("pannable", spareX < -1 || spareY < -1);
  pan.x = Math.max(Math.min(0, spareX), Math.min(0, pan.x));
  pan.y = Math.max(Math.min(0, spareY), Math.min(0, pan.y));
  stage.style.setProperty("--x", `${pan.x}px`);
  stage.style.setProperty("--y", `${pan.y}px`);
}

function showDivider() {
  stage.style.setProperty("--at", `${divider.value}%`);
  divider.setAttribute("aria-valuetext", `before up to ${divider.value} % of the width`);
}

function isNear(event) {
  const box = stage.getBoundingClientRect();
  return Math.abs(event.clientX - box.left - box.width * divider.value / 100) < 24;
}

function moveDivider(event) {
  const box = stage.getBoundingClientRect();
  divider.value = 100 * (event.clientX - box.left) / box.width;
  showDivider();
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  divider.focus({ preventScroll: true });
  stage.setPointerCapture(event.pointerId);
  const pans = stage.classList.contains("pannable") && !isNear(event);
  const start = { x: pan.x - event.clientX, y: pan.y - event.clientY };
  const move = (moved) => {
    if (pans) {
      pan.x = start.x + moved.clientX;
      pan.y = start.y + moved.clientY;
      layOut();
    } else {
      moveDivider(moved);
    }
  };
  stage.classList.toggle("panning", pans);
  if (!pans) move(event);
  stage.addEventListener("pointermove", move);
  const end = () => {
    stage.removeEventListener("pointermove", move);
    stage.classList.remove("panning");
  };
  stage.addEventListener("lostpointercapture", end, { once: true });
});
stage.addEventListener("pointermove", (event) => {
  stage.classList.toggle("near", isNear(event));
});

const DIRECTIONS = {
  ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
};
divider.addEventListener("keydown", (event) => {
  const direction = event.shiftKey && DIRECTIONS[event.key];
  if (!direction) return;
  event.preventDefault();
  pan.x += 64 * direction[0];
  pan.y += 64 * direction[1];
  layOut();
});
divider.addEventListener("input", showDivider);
showDivider();

for (const picture of pictures) {
  picture.addEventListener("load", () => {
    stage.setAttribute("aria-busy", String(!pictures.every((one) => one.complete)));
    layOut();
  });
  picture.addEventListener("error", () => {
    byId("viewer").hidden = true;
    tell("the server does not keep this result any more, or it is too large to be shown here");
  });
}
for (const one of document.querySelectorAll("[name=zoom]")) one.addEventListener("change", layOut);
byId("right").addEventListener("change", showRight);
addEventListener("resize", layOut);

// Settings.

function showSettings() {
  const { model, strength } = settings.elements;
  settings.querySelector("output").textContent = Number(strength.value).toFixed(2);
  byId("about").textContent = model.selectedOptions[0].dataset.about;
  summarise();
}
settings.addEventListener("input", showSettings);
settings.addEventListener("submit", (event) => {
  event.preventDefault();
  for (const photograph of photographs) {
    forget(photograph);
    photograph.state = "waiting";
    photograph.settings = wanted().toString();
    show(photograph);
  }
  select(selected);
  summarise();
  work();
});
showSettings();

// Files that are chosen or dropped. In a folder, only images that are not hidden count.

function addChosen(files, inFolder) {
  const isImage = ({ name }) => {
    const parts = name.split("/");
    const lower = name.toLowerCase();
    return !parts.some((part) => part.startsWith(".")) &&
      suffixes.some((suffix) => lower.endsWith(suffix));
  };
  const taken = files.filter((one) => !(one.inFolder ?? inFolder) || isImage(one));
  const others = files.length - taken.length;
  byId("left-out").textContent =
    `${others} file${others === 1 ? "" : "s"} of the folder left out: no image`;
  byId("left-out").hidden = !others;
  taken.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  add(taken);
}

for (const [button, input] of [["choose", "files"], ["choose-folder", "folder"]]) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", () => {
    const files = Array.from(byId(input).files);
    addChosen(
      files.map((file) => ({ file, name: file.webkitRelativePath || file.name })),
      input === "folder",
    );
    byId(input).value = "";
  });
}

async function filesIn(entry, inFolder = false) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: entry.fullPath.replace(/^\//, ""), inFolder }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // At most a hundred at a time.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const one of some) found.push(...await filesIn(one, true));
  }
}

const drop = byId("drop");
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
addEventListener("drop", async (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  // Before anything is awaited, after which the items are gone.
  const items = Array.from(event.dataTransfer.items, (item) => [
    item.webkitGetAsEntry(), item.getAsFile(),
  ]);
  const found = await Promise.all(items.map(([entry, file]) => {
    if (entry) return filesIn(entry);
    return file ? [{ file, name: file.name }] : [];
  }));
  addChosen(found.flat(), false);
});

byId("clear").addEventListener("click", () => {
  for (const photograph of photographs.splice(0)) forget(photograph);
  byId("list").replaceChildren();
  byId("left-out").hidden = true;
  selectedByUser = false;
  select(null);
  summarise();
});
