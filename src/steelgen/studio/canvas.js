// The mask canvas: class indices at the network's image size. Runs once, when the page has loaded.
// props.value is JSON as in `encode_mask`, or "" at first; props.classes is a list of {name, color}; props.size is the edge in px.
const size = props.size, classes = props.classes, storage_key = "steelgen-mask-" + props.store;
const find = (name) => element.querySelector("." + name);
const tools = element.querySelectorAll("[data-tool]");
const board = find("board"), cursor = find("cursor"), brushes = find("brushes");
const paint = board.getContext("2d"), marks = cursor.getContext("2d");
const fine = Math.max(1, Math.floor(512 / size));  // cursor layer pixels per mask pixel
const max_radius = Math.max(2, size >> 2);
board.width = board.height = size;
cursor.width = cursor.height = size * fine;

let mask = new Uint8Array(size * size), label = Math.min(1, classes.length - 1), radius = Math.max(1, Math.round(size / 20));
let tool = "brush", past = [], future = [], last = null, at = [size >> 1, size >> 1], by_keys = false;
let painting = null;  // "pointer" or "key"

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

function encode() {
  let text = "";
  for (let start = 0; start < mask.length; start += 8192) text += String.fromCharCode(...mask.subarray(start, start + 8192));
  return JSON.stringify({ width: size, height: size, indices: btoa(text) });
}

function decode(text) {
  try {
    const found = JSON.parse(text);
    if (found.width !== size || found.height !== size) return null;
    const indices = Uint8Array.from(atob(found.indices), (character) => character.charCodeAt(0));
    return indices.length === size * size ? indices.map((index) => Math.min(index, classes.length - 1)) : null;
  } catch { return null; }
}

function show() {
  const pixels = paint.createImageData(size, size);
  mask.forEach((index, place) => pixels.data.set([...classes[index].color, 255], 4 * place));
  paint.putImageData(pixels, 0, 0);
}

function commit() {
  show();
  props.value = encode();
  try { sessionStorage.setItem(storage_key, props.value); } catch { /* unavailable in some private windows */ }
}

function remember() {
  past.push(mask.slice());
  if (past.length > 50) past.shift();
  future = [];
}

function restore(from, to) {
  if (!from.length) return;
  to.push(mask.slice());
  mask = from.pop();
  commit();
}
const undo = () => restore(past, future), redo = () => restore(future, past);

function stamp([x, y]) {
  const reach = radius - 0.5;
  for (let row = Math.max(0, y - radius); row <= Math.min(size - 1, y + radius); row++)
    for (let column = Math.max(0, x - radius); column <= Math.min(size - 1, x + radius); column++)
      if ((row - y) ** 2 + (column - x) ** 2 <= reach ** 2) mask[row * size + column] = label;
}

function stroke(to) {
  const from = last ?? to, steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  for (let step = 0; step <= steps; step++)
    stamp([0, 1].map((axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * step) / steps)));
  last = to;
}

function flood([x, y]) {
  const replaced = mask[y * size + x], waiting = [y * size + x];
  if (replaced === label) return;
  while (waiting.length) {
    const place = waiting.pop(), column = place % size;
    if (mask[place] !== replaced) continue;
    mask[place] = label;
    if (column > 0) waiting.push(place - 1);
    if (column < size - 1) waiting.push(place + 1);
    waiting.push(place - size, place + size);  // undefined, and so skipped, outside the mask
  }
}

function fill_all() {
  remember();
  mask.fill(label);
  commit();
}

function apply(place) {
  at = place;
  if (tool === "fill") flood(place); else stroke(place);
  show();
}

function begin(source, place) {
  painting = source;
  last = null;
  remember();
  apply(place);
}

function end(source) {
  if (painting !== source) return;
  painting = null;
  commit();
}

