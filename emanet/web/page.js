// Runs once as the body of a function of Gradio's HTML component (element, trigger, props, watch). Sends an image as a
// data URL, and draws the answer of answer.py. Nothing here asks the server for anything else.
const root = element.querySelector(".em");
const $ = (selector) => root.querySelector(selector);
const facts = props.facts;
let shown = null; // the latest answer, with its pixels decoded
let stem = "photo"; // of the files to download
let sent = "", next = null; // the name by which the next answer goes; what was chosen meanwhile
let pinned = null; // the class whose pixels stay highlighted
let base = null, step = 0, at = { u: 0.5, v: 0.6 }, timer = 0; // of the explorer: base or none, iteration from 0, pixel

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const make = (name, parts = {}, ...children) => {
  const node = Object.assign(document.createElement(name), parts);
  node.append(...children);
  return node;
};
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const readable = (name) => name.replaceAll("_", " ");

// ---- sending

const say = (text, bad = false) => {
  $(".em-message").textContent = text;
  $(".em-message").classList.toggle("bad", bad);
};

function send(url, name) {
  if (root.dataset.state === "busy") return (next = [url, name]);
  sent = name;
  root.dataset.state = "busy";
  say("Labelling …");
  props.value = url;
  trigger("submit");
}

function sendNext() {
  const choice = next;
  next = null;
  if (choice) send(...choice);
}

