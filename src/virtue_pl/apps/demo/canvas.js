// A canvas for visual prompts: it shows an image, takes clicks, boxes and brushed masks, and emits a request in the server's schema.
//
// props.value: {image, units: "pixel", regions: [{points, labels, box, mask}]}, as the server's schema has it.
// props.picture: the image: {serial, image, name, source, width, height, regions}; a new `serial` brings other regions
// (those of a hit), or none. props.view: what an action changes: {overlay, message, problem}.
const COLOURS = ['#e11d48', '#2563eb', '#16a34a', '#d97706', '#9333ea', '#0891b2'];
const MOST_CELLS = 512;
const DRAG = 6;
const LEAST_ZOOM = 1;
const MOST_ZOOM = 8;
const find = (name) => element.querySelector(`[data-part="${name}"]`);
const [stage, view, picture, overlay, paint, marks] = ['stage', 'view', 'image', 'overlay', 'paint', 'marks'].map(find);

let tool = 'click';
let regions = [{}];
let active = 0;
let past = [];
let size = [1, 1];
let cells = [1, 1];
let zoom = 1;
let pan = [0, 0];
let drag = null;
let cross = null;
let serial = null;

const pressed = (name) => find(name).getAttribute('aria-pressed') === 'true';
const press = (name, on) => find(name).setAttribute('aria-pressed', String(on));
const isEmpty = (region) => !region.box && !region.mask && !(region.points || []).length;
const copy = (all) => all.map((region) => ({
  ...region,
  points: region.points && region.points.map((point) => [...point]),
  labels: region.labels && [...region.labels],
  mask: region.mask && region.mask.slice(),
}));
const remember = () => { past.push([copy(regions), active]); if (past.length > 100) past.shift(); };
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const round = (value) => Math.round(value * 10) / 10;

// A mask as COCO's run lengths, down the columns, at the image's size.
function runLengths(mask) {
  const [width, height] = size;
  const counts = [];
  let before = 0, run = 0;
  for (let x = 0; x < width; x++) {
    const column = Math.floor((x + 0.5) * cells[0] / width);
    for (let y = 0; y < height; y++) {
      const inside = mask[Math.floor((y + 0.5) * cells[1] / height) * cells[0] + column];
      if (inside === before) { run++; } else { counts.push(run); before = inside; run = 1; }
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

function emit() {
  const asked = regions.filter((region) => !isEmpty(region)).map((region) => {
    const found = {};
    if (region.box) found.box = region.box;
    if ((region.points || []).length) { found.points = region.points; found.labels = region.labels; }
    if (region.mask) found.mask = runLengths(region.mask);
    return found;
  });
  find('busy').hidden = false;
  props.value = { image: (props.picture || {}).image, units: 'pixel', regions: asked };
  trigger('input');
}

function mark(name, attributes, title) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (title) made.append(Object.assign(document.createElementNS('http://www.w3.org/2000/svg', 'title'), { textContent: title }));
  marks.append(made);
  return made;
}

function drawMarks() {
  marks.replaceChildren();
  marks.setAttribute('viewBox', `0 0 ${size[0]} ${size[1]}`);
  const scale = size[0] / Math.max(1, picture.clientWidth * zoom);
  regions.forEach((region, number) => {
    const colour = COLOURS[number % COLOURS.length];
    if (region.box) {
      const [x0, y0, x1, y1] = region.box;
      const rectangle = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: 'none' };
      mark('rect', { ...rectangle, stroke: '#fff', 'stroke-width': 5 * scale });
      mark('rect', { ...rectangle, stroke: colour, 'stroke-width': 3 * scale });
    }
    (region.points || []).forEach(([x, y], point) => {
      const inside = region.labels[point] === 1;
      mark('circle', { cx: x, cy: y, r: 8 * scale, fill: inside ? colour : '#fff', stroke: inside ? '#fff' : colour, 'stroke-width': 3 * scale },
        inside ? 'inside' : 'outside');
      if (!inside) mark('line', { x1: x - 4 * scale, x2: x + 4 * scale, y1: y, y2: y, stroke: colour, 'stroke-width': 3 * scale });
    });
  });
  if (drag && drag.box) {
    const [x0, y0, x1, y1] = drag.box;
    mark('rect', { x: x0, y: y0, width: x1 - x0, height: y1 - y0, fill: '#fff3', stroke: '#fff', 'stroke-width': 2 * scale, 'stroke-dasharray': `${6 * scale}` });
  }
  if (cross) {
    const [x, y] = cross;
    for (const [stroke, width] of [['#000', 4], ['#fff', 2]]) {
      mark('line', { x1: x - 16 * scale, x2: x + 16 * scale, y1: y, y2: y, stroke, 'stroke-width': width * scale });
      mark('line', { x1: x, x2: x, y1: y - 16 * scale, y2: y + 16 * scale, stroke, 'stroke-width': width * scale });
    }
  }
}

function drawPaint() {
  paint.width = cells[0];
  paint.height = cells[1];
  const context = paint.getContext('2d');
  const pixels = context.createImageData(cells[0], cells[1]);
  regions.forEach((region, number) => {
    if (!region.mask) return;
    const colour = COLOURS[number % COLOURS.length];
    const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
    region.mask.forEach((inside, cell) => { if (inside) pixels.data.set([red, green, blue, 140], 4 * cell); });
  });
  context.putImageData(pixels, 0, 0);
}

function drawRegions() {
  const list = find('regions');
  list.replaceChildren();
  regions.forEach((region, number) => {
    const button = Object.assign(document.createElement('button'), { type: 'button' });
    button.setAttribute('aria-pressed', String(number === active));
    button.dataset.region = number;
    const dot = document.createElement('i');
    dot.style.background = COLOURS[number % COLOURS.length];
    button.append(dot, `Region ${number + 1}`);
    button.addEventListener('click', () => { active = number; draw(); });
    list.append(button);
  });
  const more = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Another region', title: 'Another region (n)' });
  more.dataset.part = 'more';
  more.disabled = isEmpty(regions[regions.length - 1]) || regions.length >= COLOURS.length;
  more.addEventListener('click', another);
  list.append(more);
  find('undo').disabled = !past.length;
  find('clear').disabled = regions.every(isEmpty);
}

function draw() { drawMarks(); drawPaint(); drawRegions(); }

function fitView() {
  const [width, height] = [picture.clientWidth, picture.clientHeight];
  pan = [clamp(pan[0], width * (1 - zoom), 0), clamp(pan[1], height * (1 - zoom), 0)];
  view.style.transform = `translate(${pan[0]}px, ${pan[1]}px) scale(${zoom})`;
  drawMarks();
}

// Zoom by a factor about a point in the stage's pixels, or about its middle.
function zoomBy(factor, at) {
  const box = picture.getBoundingClientRect();
  const [x, y] = at || [box.left + box.width / 2, box.top + box.height / 2];
  const before = zoom;
  zoom = clamp(zoom * factor, LEAST_ZOOM, MOST_ZOOM);
  pan = [pan[0] - (x - box.left) * (zoom / before - 1), pan[1] - (y - box.top) * (zoom / before - 1)];
  fitView();
}

function position(event) {
  const box = picture.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]];
}

