// Draws the panels of a frame on a canvas, and says where the user clicked. Everything that a panel needs is in its message.

const bytes = (v) => v.buffer ? v.buffer.slice(v.byteOffset, v.byteOffset + v.byteLength) : v;
const floats = (v) => new Float32Array(bytes(v));
const INK = "#222", FAINT = "#ddd", FONT = "11px system-ui, sans-serif";

function ticks(low, high, log, room) {
  const many = Math.max(2, Math.floor(room)), out = [];
  if (log) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const every = Math.max(1, Math.ceil((last - first) / many));
    const within = Math.log10(high / low) < 1.5 ? [1, 2, 5] : [1];
    for (let e = first; e <= last; e += every) for (const m of within) out.push(m * 10 ** e);
  } else {
    const raw = Math.abs(high - low) / many, unit = 10 ** Math.floor(Math.log10(raw || 1));
    const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw * 0.999);
    for (let t = Math.ceil(Math.min(low, high) / step) * step; t <= Math.max(low, high) + step * 1e-6; t += step) out.push(t);
  }
  return out.filter((t) => t >= Math.min(low, high) * (log ? 0.999 : 1) - (log ? 0 : 1e-9) && t <= Math.max(low, high) * (log ? 1.001 : 1) + 1e-9);
}

function short(t) {
  if (t === 0 || Math.abs(t) < 1e-12) return "0";
  const size = Math.abs(t);
  if (size >= 1e5 || size < 1e-3) return t.toExponential(0).replace("e+", "e");
  return String(+t.toPrecision(4));
}

function place(panel, box) {  // where data lands on the canvas, and back
  const head = 20 + (panel.note ? 14 : 0) + (panel.marks.some((m) => m.name) ? 15 : 0);
  const left = panel.ticks && !panel.picture ? 48 : 8, foot = panel.ticks && !panel.picture ? 36 : 8;
  const p = { x: box.x + left, y: box.y + head, w: box.w - left - 12, h: box.h - head - foot };
  const scale = (v, log) => log ? Math.log10(v) : v;
  const [x0, x1] = panel.xlim.map((v) => scale(v, panel.log.includes("x")));
  const [y0, y1] = panel.ylim.map((v) => scale(v, panel.log.includes("y")));
  let ux = p.w / (x1 - x0), uy = p.h / (y1 - y0);
  if (panel.equal || panel.picture) {
    const u = Math.min(Math.abs(ux), Math.abs(uy));
    const w = u * Math.abs(x1 - x0), h = u * Math.abs(y1 - y0);
    p.x += (p.w - w) / 2; p.y += panel.picture ? 0 : (p.h - h) / 2; p.w = w; p.h = h;
    ux = Math.sign(ux) * u; uy = Math.sign(uy) * u;
  }
  const X = (v) => p.x + (scale(v, panel.log.includes("x")) - x0) * ux;
  const Y = (v) => p.y + p.h - (scale(v, panel.log.includes("y")) - y0) * uy;
  const back = (px, py) => [(px - p.x) / ux + x0, (p.y + p.h - py) / uy + y0];
  return { ...p, X, Y, back, panel };
}