function take(file) {
  if (!file) return;
  const megabytes = file.size / 2 ** 20;
  if (megabytes > facts.megabytes) {
    say(`This file has ${megabytes.toFixed(1)} MB. The page takes up to ${facts.megabytes} MB.`, true);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => send(`data:image/any;base64,${reader.result.split(",")[1] || ""}`, (file.name || "photo").replace(/\.[^.]*$/, ""));
  reader.readAsDataURL(file);
}

$(".em-model").textContent = facts.model;
$(".em-about").textContent = `EMANet labels every pixel of a photo as one of ${facts.classes} classes. Photos are not kept.`;
$(".em-file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
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
for (const [name, url] of Object.entries(facts.examples)) {
  const button = make("button", { type: "button", title: name }, make("img", { src: url, alt: `Example: ${name}` }));
  button.onclick = () => send(name, name);
  $(".em-examples").append(button);
}

const dialog = $(".em-dialog"), video = dialog.querySelector("video");
if (navigator.mediaDevices?.getUserMedia) $(".em-camera").hidden = false;
$(".em-camera").onclick = async () => {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    dialog.showModal();
  } catch {
    say("The camera cannot be used: there is none, or the browser does not allow it.", true);
  }
};
dialog.addEventListener("close", () => video.srcObject?.getTracks().forEach((track) => track.stop()));
$(".em-close").onclick = () => dialog.close();
$(".em-shoot").onclick = () => {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  dialog.close();
  canvas.toBlob((blob) => take(new File([blob], "camera.jpg")), "image/jpeg", 0.92);
};

// ---- the answer

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const inflate = async (text) =>
  new Uint8Array(await new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());

watch("value", async () => {
  const answer = props.value;
  if (!answer || typeof answer !== "object") return;
  const photo = new Image();
  photo.src = answer.photo;
  const [labels, z] = await Promise.all([inflate(answer.labels), answer.explain && inflate(answer.explain.z), photo.decode()]);
  shown = { ...answer, photo, labels, z };
  stem = sent || "photo";
  pinned = base = null;
  root.classList.add("shown");
  root.dataset.state = "done";
  say(`${answer.width} × ${answer.height} pixels, ${answer.classes.length} ${answer.classes.length === 1 ? "class" : "classes"}.`);
  showLabels();
  if (answer.explain) showExplorer();
  sendNext();
});
window.addEventListener("emanet-failed", () => {
  root.dataset.state = shown ? "done" : "empty";
  say("");
  sendNext();
});

for (const tab of root.querySelectorAll("[role=tab]")) {
  tab.onclick = () => {
    for (const each of root.querySelectorAll("[role=tab]")) each.setAttribute("aria-selected", each === tab);
    for (const panel of root.querySelectorAll("[role=tabpanel]")) panel.hidden = panel.dataset.panel !== tab.dataset.tab;
    if (tab.dataset.tab === "explain" && shown?.explain) drawExplorer();
  };
}
if (facts.refusal) {
  $(".em-refusal").hidden = false;
  $(".em-refusal").textContent = facts.refusal;
  $(".em-explorer").hidden = true;
}

// ---- the tab Label

const dot = (colour) => {
  const i = make("i");
  i.style.background = colour;
  return i;
};

function showLabels() {
  const [w, h] = shown.view;
  for (const canvas of [$(".em-photo"), $(".em-colours")]) Object.assign(canvas, { width: w, height: h });
  $(".em-photo").getContext("2d").drawImage(shown.photo, 0, 0, w, h);
  $(".em-legend").replaceChildren(
    ...shown.classes.map((entry) => {
      const button = make("button", { type: "button" }, dot(entry.colour), make("span", { textContent: readable(entry.name) }), make("span", { textContent: percent(entry.share) }));
      button.setAttribute("aria-pressed", "false");
      button.dataset.index = entry.index;
      button.style.setProperty("--n", entry.share);
      button.onmouseenter = button.onfocus = () => paint(entry.index);
      button.onmouseleave = button.onblur = () => paint(pinned);
      button.onclick = () => {
        pinned = pinned === entry.index ? null : entry.index;
        for (const each of root.querySelectorAll(".em-legend button")) each.setAttribute("aria-pressed", Number(each.dataset.index) === pinned);
        paint(pinned ?? entry.index);
      };
      return make("li", {}, button);
    }),
  );
  for (const link of root.querySelectorAll(".em-downloads a")) {
    const file = link.dataset.file;
    if (link.href) URL.revokeObjectURL(link.href);
    link.href = URL.createObjectURL(new Blob([bytes(shown.files[file])]));
    link.download = `${stem}_${file}`;
  }
  paint(null);
  compare();
}

// The classes in colour; with one highlighted, the others under a dark veil.
function paint(index) {
  const [w, h] = shown.view;
  const table = new Uint32Array(256);
  for (const entry of shown.classes) {
    const [r, g, b] = rgb(entry.colour);
    table[entry.index] = (255 << 24) | (b << 16) | (g << 8) | r;
    if (index !== null && entry.index !== index) table[entry.index] = (225 << 24) | (32 << 16) | (24 << 8) | 18;
  }
  const image = new ImageData(w, h), pixels = new Uint32Array(image.data.buffer);
  shown.labels.forEach((label, i) => (pixels[i] = table[label]));
  $(".em-colours").getContext("2d").putImageData(image, 0, 0);
  root.dataset.highlight = index ?? "";
}

function compare() {
  const share = $(".em-divider").value / 10;
  $(".em-colours").style.clipPath = `inset(0 0 0 ${share}%)`;
  $(".em-line").style.left = `${share}%`;
  $(".em-colours").style.opacity = $(".em-opacity").value / 100;
  $(".em-percent").textContent = `${$(".em-opacity").value} %`;
}
$(".em-divider").addEventListener("input", compare);
$(".em-opacity").addEventListener("input", compare);
$(".em-divider").addEventListener("mousemove", (event) => {
  const { offsetX: x, offsetY: y } = event, [w, h] = shown.view;
  const column = Math.min(w - 1, Math.max(0, Math.floor((x / event.target.clientWidth) * w)));
  const row = Math.min(h - 1, Math.max(0, Math.floor((y / event.target.clientHeight) * h)));
  const entry = shown.classes.find((each) => each.index === shown.labels[row * w + column]);
  $(".em-here").textContent = entry ? readable(entry.name) : "";
  $(".em-here").style.left = `${Math.min(Math.max(x, 50), event.target.clientWidth - 50)}px`;
  $(".em-here").style.top = `${Math.max(y, 36)}px`;
});
$(".em-divider").addEventListener("mouseleave", () => ($(".em-here").textContent = ""));

// ---- the tab Explain

const DECODED = Float32Array.from({ length: 256 }, (_, v) => (v / 255) ** 2); // see answer.py
const HEAT = [[74, 20, 134], [150, 30, 120], [214, 50, 80], [244, 110, 40], [253, 180, 40], [255, 245, 120]]; // show/attention.py
const heat = (share) => {
  const place = Math.min(share, 0.9999) * (HEAT.length - 1), i = Math.floor(place);
  return HEAT[i].map((value, c) => value + (place - i) * (HEAT[i + 1][c] - value));
};

// For each of `size` pixels along an axis: its cell of the map, and how far it lies towards the next.
function spread(axis, size) {
  const [a, b] = shown.explain.cells[axis], cells = shown.explain.map[axis];
  const low = new Uint16Array(size), part = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const cell = Math.min(Math.max((a * (i + 0.5)) / size + b, 0), cells - 1);
    low[i] = Math.min(Math.floor(cell), Math.max(cells - 2, 0));
    part[i] = cells > 1 ? cell - low[i] : 0;
  }
  return { low, part, next: cells > 1 ? 1 : 0 };
}