const within = ([x, y]) => [round(clamp(x, 0, size[0])), round(clamp(y, 0, size[1]))];
const isInside = ([x, y]) => x >= 0 && y >= 0 && x <= size[0] && y <= size[1];

function addPoint(point, label, more) {
  remember();
  const region = regions[active];
  const points = more ? region.points || [] : [];
  const labels = more ? region.labels || [] : [];
  regions[active] = { ...(more ? region : {}), points: [...points, within(point)], labels: [...labels, label] };
  draw();
  emit();
}

function setBox([x0, y0, x1, y1]) {
  remember();
  regions[active] = { box: [...within([Math.min(x0, x1), Math.min(y0, y1)]), ...within([Math.max(x0, x1), Math.max(y0, y1)])] };
  draw();
  emit();
}

function brushAt([x, y]) {
  const radius = Math.max(2, Math.max(...cells) / 32 / zoom);
  const [middle, row] = [x / size[0] * cells[0], y / size[1] * cells[1]];
  const mask = regions[active].mask;
  const value = pressed('outside') ? 0 : 1;
  for (let v = Math.max(0, Math.floor(row - radius)); v < Math.min(cells[1], row + radius); v++) {
    for (let u = Math.max(0, Math.floor(middle - radius)); u < Math.min(cells[0], middle + radius); u++) {
      if ((u + 0.5 - middle) ** 2 + (v + 0.5 - row) ** 2 <= radius ** 2) mask[v * cells[0] + u] = value;
    }
  }
}

function startBrush(at) {
  remember();
  const mask = regions[active].mask || new Uint8Array(cells[0] * cells[1]);
  regions[active] = { mask };
  brushAt(at);
  drawPaint();
}

function endBrush() {
  if (!regions[active].mask.some((inside) => inside)) regions[active] = {};
  draw();
  emit();
}

function another() {
  if (isEmpty(regions[regions.length - 1]) || regions.length >= COLOURS.length) return;
  remember();
  regions.push({});
  active = regions.length - 1;
  draw();
}

function undo() {
  if (!past.length) return;
  [regions, active] = past.pop();
  draw();
  emit();
}

function clear() {
  if (regions.every(isEmpty)) return;
  remember();
  regions = [{}];
  active = 0;
  draw();
  emit();
}

function choose(name) {
  tool = name;
  stage.dataset.tool = name;
  element.querySelectorAll('[data-tool][role="radio"]').forEach((button) => button.setAttribute('aria-checked', String(button.dataset.tool === name)));
}