function axes(c, at, box) {
  const { panel } = at;
  c.fillStyle = INK; c.textAlign = "left"; c.textBaseline = "top";
  c.font = "600 12px system-ui, sans-serif"; c.fillText(panel.title, box.x + 6, box.y + 3, box.w - 10);
  c.font = FONT;
  let y = box.y + 19;
  if (panel.note) { c.fillStyle = "#555"; c.fillText(panel.note, box.x + 6, y, box.w - 10); y += 14; }
  let x = box.x + 6;
  for (const m of panel.marks.filter((m) => m.name)) {
    c.fillStyle = c.strokeStyle = Array.isArray(m.color) ? m.color[0] : m.color;
    if (m.kind === "Line") { c.lineWidth = 2; c.setLineDash(m.dash ? [4, 3] : []); c.beginPath(); c.moveTo(x, y + 6); c.lineTo(x + 16, y + 6); c.stroke(); c.setLineDash([]); }
    else c.fillRect(x + 4, y + 2, 8, 8);
    c.fillStyle = INK; c.fillText(m.name, x + 20, y); x += 30 + c.measureText(m.name).width;
  }
  if (!panel.ticks || panel.picture) return;
  c.strokeStyle = FAINT; c.lineWidth = 1; c.strokeRect(at.x, at.y, at.w, at.h);
  c.fillStyle = INK; c.textAlign = "center";
  const xs = panel.xticks ? panel.xticks.map((t, i) => [i, t]) : ticks(...panel.xlim, panel.log.includes("x"), at.w / 70).map((t) => [t, short(t)]);
  const ys = panel.yticks ? panel.yticks.map((t, i) => [i, t]) : ticks(...panel.ylim, panel.log.includes("y"), at.h / 36).map((t) => [t, short(t)]);
  const room = at.w / Math.max(1, xs.length);
  for (const [t, text] of xs) {
    c.beginPath(); c.moveTo(at.X(t), at.y + at.h); c.lineTo(at.X(t), at.y + at.h + 3); c.stroke();
    c.fillText(text, at.X(t), at.y + at.h + 5, panel.xticks ? room : 60);
  }
  c.textAlign = "right"; c.textBaseline = "middle";
  for (const [t, text] of ys) {
    c.beginPath(); c.moveTo(at.x, at.Y(t)); c.lineTo(at.x + at.w, at.Y(t)); if (!panel.yticks) c.stroke();
    c.fillText(text, at.x - 4, at.Y(t), 44);
  }
  c.textAlign = "center"; c.textBaseline = "top"; c.fillText(panel.x, at.x + at.w / 2, at.y + at.h + 20, at.w);
  c.save(); c.translate(box.x + 3, at.y + at.h / 2); c.rotate(-Math.PI / 2); c.fillText(panel.y, 0, 0, at.h); c.restore();
}

const marks = {
  Line(c, at, m) {
    const x = floats(m.x), y = floats(m.y);
    c.strokeStyle = m.color; c.lineWidth = m.width; c.setLineDash(m.dash ? [5, 3] : []); c.beginPath();
    let pen = false;
    for (let i = 0; i < x.length; i++) {
      const px = at.X(x[i]), py = at.Y(y[i]);
      if (!Number.isFinite(px) || !Number.isFinite(py)) { pen = false; continue; }
      if (pen) c.lineTo(px, py); else c.moveTo(px, py);
      pen = true;
    }
    c.stroke(); c.setLineDash([]);
  },
  Dots(c, at, m) {
    const x = floats(m.x), y = floats(m.y), sizes = m.sizes && floats(m.sizes);
    const index = m.index && new Uint16Array(bytes(m.index));
    c.globalAlpha = m.alpha; c.fillStyle = m.color[0];
    for (let i = 0, last = 0; i < x.length; i++) {
      if (index && index[i] !== last) { last = index[i]; c.fillStyle = m.color[last]; }
      const r = (sizes ? sizes[i] : m.size) / 2, px = at.X(x[i]), py = at.Y(y[i]);
      if (r <= 1.5 || x.length > 3000) c.fillRect(px - r, py - r, 2 * r, 2 * r);
      else { c.beginPath(); c.arc(px, py, r, 0, 7); c.fill(); }
    }
    c.globalAlpha = 1;
  },
  Bars(c, at, m) {
    const x = floats(m.x), h = floats(m.height), zero = at.panel.log.includes("y") ? at.y + at.h : at.Y(0);
    c.fillStyle = m.color;
    for (let i = 0; i < x.length; i++) {
      const a = at.X(x[i] - m.width / 2), b = at.X(x[i] + m.width / 2), top = at.Y(h[i]);
      c.fillRect(a, Math.min(top, zero), Math.max(1, b - a), Math.abs(zero - top));
    }
  },
  Picture(c, at, m) {
    const [w, h] = m.size, off = new OffscreenCanvas(w, h);
    off.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(bytes(m.pixels)), w, h), 0, 0);
    c.imageSmoothingEnabled = m.smooth; c.drawImage(off, at.X(0), at.Y(0), at.X(w) - at.X(0), at.Y(h) - at.Y(0));
    if (!m.grid || !m.cell) return;
    const [rows, columns] = m.grid, [row, column] = m.cell, dx = w / columns, dy = h / rows;
    for (const [color, width] of [["#000", 4], ["#fff", 2]]) {
      c.strokeStyle = color; c.lineWidth = width;
      c.strokeRect(at.X(column * dx), at.Y(row * dy), at.X(dx) - at.X(0), at.Y(dy) - at.Y(0));
    }
  },
  Label(c, at, m) { c.fillStyle = m.color; c.textAlign = "center"; c.textBaseline = "middle"; c.fillText(m.text, at.X(m.x), at.Y(m.y)); },
};

