// jupyter-scatter's own view, with one difference: new points wait until it can draw them.
// The view refuses points while it draws, and drops them while the camera or the points move.

async function load(source) {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
}

// The model as the view sees it: it hears of new points when the plot is at rest, and then reads the newest.
function patient(model, el, life) {
  const whenAtRest = (call) => {
    const plot = [...el.querySelectorAll("*")].map((e) => e.api).find((api) => api?.draw);
    let moving = false, waiting = false;
    plot.subscribe("transitionStart", () => { moving = true; });
    plot.subscribe("transitionEnd", () => { moving = false; });
    const go = () => {
      if (life.ended) return;
      waiting = moving || plot.get("isDrawing");
      if (waiting) requestAnimationFrame(go); else call();
    };
    return () => { if (!waiting) go(); };
  };
  return {
    get: (key) => model.get(key),
    set: (key, value) => model.set(key, value),
    save_changes: () => model.save_changes(),
    send: (...message) => model.send(...message),
    on: (event, call, ...rest) => model.on(event, event === "change:points" ? whenAtRest(call) : call, ...rest),
  };
}

async function render({ model, el }) {
  const life = { ended: false }, view = await load(model.get("view_module"));
  const end = await view.render({ model: patient(model, el, life), el });
  return () => {
    life.ended = true;
    try { end(); } catch (error) { console.debug(error); }  // closed before it was drawn
  };
}
export default { render };