stage.addEventListener('contextmenu', (event) => event.preventDefault());
stage.addEventListener('pointerdown', (event) => {
  if (!(props.picture || {}).image) return;
  stage.focus({ preventScroll: true });
  const at = position(event);
  if (!isInside(at)) { say('That is outside of the image: click on it.', true); return; }
  cross = null;
  drag = { at, x: event.clientX, y: event.clientY, right: event.button === 2, type: event.pointerType, id: event.pointerId };
  if (event.button === 1) { drag.pan = [...pan]; event.preventDefault(); }
  if (tool === 'brush' && event.button === 0) { drag.brush = true; startBrush(at); }
  if (tool !== 'click' || event.pointerType === 'mouse') stage.setPointerCapture(event.pointerId);
});
stage.addEventListener('pointermove', (event) => {
  if (!drag || event.pointerId !== drag.id) return;
  const at = position(event);
  if (drag.pan) {
    pan = [drag.pan[0] + event.clientX - drag.x, drag.pan[1] + event.clientY - drag.y];
    fitView();
  } else if (drag.brush) {
    brushAt(within(at));
    drawPaint();
  } else if (!drag.right && (tool === 'box' || (tool === 'click' && drag.type === 'mouse'))) {
    const far = Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > DRAG;
    if (far || drag.box) {
      const [from, to] = [within(drag.at), within(at)];
      drag.box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      drawMarks();
    }
  }
});
stage.addEventListener('pointerup', (event) => {
  const done = drag;
  drag = null;
  if (!done || done.pan || event.pointerId !== done.id) return;
  if (done.brush) { endBrush(); return; }
  if (done.box && done.box[2] - done.box[0] >= 1 && done.box[3] - done.box[1] >= 1) { setBox(done.box); return; }
  if (tool === 'brush') return;
  if (tool === 'box' && !done.right) { say('Drag from one corner of the box to the other.', true); draw(); return; }
  if (done.right) { addPoint(done.at, 0, true); return; }
  addPoint(done.at, pressed('outside') ? 0 : 1, pressed('outside') || pressed('add') || event.shiftKey);
});
stage.addEventListener('pointercancel', () => { if (drag && drag.brush) endBrush(); drag = null; drawMarks(); });
stage.addEventListener('wheel', (event) => {
  if (!event.ctrlKey && zoom === 1 && event.deltaY > 0) return;
  if (!event.ctrlKey && !event.altKey && zoom === 1) return;
  event.preventDefault();
  zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, [event.clientX, event.clientY]);
}, { passive: false });

const KEYS = {
  u: undo, c: clear, n: another, 1: () => choose('click'), 2: () => choose('box'), 3: () => choose('brush'),
  o: () => press('outside', !pressed('outside')), a: () => press('add', !pressed('add')),
  '+': () => zoomBy(1.5), '=': () => zoomBy(1.5), '-': () => zoomBy(1 / 1.5), 0: () => zoomBy(1 / MOST_ZOOM),
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
stage.addEventListener('keydown', (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === 'z') { event.preventDefault(); undo(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || !(props.picture || {}).image) return;
  if (ARROWS[event.key]) {
    event.preventDefault();
    const step = Math.max(...size) / (event.shiftKey ? 100 : 25);
    const [x, y] = cross || [size[0] / 2, size[1] / 2];
    cross = within([x + ARROWS[event.key][0] * step, y + ARROWS[event.key][1] * step]);
    drawMarks();
  } else if (event.key === 'Enter') {
    event.preventDefault();
    cross = cross || [size[0] / 2, size[1] / 2];
    addPoint(cross, pressed('outside') ? 0 : 1, pressed('outside') || pressed('add') || event.shiftKey);
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
element.querySelectorAll('[data-tool][role="radio"]').forEach((button) => button.addEventListener('click', () => choose(button.dataset.tool)));
for (const name of ['outside', 'add']) find(name).addEventListener('click', () => press(name, !pressed(name)));
find('undo').addEventListener('click', undo);
find('clear').addEventListener('click', clear);
find('zoom-in').addEventListener('click', () => zoomBy(1.5));
find('zoom-out').addEventListener('click', () => zoomBy(1 / 1.5));
find('zoom-reset').addEventListener('click', () => zoomBy(1 / MOST_ZOOM));
new ResizeObserver(fitView).observe(picture);

function say(text, problem) {
  find('message').textContent = text || '';
  find('message').dataset.kind = problem ? 'problem' : '';
}

// Show another image with its regions.
function showPicture() {
  const given = props.picture || {};
  if (given.serial === serial) return;
  serial = given.serial;
  size = [given.width || 1, given.height || 1];
  const scale = Math.min(1, MOST_CELLS / Math.max(...size));
  cells = size.map((side) => Math.max(1, Math.round(side * scale)));
  view.style.setProperty('--aspect', size[0] / size[1]);
  picture.src = given.source || '';
  picture.alt = given.name || '';
  regions = (given.regions || []).map((region) => ({ ...region }));
  if (!regions.length) regions = [{}];
  active = regions.length - 1;
  past = [];
  cross = null;
  zoom = 1;
  pan = [0, 0];
  fitView();
  draw();
}

// Show what an action has changed: the masks, a message. A problem leaves the masks.
function showView() {
  const given = props.view || {};
  find('busy').hidden = true;
  if (!given.problem) {
    overlay.hidden = !given.overlay;
    if (given.overlay) overlay.src = given.overlay;
  }
  say(given.problem || given.message, Boolean(given.problem));
}

watch('picture', showPicture);
watch('view', showView);
choose('click');
showPicture();
showView();