function render({ model, el }) {
  const canvas = document.createElement("canvas");
  canvas.className = "ssl-nb-canvas"; canvas.tabIndex = 0; canvas.setAttribute("role", "img");
  el.classList.add("ssl-nb-live"); el.appendChild(canvas);
  let placed = [], active = null, waiting = false;

  function draw() {
    waiting = false;
    const frame = model.get("frame"), width = el.clientWidth;
    if (!frame.panels || !width) return;
    const columns = Math.max(1, Math.min(frame.columns, frame.panels.length, Math.floor(width / 200)));
    const w = width / columns, h = Math.min(w * 0.8, frame.height), rows = Math.ceil(frame.panels.length / columns);
    const sharp = window.devicePixelRatio || 1;
    canvas.width = width * sharp; canvas.height = rows * h * sharp;
    canvas.style.width = `${width}px`; canvas.style.height = `${rows * h}px`;
    const c = canvas.getContext("2d");
    c.scale(sharp, sharp); c.fillStyle = "#fff"; c.fillRect(0, 0, width, rows * h);
    placed = frame.panels.map((panel, i) => {
      const box = { x: (i % columns) * w, y: Math.floor(i / columns) * h, w, h }, at = place(panel, box);
      c.save(); c.beginPath(); c.rect(box.x, box.y, w, h); c.clip(); axes(c, at, box); c.restore();
      c.save(); c.beginPath(); c.rect(at.x - 2, at.y - 2, at.w + 4, at.h + 4); c.clip(); c.font = FONT;
      for (const m of panel.marks) marks[m.kind](c, at, m);
      c.restore();
      return { ...at, box };
    });
    canvas.setAttribute("aria-label", frame.alt); canvas.dataset.frame = frame.count;
    canvas.dataset.places = JSON.stringify(placed.map(({ x, y, w, h }) => [x, y, w, h].map(Math.round)));
    model.set("drawn", frame.count); model.save_changes();
  }
  const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

  let picks = 0;
  const pick = (panel, x, y, cell) => { active = panel; model.set("pick", { panel, x, y, cell, count: ++picks }); model.save_changes(); };
  const picture = (i) => placed[i] && placed[i].panel.marks.find((m) => m.grid);
  canvas.addEventListener("click", (event) => {
    const i = placed.findIndex((p) => event.offsetX >= p.x && event.offsetX <= p.x + p.w && event.offsetY >= p.y && event.offsetY <= p.y + p.h);
    if (i < 0) return;
    const [x, y] = placed[i].back(event.offsetX, event.offsetY), m = picture(i);
    const cell = m ? [Math.min(m.grid[0] - 1, Math.floor(y / m.size[1] * m.grid[0])), Math.min(m.grid[1] - 1, Math.floor(x / m.size[0] * m.grid[1]))] : null;
    pick(i, x, y, cell);
  });
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Enter: [0, 0] };
  canvas.addEventListener("keydown", (event) => {
    const move = moves[event.key], i = active !== null && picture(active) ? active : placed.findIndex((_, j) => picture(j)), m = picture(i);
    if (!move || !m) return;
    event.preventDefault(); event.stopPropagation();
    const from = m.cell || [0, 0], cell = move.map((d, axis) => Math.max(0, Math.min(m.grid[axis] - 1, from[axis] + d)));
    m.cell = cell; pick(i, (cell[1] + 0.5) * m.size[0] / m.grid[1], (cell[0] + 0.5) * m.size[1] / m.grid[0], cell);
  });
  const sizes = new ResizeObserver(later);
  sizes.observe(el); model.on("change:frame", later); later();
  return () => sizes.disconnect();
}
export default { render };
