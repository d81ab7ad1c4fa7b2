// A click in the triangle, in units of its side: x from the left corner, y upwards.
const told = (event) => {
  const svg = event.target.closest && event.target.closest("svg.pm-triangle");
  if (!svg) return;
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const { left, top, size, height } = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, Number(v)]));
  trigger("click", { x: (at.x - left) / size, y: (top + height - at.y) / size });
};
element.addEventListener("click", told);
