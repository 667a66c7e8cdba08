// The page of an exported model: model.onnx runs in this browser by onnxruntime-web, and no image leaves it.
// model.json says what the model is. In here, "shown" is what the page shows: an image, its labels and, where the model
// has EM attention, the responsibilities z of all EM iterations (T, K, h, w).
"use strict";

const root = document.querySelector(".em");
const $ = (selector) => root.querySelector(selector);
const $$ = (selector) => [...root.querySelectorAll(selector)];
let facts, ort, session; // model.json, the runtime, the model
let live = null, turn = Promise.resolve(); // the camera's stream; ends with the image that is being labelled
let image = null, shown = null, chosen = 0; // the chosen image at its own size, what is known of it, how many were chosen
let pinned = null; // the class whose pixels stay highlighted
let base = null, step = 0, at = { u: 0.5, v: 0.6 }, timer = 0; // of the explorer: base or none, iteration from 0, pixel

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const readable = (name) => name.replaceAll("_", " ");
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const rgba = (r, g, b, alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0; // a pixel of an ImageData as one number
const make = (name, parts = {}, ...children) => {
  const node = Object.assign(document.createElement(name), parts);
  node.append(...children);
  return node;
};
// A canvas of w x h pixels, number n of which is colour(n).
const drawn = (w, h, colour) => {
  const canvas = make("canvas", { width: w, height: h }), data = new ImageData(w, h), pixels = new Uint32Array(data.data.buffer);
  for (let n = 0; n < pixels.length; n++) pixels[n] = colour(n);
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
};
const styled = (node, style) => (Object.assign(node.style, style), node);
const dot = (colour) => styled(make("i"), { background: colour });
const say = (text, bad = false) => {
  $(".em-message").textContent = text;
  $(".em-message").classList.toggle("bad", bad);
};

const dark = matchMedia("(prefers-color-scheme: dark)");
(dark.onchange = () => document.documentElement.classList.toggle("dark", dark.matches))();

// ---- the model

async function start() {
  const read = async (name) => {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name} is missing in this folder.`);
    return response;
  };
  facts = await (await read("model.json")).json();
  document.title = `${facts.name} · EMANet`;
  $(".em-model").textContent = facts.name;
  $(".em-about").textContent = `EMANet labels every pixel of a photo as one of ${facts.classes.length} classes.`;
  $(".em-size select").value = facts.side;
  const about = `EM attention describes the image with ${facts.bases} bases. Every pixel divides itself among them: its responsibilities, which add up to 100 %. In ${facts.steps} EM iterations the bases move towards the pixels that they have, and the responsibilities sharpen.`;
  $(".em-lead").textContent = about;
  $(".em-explorer").hidden = !facts.bases;
  $(".em-refusal").hidden = facts.bases > 0;
  say(`Loading the model (${(facts.bytes / 1e6).toFixed(1)} MB) …`);
  ort = await import("./onnxruntime/ort.wasm.min.mjs");
  const wasm = ort.env.wasm;
  wasm.wasmPaths = new URL("onnxruntime/", location.href).href;
  wasm.proxy = true; // in a worker, so that the page stays quick
  wasm.numThreads = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  const model = new Uint8Array(await (await read("model.onnx")).arrayBuffer());
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  $(".em-file").disabled = $(".em-camera").disabled = false;
  root.dataset.ready = wasm.numThreads;
  say("");
}

// One image at a time: the model runs once after the other.
const inTurn = (work) => (turn = turn.then(work));

// The labels of a canvas or a video, of at most the size that is chosen; with z unless `quick`.
async function run(source, width, height, quick) {
  const scale = Math.min(1, Number($(".em-size select").value) / Math.max(width, height));
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));
  const canvas = make("canvas", { width: w, height: h }), context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, w, h);
  const { data } = context.getImageData(0, 0, w, h), pixels = new Uint8Array(3 * w * h);
  for (let i = 0, n = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) pixels[n++] = data[i + c];
  const names = quick || !facts.bases ? ["labels"] : ["labels", "responsibilities"];
  const began = performance.now();
  const found = await session.run({ pixels: new ort.Tensor("uint8", pixels, [1, h, w, 3]) }, names);
  const took = performance.now() - began;
  const { data: z, dims } = found.responsibilities ?? {};
  return { canvas, w, h, took, labels: found.labels.data, z, map: dims && [dims[4], dims[3]] };
}

function failed(error) {
  console.error(error);
  say("The image could not be labelled, perhaps because the browser has too little memory. Choose a smaller size.", true);
}

const label = () => inTurn(async () => {
  root.dataset.state = "busy";
  say("Labelling …");
  const { canvas, stem } = image, { width, height } = canvas, threads = ort.env.wasm.numThreads;
  try {
    const found = await run(canvas, width, height, false);
    show({ ...found, width, height, stem });
    const size = `${width} × ${height} pixels` + (found.w < width ? `, labelled at ${found.w} × ${found.h}` : "");
    say(`${size}, in ${Math.round(found.took)} ms on ${threads} ${threads === 1 ? "thread" : "threads"} of this browser.`);
  } catch (error) {
    failed(error);
  }
  root.dataset.state = shown ? "done" : "empty";
});

// ---- images

async function take(file) {
  if (!file || !session) return;
  stopCamera();
  const mine = ++chosen, bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(() => null);
  if (mine !== chosen) return; // another file was chosen meanwhile
  if (!bitmap) return say("This browser cannot read the file as an image.", true);
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  image = { canvas, stem: (file.name || "photo").replace(/\.[^.]*$/, "") };
  await label();
}

$(".em-file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  root.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || root.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  root.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
$(".em-size select").addEventListener("change", () => live || !image || label());

// ---- the camera: one frame after the other, as quickly as they can be labelled

if (navigator.mediaDevices?.getUserMedia) $(".em-camera").hidden = false;
$(".em-camera").onclick = async () => {
  if (live) {
    stopCamera();
    if (image) label(); // the last frame again, with what the explorer needs
    return;
  }
  try {
    live = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
  } catch {
    return say("The camera cannot be used: there is none, or the browser does not allow it.", true);
  }
  const stream = live, video = make("video", { srcObject: stream, muted: true, playsInline: true });
  $(".em-camera").textContent = "Stop at this frame";
  root.dataset.live = "";
  openTab("label");
  $("[data-tab=explain]").disabled = true;
  await video.play();
  for (let before = performance.now(); live === stream; ) {
    await inTurn(async () => {
      try {
        const found = await run(video, video.videoWidth, video.videoHeight, true);
        if (live !== stream) return;
        image = { canvas: found.canvas, stem: "camera" };
        show({ ...found, width: found.w, height: found.h, stem: image.stem });
        root.dataset.state = "done";
        const now = performance.now(), rate = (1000 / (now - before)).toFixed(1);
        say(`Live: ${found.w} × ${found.h} pixels, ${Math.round(found.took)} ms an image, ${rate} images a second.`);
        before = now;
      } catch (error) {
        stopCamera();
        failed(error);
      }
    });
  }
};

function stopCamera() {
  live?.getTracks().forEach((track) => track.stop());
  live = null;
  delete root.dataset.live;
  $("[data-tab=explain]").disabled = false;
  $(".em-camera").textContent = "Use the camera";
}

// ---- what is shown

function show(found) {
  const counts = new Uint32Array(256);
  for (const each of found.labels) counts[each]++;
  const classes = facts.classes.map((name, index) => ({ index, name, colour: facts.palette[index], share: counts[index] / found.labels.length }));
  shown = { ...found, classes: classes.filter((entry) => entry.share).sort((a, b) => b.share - a.share), owners: [], tops: [] };
  root.classList.add("shown");
  root.dataset.images++;
  if (!shown.classes.some((entry) => entry.index === pinned)) pinned = null;
  for (const canvas of [$(".em-photo"), $(".em-colours")]) Object.assign(canvas, { width: found.w, height: found.h });
  $(".em-photo").getContext("2d").drawImage(found.canvas, 0, 0);
  showLegend();
  paint(pinned);
  compare();
  if (found.z) showExplorer();
}

function openTab(name) {
  for (const tab of $$("[role=tab]")) tab.setAttribute("aria-selected", tab.dataset.tab === name);
  for (const panel of $$("[role=tabpanel]")) panel.hidden = panel.dataset.panel !== name;
  if (name === "explain" && shown?.z) drawExplorer();
}
for (const tab of $$("[role=tab]")) tab.onclick = () => openTab(tab.dataset.tab);

function showLegend() {
  $(".em-legend").replaceChildren(
    ...shown.classes.map((entry) => {
      const texts = [make("span", { textContent: readable(entry.name) }), make("span", { textContent: percent(entry.share) })];
      const button = make("button", { type: "button" }, dot(entry.colour), ...texts);
      button.dataset.index = entry.index;
      button.setAttribute("aria-pressed", pinned === entry.index);
      button.style.setProperty("--n", entry.share);
      button.onmouseenter = button.onfocus = () => paint(entry.index);
      button.onmouseleave = button.onblur = () => paint(pinned);
      button.onclick = () => {
        pinned = pinned === entry.index ? null : entry.index;
        for (const each of $$(".em-legend button")) each.setAttribute("aria-pressed", Number(each.dataset.index) === pinned);
        paint(pinned ?? entry.index);
      };
      return make("li", {}, button);
    }),
  );
}

// The classes in colour; with one highlighted, the others under a dark veil.
function paint(index) {
  const table = new Uint32Array(256), context = $(".em-colours").getContext("2d");
  for (const entry of shown.classes) {
    table[entry.index] = index === null || entry.index === index ? rgba(...rgb(entry.colour), 255) : rgba(18, 24, 32, 225);
  }
  context.clearRect(0, 0, shown.w, shown.h);
  context.drawImage(drawn(shown.w, shown.h, (n) => table[shown.labels[n]]), 0, 0);
  root.dataset.highlight = index ?? "";
}

function compare() {
  const share = $(".em-divider").value / 10;
  styled($(".em-colours"), { clipPath: `inset(0 0 0 ${share}%)`, opacity: $(".em-opacity").value / 100 });
  styled($(".em-line"), { left: `${share}%` });
  $(".em-percent").textContent = `${$(".em-opacity").value} %`;
}
for (const slider of $$(".em-divider, .em-opacity")) slider.addEventListener("input", compare);

const labelAt = (u, v) => shown.labels[Math.min(shown.h - 1, Math.floor(v * shown.h)) * shown.w + Math.min(shown.w - 1, Math.floor(u * shown.w))];

$(".em-divider").addEventListener("mousemove", (event) => {
  const { offsetX: x, offsetY: y, target } = event;
  $(".em-here").textContent = readable(facts.classes[labelAt(Math.max(0, x / target.clientWidth), Math.max(0, y / target.clientHeight))]);
  styled($(".em-here"), { left: `${Math.min(Math.max(x, 50), target.clientWidth - 50)}px`, top: `${Math.max(y, 36)}px` });
});
$(".em-divider").addEventListener("mouseleave", () => ($(".em-here").textContent = ""));

// ---- downloads, at the size of the image that was chosen

for (const button of $$(".em-downloads button")) {
  button.onclick = async () => {
    const { labels, w, h, width, height } = shown;
    const label = (n) => labels[Math.floor((Math.floor(n / width) * h) / height) * w + Math.floor(((n % width) * w) / width)];
    const palette = facts.palette.map(rgb), colours = palette.map((colour) => rgba(...colour, 255));
    const coloured = () => new Promise((done) => drawn(width, height, (n) => colours[label(n)]).toBlob(done));
    const file = await (button.dataset.file === "labels" ? indexPng(width, height, label, palette) : coloured());
    const link = make("a", { href: URL.createObjectURL(file), download: `${shown.stem}_${button.dataset.file}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
}

// A PNG of one byte a pixel and a palette, which a canvas does not write.
async function indexPng(width, height, label, palette) {
  const rows = new Uint8Array(height * (width + 1)); // a row begins with its filter: none
  for (let n = 0; n < width * height; n++) rows[n + Math.floor(n / width) + 1] = label(n);
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3], 8);
  const chunks = [chunk("IHDR", header), chunk("PLTE", palette.flat()), chunk("IDAT", packed), chunk("IEND", [])];
  return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...chunks], { type: "image/png" });
}