function showExplorer() {
  const { bases, steps, map, size } = shown.explain;
  Object.assign(shown, { x: spread(0, size[0]), y: spread(1, size[1]), owners: [], tops: [], rows: new Float32Array(size[0] * map[1]) });
  Object.assign($(".em-attention"), { width: size[0], height: size[1] });
  const small = make("canvas", { width: size[0], height: size[1] }).getContext("2d");
  small.drawImage(shown.photo, 0, 0, ...size);
  shown.pixels = small.getImageData(0, 0, ...size).data;
  step = steps - 1;
  at = { u: 0.5, v: 0.6 };
  $(".em-lead").textContent = `EM attention describes the image with ${bases} bases. Every pixel divides itself among them: its responsibilities, which add up to 100 %. In ${steps} EM ${steps === 1 ? "iteration" : "iterations"} the bases move towards the pixels that they have, and the responsibilities sharpen.`;
  $(".em-steps").replaceChildren(
    ...Array.from({ length: steps }, (_, t) => {
      const button = make("button", { type: "button", textContent: `t = ${t + 1}` });
      button.onclick = () => timed(() => goTo(t));
      return button;
    }),
  );
  orderBases();
  drawMatrix();
  if (!$("[data-panel=explain]").hidden) drawExplorer();
  const answer = shown; // the other iterations before somebody asks for them
  for (let t = 0; t < steps; t++) setTimeout(() => shown === answer && ownersOf(t), 200 * (t + 1));
}

// One base's map in iteration t, spread over the picture: calls put(pixel, value) row by row.
function overImage(t, k, put) {
  const { map, size, bases } = shown.explain, [w, h] = map, [W, H] = size, { x, y, rows, z } = shown;
  const start = (t * bases + k) * w * h;
  for (let r = 0; r < h; r++) {
    const from = start + r * w;
    for (let i = 0; i < W; i++) {
      const value = DECODED[z[from + x.low[i]]];
      rows[r * W + i] = value + x.part[i] * (DECODED[z[from + x.low[i] + x.next]] - value);
    }
  }
  for (let j = 0, n = 0; j < H; j++) {
    const upper = y.low[j] * W, lower = (y.low[j] + y.next) * W, part = y.part[j];
    for (let i = 0; i < W; i++, n++) put(n, rows[upper + i] + part * (rows[lower + i] - rows[upper + i]));
  }
}