function mark() {
  marks.clearRect(0, 0, cursor.width, cursor.height);
  if (!by_keys) return;
  const reach = tool === "fill" ? 0.5 : radius - 0.5, [x, y] = at.map((place) => (place + 0.5) * fine);
  for (const [color, width] of [["#000", 5], ["#fff", 2]]) {
    marks.strokeStyle = color;
    marks.lineWidth = width;
    marks.beginPath();
    marks.arc(x, y, Math.max(4, reach * fine + 2), 0, 2 * Math.PI);
    marks.stroke();
  }
}

function locate(event) {
  const box = board.getBoundingClientRect();
  const shares = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return shares.map((share) => clamp(Math.floor(share * size), 0, size - 1));
}

function choose_label(index) {
  if (index >= classes.length) return;
  label = index;
  brushes.querySelectorAll("input").forEach((input, number) => { input.checked = number === index; });
  find("said").textContent = "brush: " + classes[index].name;
}

function choose_tool(name) {
  tool = name;
  for (const button of tools) button.setAttribute("aria-pressed", button.dataset.tool === name);
  mark();
}

function choose_radius(wanted) {
  radius = clamp(wanted, 1, max_radius);
  find("radius").value = radius;
  find("diameter").textContent = `${2 * radius - 1} px`;
  mark();
}

classes.forEach(({ name, color }, index) => {
  const line = document.createElement("label"), input = document.createElement("input"), swatch = document.createElement("span");
  Object.assign(input, { type: "radio", name: "steelgen-brush", checked: index === label });
  input.addEventListener("change", () => choose_label(index));
  swatch.className = "swatch";
  swatch.style.background = `rgb(${color.join(",")})`;
  line.title = index < 9 ? `${name} (key ${index + 1})` : name;
  line.append(input, swatch, name);
  brushes.append(line);
});

cursor.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  cursor.focus({ preventScroll: true });
  cursor.setPointerCapture(event.pointerId);
  by_keys = false;
  begin("pointer", locate(event));
  mark();
});
cursor.addEventListener("pointermove", (event) => {
  if (painting !== "pointer" || tool === "fill") return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) apply(locate(part));
});
for (const name of ["pointerup", "pointercancel"]) cursor.addEventListener(name, () => end("pointer"));

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const keys = {
  "[": () => choose_radius(radius - 1), "-": () => choose_radius(radius - 1),
  "]": () => choose_radius(radius + 1), "+": () => choose_radius(radius + 1),
  b: () => choose_tool("brush"), f: () => choose_tool("fill"), a: fill_all, u: undo,
};
cursor.addEventListener("keydown", (event) => {
  const { key } = event;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") { event.shiftKey ? redo() : undo(); }
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (arrows[key]) {
    const step = event.shiftKey ? Math.max(1, size >> 4) : 1;
    at = at.map((place, axis) => clamp(place + step * arrows[key][axis], 0, size - 1));
    if (painting === "key" && tool === "brush") apply(at);
  } else if (key === " " || key === "Enter") {
    if (!event.repeat) begin("key", at);
  } else if (key >= "1" && key <= "9") choose_label(Number(key) - 1);
  else if (keys[key]) keys[key]();
  else return;
  event.preventDefault();
  by_keys = true;
  mark();
});
cursor.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") end("key"); });
cursor.addEventListener("focus", () => { by_keys = cursor.matches(":focus-visible"); mark(); });
cursor.addEventListener("blur", () => { end("key"); by_keys = false; mark(); });

find("undo").addEventListener("click", undo);
find("redo").addEventListener("click", redo);
find("all").addEventListener("click", fill_all);
find("radius").max = max_radius;
find("radius").addEventListener("input", (event) => choose_radius(Number(event.target.value)));
for (const button of tools) button.addEventListener("click", () => choose_tool(button.dataset.tool));

watch("value", () => {
  const found = decode(props.value);
  if (!found) return commit();  // the initial, empty value of the page
  remember();
  mask = found;
  commit();
});

let stored = null;
try { stored = sessionStorage.getItem(storage_key); } catch { /* see above */ }
mask = decode(stored) ?? mask;
choose_tool("brush");
choose_radius(radius);
commit();
