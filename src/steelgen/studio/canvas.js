// The canvas of the studio: hard pixels of class indices at the network's size. Runs once, when the page has loaded it.
// props.value is JSON as `encode_mask` writes it, or "" at first, props.classes a list of {name, color}, props.size the edge in px.
const size = props.size, classes = props.classes, value_key = "steelgen-mask-" + props.store;
const find = (name) => element.querySelector("." + name);
const board = find("board"), cursor = find("cursor"), brushes = find("brushes"), said = find("said");
const paint = board.getContext("2d"), marks = cursor.getContext("2d");
const fine = Math.max(1, Math.floor(512 / size));  // pixels of the cursor's layer a pixel of the mask
board.width = board.height = size;
cursor.width = cursor.height = size * fine;

let mask = new Uint8Array(size * size), label = Math.min(1, classes.length - 1), radius = Math.max(1, Math.round(size / 20));
let tool = "brush", past = [], future = [], last = null, at = [size >> 1, size >> 1], by_keys = false, held = false;

const colors = classes.map(({ color }) => color);
const say = (text) => { said.textContent = text; };

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
  mask.forEach((index, place) => pixels.data.set([...colors[index], 255], 4 * place));
  paint.putImageData(pixels, 0, 0);
}

function hand_over() {
  props.value = encode();
  try { sessionStorage.setItem(value_key, props.value); } catch { /* private windows may have none */ }
}

function begin() {
  past.push(mask.slice());
  if (past.length > 50) past.shift();
  future = [];
}

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
  const replaced = mask[y * size + x];
  if (replaced === label) return;
  const waiting = [y * size + x];
  while (waiting.length) {
    const place = waiting.pop();
    if (mask[place] !== replaced) continue;
    mask[place] = label;
    const column = place % size;
    if (column > 0) waiting.push(place - 1);
    if (column < size - 1) waiting.push(place + 1);
    if (place >= size) waiting.push(place - size);
    if (place < size * (size - 1)) waiting.push(place + size);
  }
}

function apply(place) {
  if (tool === "fill") flood(place); else stroke(place);
  show();
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
  const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return place.map((share) => Math.max(0, Math.min(size - 1, Math.floor(share * size))));
}

function travel(from, to) {
  if (!from.length) return;
  to.push(mask.slice());
  mask = from.pop();
  show();
  hand_over();
}
const undo = () => travel(past, future), redo = () => travel(future, past);

function fill_all() {
  begin();
  mask.fill(label);
  show();
  hand_over();
}

function choose_label(index) {
  if (index >= classes.length) return;
  label = index;
  brushes.querySelectorAll("input").forEach((input, number) => { input.checked = number === index; });
  say("brush: " + classes[index].name);
}

function choose_tool(name) {
  tool = name;
  for (const button of element.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
  mark();
}

function choose_radius(wanted) {
  radius = Math.max(1, Math.min(Math.max(2, size >> 2), wanted));
  find("radius").value = radius;
  find("diameter").textContent = `${2 * radius - 1} px`;
  mark();
}

classes.forEach(({ name, color }, index) => {
  const line = document.createElement("label"), input = document.createElement("input"), swatch = document.createElement("span");
  const text = document.createElement("span");
  Object.assign(input, { type: "radio", name: "steelgen-brush", checked: index === label });
  input.addEventListener("change", () => choose_label(index));
  swatch.className = "swatch";
  swatch.style.background = `rgb(${color.join(",")})`;
  text.textContent = name;
  line.title = index < 9 ? `${name} (key ${index + 1})` : name;
  line.append(input, swatch, text);
  brushes.append(line);
});

cursor.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  event.preventDefault();
  cursor.focus({ preventScroll: true });
  cursor.setPointerCapture(event.pointerId);
  by_keys = false;
  held = true;
  last = null;
  begin();
  at = locate(event);
  apply(at);
  mark();
});
cursor.addEventListener("pointermove", (event) => {
  if (!held || tool === "fill") return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) apply((at = locate(part)));
});
for (const name of ["pointerup", "pointercancel"])
  cursor.addEventListener(name, () => {
    if (!held) return;
    held = false;
    hand_over();
  });

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let down = false;
cursor.addEventListener("keydown", (event) => {
  const { key } = event;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") { event.shiftKey ? redo() : undo(); }
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (arrows[key]) {
    const step = event.shiftKey ? Math.max(1, size >> 4) : 1;
    at = at.map((place, axis) => Math.max(0, Math.min(size - 1, place + step * arrows[key][axis])));
    if (down && tool === "brush") apply(at);
  } else if (key === " " || key === "Enter") {
    if (!event.repeat) { begin(); last = null; apply(at); down = true; }
  } else if (key >= "1" && key <= "9") choose_label(Number(key) - 1);
  else if (key === "[" || key === "-") choose_radius(radius - 1);
  else if (key === "]" || key === "+") choose_radius(radius + 1);
  else if (key === "b") choose_tool("brush");
  else if (key === "f") choose_tool("fill");
  else if (key === "a") fill_all();
  else if (key === "u") undo();
  else return;
  event.preventDefault();
  by_keys = true;
  mark();
});
function release() {
  if (!down) return;
  down = false;
  hand_over();
}
cursor.addEventListener("keyup", (event) => { if (event.key === " " || event.key === "Enter") release(); });
cursor.addEventListener("focus", () => { by_keys = cursor.matches(":focus-visible"); mark(); });
cursor.addEventListener("blur", () => { release(); by_keys = false; mark(); });

find("undo").addEventListener("click", undo);
find("redo").addEventListener("click", redo);
find("all").addEventListener("click", fill_all);
find("radius").max = Math.max(2, size >> 2);
find("radius").addEventListener("input", (event) => choose_radius(Number(event.target.value)));
for (const button of element.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose_tool(button.dataset.tool));

watch("value", () => {
  const found = decode(props.value);
  if (!found) return hand_over();  // the page has only now set what it began with: nothing
  begin();
  mask = found;
  show();
  hand_over();
});

let stored = null;
try { stored = sessionStorage.getItem(value_key); } catch { /* as above */ }
mask = decode(stored) ?? mask;
choose_tool("brush");
choose_radius(radius);
show();
hand_over();