// Each pixel's base with the largest value in iteration t. Between four cells of the map only those bases can win whose
// largest corner reaches another's smallest. Bases that differ by less than a byte of answer.py tells apart count as one,
// the first: else rounding decides between bases that have become equal, and the picture looks torn.
function ownersOf(t) {
  if (shown.owners[t]) return shown.owners[t];
  const { map, size, bases } = shown.explain, [w, h] = map, [W, H] = size, { x, y, z } = shown;
  const owner = new Uint16Array(W * H), most = new Uint8Array(bases);
  for (let top = 0, rows; top < H; top = rows) {
    for (rows = top; rows < H && y.low[rows] === y.low[top]; ) rows++;
    for (let left = 0, columns; left < W; left = columns) {
      for (columns = left; columns < W && x.low[columns] === x.low[left]; ) columns++;
      const corner = (k) => (t * bases + k) * w * h + y.low[top] * w + x.low[left], right = x.next, down = y.next * w;
      let least = 0;
      for (let k = 0; k < bases; k++) {
        const n = corner(k), a = z[n], b = z[n + right], c = z[n + down], d = z[n + down + right];
        most[k] = Math.max(a, b, c, d);
        least = Math.max(least, Math.min(a, b, c, d));
      }
      const able = [...most.keys()].filter((k) => most[k] >= least).map((k) => {
        const n = corner(k);
        return [k, DECODED[z[n]], DECODED[z[n + right]], DECODED[z[n + down]], DECODED[z[n + down + right]]];
      });
      for (let j = top; j < rows; j++) {
        for (let i = left; i < columns; i++) {
          let best = -1;
          for (const [k, a, b, c, d] of able) {
            const upper = a + x.part[i] * (b - a), value = upper + y.part[j] * (c + x.part[i] * (d - c) - upper);
            if (value > best * 1.02) {
              best = value;
              owner[j * W + i] = k;
            }
          }
        }
      }
    }
  }
  return (shown.owners[t] = owner);
}

// The responsibilities of the marked pixel in iteration t.
function here(t) {
  const { map, size, bases } = shown.explain, [w, h] = map, { x, y, z } = shown;
  const i = Math.min(Math.floor(at.u * size[0]), size[0] - 1), j = Math.min(Math.floor(at.v * size[1]), size[1] - 1);
  return Float32Array.from({ length: bases }, (_, k) => {
    const upper = (t * bases + k) * w * h + y.low[j] * w + x.low[i], lower = upper + y.next * w;
    const mix = (from) => DECODED[z[from]] + x.part[i] * (DECODED[z[from + x.next]] - DECODED[z[from]]);
    return mix(upper) + y.part[j] * (mix(lower) - mix(upper));
  });
}

// The largest value of a base in all iterations, which is the top of its colours.
function largest(k) {
  if (shown.tops[k]) return shown.tops[k];
  const { map, bases, steps } = shown.explain, cells = map[0] * map[1];
  let most = 1;
  for (let t = 0; t < steps; t++) for (let n = (t * bases + k) * cells, end = n + cells; n < end; n++) most = Math.max(most, shown.z[n]);
  return (shown.tops[k] = DECODED[most]);
}

function timed(action) {
  const start = performance.now();
  action();
  root.dataset.took = (performance.now() - start).toFixed(1);
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
  const { size, colours, bases, steps } = shown.explain, image = new ImageData(...size), out = image.data, photo = shown.pixels;
  if (base === null) {
    const table = colours.map(rgb);
    const owners = ownersOf(step);
    for (let n = 0, i = 0; n < owners.length; n++) {
      const colour = table[owners[n]];
      for (let c = 0; c < 3; c++, i++) out[i] = 0.55 * colour[c] + 0.45 * photo[i];
      out[i++] = 255;
    }
  } else {
    const top = largest(base), table = Array.from({ length: 256 }, (_, i) => [...heat(i / 255), 0.85 * Math.sqrt(i / 255)]);
    overImage(step, base, (n, value) => {
      const [r, g, b, alpha] = table[Math.min(255, Math.round((255 * value) / top))];
      const pale = (1 - alpha) * (70 + (0.65 * (photo[4 * n] + photo[4 * n + 1] + photo[4 * n + 2])) / 3);
      out[4 * n] = alpha * r + pale;
      out[4 * n + 1] = alpha * g + pale;
      out[4 * n + 2] = alpha * b + pale;
      out[4 * n + 3] = 255;
    });
  }
  $(".em-attention").getContext("2d").putImageData(image, 0, 0);
  $(".em-attention").setAttribute("aria-label", base === null ? "Each pixel in the colour of its strongest base" : `Responsibilities of base ${base}`);
  $(".em-view").textContent =
    base === null
      ? "Each pixel in the colour of the base that takes most of it. Click a pixel to see all its bases."
      : `Responsibilities of base ${base} in iteration ${step + 1}; the brightest yellow is ${percent(largest(base), 0)}.`;
  $(".em-all").hidden = base === null;
  [...$(".em-steps").children].forEach((button, t) => button.setAttribute("aria-pressed", t === step));
  for (const tile of $(".em-tiles").children) tile.setAttribute("aria-pressed", Number(tile.dataset.base) === base);
  const column = shown.order.indexOf(base);
  Object.assign($(".em-column").style, { display: column < 0 ? "none" : "block", left: `${(100 * column) / bases}%`, width: `${100 / bases}%` });
  setTimeout(drawTiles); // after the picture
  drawPixel();
  drawCurve(steps, bases);
}