function chunk(name, content) {
  const bytes = new Uint8Array(12 + content.length), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let crc = ~0;
  for (const byte of bytes.subarray(4, -4)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  view.setUint32(bytes.length - 4, ~crc);
  return bytes;
}

// ---- the explorer

const OWNED = 480; // pixels of the longer side of the picture of all bases
const HEAT = [[74, 20, 134], [150, 30, 120], [214, 50, 80], [244, 110, 40], [253, 180, 40], [255, 245, 120]];
const HEATED = Array.from({ length: 256 }, (_, i) => {
  const place = Math.min(i / 255, 0.9999) * (HEAT.length - 1), n = Math.floor(place);
  return rgba(...HEAT[n].map((value, c) => value + (place - n) * (HEAT[n + 1][c] - value)), 235 * Math.sqrt(i / 255));
});

// [a, b] with which the share s of the image's width lies at cell a * s + b of the map, which covers the padding too.
function cellsOf(side, longest, cells) {
  const limit = facts.longest_side, most = Math.max(longest, limit);
  const small = limit ? Math.max(1, Math.floor((2 * side * limit + most) / (2 * most))) : side;
  const up = (length, to) => Math.ceil(length / to) * to, extra = facts.align_corners ? 1 : 0;
  const padded = up(up(small - extra, facts.stride) + extra, facts.divisor);
  if (!facts.align_corners) return [(small * cells) / padded, -0.5];
  const scale = (cells - 1) / Math.max(padded - 1, 1);
  return [small * scale, -0.5 * scale];
}

function showExplorer() {
  const { w, h, map } = shown, longest = Math.max(w, h);
  Object.assign(shown, { x: cellsOf(w, longest, map[0]), y: cellsOf(h, longest, map[1]) });
  Object.assign($(".em-attention"), { width: w, height: h });
  $(".em-step").max = facts.steps;
  [step, base, at] = [facts.steps - 1, null, { u: 0.5, v: 0.6 }];
  orderBases();
  if (!$("[data-panel=explain]").hidden) drawExplorer();
}

// The responsibilities of iteration t at the share (u, v) of the image: K numbers that add up to 1.
function responsibilities(t, u, v) {
  const { z, map: [w, h], x, y } = shown, K = facts.bases;
  const column = Math.min(Math.max(x[0] * u + x[1], 0), w - 1), row = Math.min(Math.max(y[0] * v + y[1], 0), h - 1);
  const i = Math.floor(column), j = Math.floor(row), right = Math.min(i + 1, w - 1), below = Math.min(j + 1, h - 1);
  const p = column - i, q = row - j;
  return Float32Array.from({ length: K }, (_, k) => {
    const of = (j, i) => z[((t * K + k) * h + j) * w + i];
    return (1 - q) * ((1 - p) * of(j, i) + p * of(j, right)) + q * ((1 - p) * of(below, i) + p * of(below, right));
  });
}

// Each pixel's base with the largest responsibility in iteration t. Bases that differ by less than 2 % count as one, the
// first: else rounding decides between bases that have become equal, and the picture looks torn.
function ownersOf(t) {
  if (shown.owners[t]) return shown.owners[t];
  const { z, map: [w, h], x, y } = shown, K = facts.bases, scale = Math.min(1, OWNED / Math.max(shown.w, shown.h));
  const [W, H] = [shown.w, shown.h].map((side) => Math.max(1, Math.round(side * scale)));
  const owners = new Uint16Array(W * H), row = new Float32Array(w), best = new Float32Array(W);
  const columns = Array.from({ length: W }, (_, i) => Math.min(Math.max((x[0] * (i + 0.5)) / W + x[1], 0), w - 1));
  const left = Uint16Array.from(columns, (c) => Math.min(Math.floor(c), Math.max(w - 2, 0)));
  const part = Float32Array.from(columns, (c, i) => c - left[i]), next = w > 1 ? 1 : 0;
  for (let j = 0; j < H; j++) {
    const r = Math.min(Math.max((y[0] * (j + 0.5)) / H + y[1], 0), h - 1), top = Math.floor(r), q = r - top;
    best.fill(-1);
    for (let k = 0; k < K; k++) {
      const upper = ((t * K + k) * h + top) * w, lower = upper + (top + 1 < h ? w : 0);
      for (let i = 0; i < w; i++) row[i] = z[upper + i] + q * (z[lower + i] - z[upper + i]);
      for (let i = 0; i < W; i++) {
        const value = row[left[i]] + part[i] * (row[left[i] + next] - row[left[i]]);
        if (value > 1.02 * best[i]) {
          best[i] = value;
          owners[j * W + i] = k;
        }
      }
    }
  }
  return (shown.owners[t] = { owners, W, H });
}

// The largest value of a base in all iterations, which has the brightest colour.
function largest(k) {
  const { z, map: [w, h], tops } = shown, start = (t) => (t * facts.bases + k) * w * h;
  const most = (t) => z.subarray(start(t), start(t) + w * h).reduce((a, b) => Math.max(a, b), 1e-6);
  return (tops[k] ??= Math.max(...Array.from({ length: facts.steps }, (_, t) => most(t))));
}

// The map of base k in iteration t in colours, one pixel a cell.
function heatMap(t, k) {
  const { z, map: [w, h] } = shown, from = (t * facts.bases + k) * w * h, scale = 255 / largest(k);
  return drawn(w, h, (n) => HEATED[Math.min(255, Math.round(z[from + n] * scale))]);
}

function goTo(t) {
  step = t;
  drawExplorer();
}

function choose(k) {
  base = base === k ? null : k;
  drawExplorer();
}

function drawExplorer() {
  const canvas = $(".em-attention"), { width: W, height: H } = canvas, context = canvas.getContext("2d");
  const fill = (globalCompositeOperation, fillStyle) => {
    Object.assign(context, { globalCompositeOperation, fillStyle }).fillRect(0, 0, W, H);
    context.globalCompositeOperation = "source-over";
  };
  context.drawImage(shown.canvas, 0, 0, W, H);
  if (base === null) {
    const found = ownersOf(step), table = facts.base_colours.map((hex) => rgba(...rgb(hex), 255));
    context.globalAlpha = 0.55;
    context.drawImage(drawn(found.W, found.H, (n) => table[found.owners[n]]), 0, 0, W, H);
    context.globalAlpha = 1;
  } else {
    fill("color", "#808080"); // the photo in grey, and paler
    fill("source-over", "rgb(200 200 200 / 0.35)");
    const { x, y } = shown; // half a cell further, because a canvas counts from the cell's edge
    context.imageSmoothingQuality = "high";
    context.drawImage(heatMap(step, base), x[1] + 0.5, y[1] + 0.5, x[0], y[0], 0, 0, W, H);
  }
  const name = base === null ? "Each pixel in the colour of the base that takes most of it" : `Responsibilities of base ${base} in iteration ${step + 1}`;
  canvas.setAttribute("aria-label", name);
  $(".em-view").textContent = base === null ? `${name}. Click a pixel to see all its bases.` : `${name}; the brightest yellow is ${percent(largest(base), 0)}.`;
  $(".em-all").hidden = base === null;
  $(".em-step").value = step + 1;
  $(".em-t").textContent = `t = ${step + 1} of ${facts.steps}`;
  drawTiles();
  drawPixel();
}

function drawPixel() {
  const now = responsibilities(step, at.u, at.v), first = responsibilities(0, at.u, at.v);
  styled($(".em-mark"), { left: `${100 * at.u}%`, top: `${100 * at.v}%` });
  $(".em-at").replaceChildren("Bases of this pixel", make("small", { textContent: readable(facts.classes[labelAt(at.u, at.v)]) }));
  const order = [...now.keys()].sort((a, b) => now[b] - now[a]).slice(0, 8);
  const scale = Math.max(now[order[0]], first[order[0]], 1e-6);
  $(".em-bases").replaceChildren(
    ...order.map((k) => {
      const colour = facts.base_colours[k], fill = styled(make("span", { className: "em-fill" }), { width: `${(100 * now[k]) / scale}%`, background: colour });
      const tick = make("span", { className: "em-first", title: `t = 1: ${percent(first[k])}` });
      styled(tick, { left: `${Math.min(99, (100 * first[k]) / scale)}%` });
      const track = make("span", { className: "em-track" }, fill, tick), number = make("span", { className: "em-number", textContent: `base ${k}` });
      const button = make("button", { type: "button" }, dot(colour), number, track, make("span", { textContent: percent(now[k]) }));
      button.dataset.base = k;
      button.setAttribute("aria-pressed", k === base);
      button.onclick = () => choose(k);
      return make("li", {}, button);
    }),
  );
}

function orderBases() {
  const counts = new Uint32Array(facts.bases), { owners } = ownersOf(facts.steps - 1);
  for (const k of owners) counts[k]++;
  const order = [...counts.keys()].sort((a, b) => counts[b] - counts[a]);
  $(".em-tiles").replaceChildren(
    ...order.map((k) => {
      const texts = [make("span", { textContent: k }), make("span", { textContent: percent(counts[k] / owners.length) })];
      const [width, height] = [shown.x[0], shown.y[0]].map((cells) => Math.max(1, Math.round(cells)));
      const button = make("button", { type: "button", title: `base ${k}` }, make("canvas", { width, height }), make("span", {}, ...texts));
      button.dataset.base = k;
      button.onclick = () => choose(k);
      return button;
    }),
  );
  shown.tiled = -1;
}

function drawTiles() {
  for (const tile of $(".em-tiles").children) {
    const k = Number(tile.dataset.base), context = tile.firstChild.getContext("2d");
    tile.setAttribute("aria-pressed", k === base);
    if (shown.tiled === step) continue;
    context.clearRect(0, 0, 1e4, 1e4);
    context.drawImage(heatMap(step, k), 0, 0);
  }
  shown.tiled = step;
}

$(".em-attention").addEventListener("click", (event) => {
  const box = event.target.getBoundingClientRect();
  at = { u: (event.clientX - box.left) / box.width, v: (event.clientY - box.top) / box.height };
  drawPixel();
});
$(".em-attention").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move) return;
  event.preventDefault();
  at = { u: Math.min(Math.max(at.u + move[0] / 60, 0), 1), v: Math.min(Math.max(at.v + move[1] / 60, 0), 1) };
  drawPixel();
});
$(".em-step").addEventListener("input", (event) => goTo(Number(event.target.value) - 1));
$(".em-all").onclick = () => choose(base);
$(".em-play").onclick = () => {
  clearInterval(timer);
  goTo(0);
  timer = setInterval(() => (step + 1 < facts.steps ? goTo(step + 1) : clearInterval(timer)), 900);
};

start().catch((error) => {
  console.error(error);
  const local = location.protocol === "file:" && "A browser opens this page from a web server only. In its folder, run: python -m http.server";
  say(local || `The model could not be loaded. ${error.message}`, true);
});