function drawPixel() {
  const [w, h] = shown.view, now = here(step), first = here(0);
  $(".em-mark").style.left = `${100 * at.u}%`;
  $(".em-mark").style.top = `${100 * at.v}%`;
  const label = shown.labels[Math.min(h - 1, Math.floor(at.v * h)) * w + Math.min(w - 1, Math.floor(at.u * w))];
  const entry = shown.classes.find((each) => each.index === label);
  $(".em-at").replaceChildren("Bases of this pixel", make("small", { textContent: entry ? readable(entry.name) : "" }));
  const order = [...now.keys()].sort((a, b) => now[b] - now[a]).slice(0, 8);
  const scale = Math.max(now[order[0]], first[order[0]], 1e-6);
  $(".em-bases").replaceChildren(
    ...order.map((k) => {
      const fill = make("span", { className: "em-fill" }), tick = make("span", { className: "em-first", title: `t = 1: ${percent(first[k])}` });
      fill.style.width = `${(100 * now[k]) / scale}%`;
      fill.style.background = shown.explain.colours[k];
      tick.style.left = `${Math.min(100, (100 * first[k]) / scale)}%`;
      const button = make("button", { type: "button" }, dot(shown.explain.colours[k]), make("span", { className: "em-number", textContent: `base ${k}` }), make("span", { className: "em-track" }, fill, tick), make("span", { textContent: percent(now[k]) }));
      button.dataset.base = k;
      button.setAttribute("aria-pressed", k === base);
      button.onclick = () => timed(() => choose(k));
      return make("li", {}, button);
    }),
  );
}

function orderBases() {
  const counts = new Float64Array(shown.explain.bases);
  for (const k of ownersOf(shown.explain.steps - 1)) counts[k]++;
  shown.order = [...counts.keys()].sort((a, b) => counts[b] - counts[a]);
  $(".em-tiles").replaceChildren(
    ...shown.order.map((k) => {
      const canvas = make("canvas", { width: shown.explain.map[0], height: shown.explain.map[1] });
      const button = make("button", { type: "button", title: `base ${k}` }, canvas, make("span", {}, make("span", { textContent: k }), make("span", { textContent: percent(counts[k] / shown.owners[shown.explain.steps - 1].length) })));
      button.dataset.base = k;
      button.onclick = () => timed(() => choose(k));
      return button;
    }),
  );
  shown.tiled = -1;
}

function drawTiles() {
  if (shown.tiled === step) return;
  shown.tiled = step;
  const { map, bases } = shown.explain, cells = map[0] * map[1];
  const table = Uint32Array.from({ length: 256 }, (_, i) => {
    const [r, g, b] = heat(i / 255), alpha = 0.15 + 0.85 * Math.sqrt(i / 255), dark = (1 - alpha) * 40;
    return (255 << 24) | ((alpha * b + dark) << 16) | ((alpha * g + dark) << 8) | (alpha * r + dark);
  });
  for (const tile of $(".em-tiles").children) {
    const k = Number(tile.dataset.base), top = largest(k), image = new ImageData(...map);
    const pixels = new Uint32Array(image.data.buffer), from = (step * bases + k) * cells;
    for (let n = 0; n < cells; n++) pixels[n] = table[Math.min(255, Math.round((255 * DECODED[shown.z[from + n]]) / top))];
    tile.querySelector("canvas").getContext("2d").putImageData(image, 0, 0);
  }
}

// Two lines over the iterations, with their numbers: the largest responsibility of a pixel, and the entropy.
function drawCurve(steps, bases) {
  const { strongest, entropy_share: entropy } = shown.explain;
  const line = (values, y, name, colour) => {
    const low = Math.min(...values), range = Math.max(Math.max(...values) - low, 1e-6);
    const x = (t) => (steps > 1 ? 14 + (t * 252) / (steps - 1) : 140), up = (value) => y + 34 - (26 * (value - low)) / range;
    const path = values.map((value, t) => `${t ? "L" : "M"}${x(t)} ${up(value)}`).join("");
    const marks = values.map((value, t) => `<circle cx="${x(t)}" cy="${up(value)}" r="${t === step ? 5 : 3}" fill="${colour}"/><text class="${t === step ? "on" : ""}" text-anchor="middle" x="${Math.min(Math.max(x(t), 20), 260)}" y="${y + 52}">${percent(value)}</text>`).join("");
    return `<text x="0" y="${y - 4}">${name}</text><path d="${path}" stroke="${colour}"/>${marks}`;
  };
  $(".em-curve").innerHTML = `<svg viewBox="0 0 280 160" role="img" aria-label="How the responsibilities sharpen">${line(strongest, 14, "largest responsibility of a pixel, mean", "#0d9488")}${line(entropy, 98, `entropy, of log ${bases}`, "#d97706")}</svg>`;
}

function drawMatrix() {
  const { used, bases } = shown.explain, rows = shown.classes.filter((entry) => used[entry.index]);
  const most = Math.max(1e-6, ...rows.flatMap((entry) => used[entry.index]));
  $(".em-matrix ul").replaceChildren(...rows.map((entry) => make("li", { textContent: readable(entry.name), title: readable(entry.name) })));
  const canvas = Object.assign($(".em-matrix canvas"), { width: bases, height: rows.length });
  const context = canvas.getContext("2d");
  rows.forEach((entry, row) =>
    shown.order.forEach((k, column) => {
      context.fillStyle = `rgb(13 148 136 / ${Math.sqrt(used[entry.index][k] / most)})`;
      context.fillRect(column, row, 1, 1);
    }),
  );
  canvas.style.minHeight = `${20 * rows.length}px`;
  const cell = (event) => {
    const column = Math.floor((event.offsetX / canvas.clientWidth) * bases), row = Math.floor((event.offsetY / canvas.clientHeight) * rows.length);
    return [rows[Math.min(row, rows.length - 1)], shown.order[Math.min(column, bases - 1)]];
  };
  canvas.onmousemove = (event) => {
    const [entry, k] = cell(event);
    $(".em-cell").textContent = `${readable(entry.name)}, base ${k}: ${percent(used[entry.index][k])}`;
  };
  canvas.onclick = (event) => timed(() => choose(cell(event)[1]));
}

$(".em-attention").addEventListener("click", (event) =>
  timed(() => {
    const box = event.target.getBoundingClientRect();
    at = { u: (event.clientX - box.left) / box.width, v: (event.clientY - box.top) / box.height };
    drawPixel();
  }),
);
$(".em-attention").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move) return;
  event.preventDefault();
  at = { u: Math.min(Math.max(at.u + move[0] / 60, 0), 1), v: Math.min(Math.max(at.v + move[1] / 60, 0), 1) };
  drawPixel();
});
$(".em-all").onclick = () => timed(() => choose(base));
$(".em-play").onclick = () => {
  clearInterval(timer);
  goTo(0);
  timer = setInterval(() => (step + 1 < shown.explain.steps ? goTo(step + 1) : clearInterval(timer)), 900);
};
