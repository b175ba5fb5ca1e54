"use strict";
// Draws the curves of the page with uPlot. Text from files reaches the page through textContent and the canvas alone.
(() => {
  const data = JSON.parse(document.getElementById("curves").textContent);
  const style = () => getComputedStyle(document.documentElement);
  const css = (name) => style().getPropertyValue(name).trim();
  const hidden = new Set();
  const plots = [];
  let axis = "step";

  const digits = (value, most) => value.toLocaleString("en", { maximumSignificantDigits: most });
  const scaled = (value, unit) => {
    const power = value > 0 ? Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3))) : 0;
    return `${digits(value / 1000 ** power, 4)} ${["", "k", "M", "G", "T"][power]}${unit}`;
  };
  const clock = (value) => {
    const whole = Math.round(value), pad = (part) => String(part).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours}:${pad(minutes)}:${pad(whole % 60)}` : `${minutes}:${pad(whole % 60)}`;
  };
  const along = {
    step: (value) => digits(Math.round(value), 9),
    seconds: clock,
    bytes: (value) => scaled(value, "B"),
  };
  const minutes = [60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 43200, 86400, 604800];
  const counted = [...Array(39)].map((_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3));
  const steps = { step: counted, seconds: [1, 2, 5, 10, 15, 30, ...minutes], bytes: counted };
  const up = { speed: (value) => scaled(value, "B") };
  const figure = (key, value) => (up[key] ? `${up[key](value)}/s` : digits(value, 5));

  // What is drawn: for each run its curve, and where the chart is of the loss its validations.
  function lines(key) {
    const found = [];
    data.runs.forEach((run, index) => {
      found.push({ run, index, x: run.x, y: run.y[key], name: run.name });
      const scored = run.validation;
      if (key === "bpb" && scored.bpb.length)
        found.push({ run, index, x: scored, y: scored.bpb, name: `${run.name}, validation`, marked: true, scored });
    });
    return found.filter((line) => line.y.length && line.x[axis].length);
  }

  // The first steps are so much worse than the rest that they would flatten it: the scale begins behind them.
  function limits(plot, shown) {
    // The ends of what is about to be shown: the scale itself still has those of before.
    const { min, max } = plot.series[0];
    const whole = min === plot.data[0][0] && max === plot.data[0][plot.data[0].length - 1];
    const from = whole ? min + (max - min) * 0.05 : min;
    let low = Infinity, high = -Infinity;
    for (const start of [from, min]) {
      shown.forEach((line, index) => {
        if (hidden.has(line.index)) return;
        plot.data[0].forEach((x, at) => {
          const value = plot.data[index + 1][at];
          if (value == null || x < start || x > max) return;
          low = Math.min(low, value);
          high = Math.max(high, value);
        });
      });
      if (low <= high) break;
    }
    return low <= high ? [low, high] : [0, 1];
  }

  function range(plot, key, shown) {
    const [low, high] = limits(plot, shown);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    return [key === "bpb" ? low - room : 0, high + room];
  }

  function whiskers(plot, shown) {
    const one = data.runs.length === 1;
    shown.forEach((line) => {
      if (!one || !line.scored || hidden.has(line.index)) return;
      plot.ctx.save();
      plot.ctx.strokeStyle = css("--second");
      plot.ctx.lineWidth = 1.5 * devicePixelRatio;
      line.scored.low.forEach((low, at) => {
        const high = line.scored.high[at], x = plot.valToPos(line.x[axis][at], "x", true);
        if (low == null || high == null || line.x[axis][at] < plot.scales.x.min || line.x[axis][at] > plot.scales.x.max)
          return;
        plot.ctx.beginPath();
        plot.ctx.moveTo(x, Math.min(plot.valToPos(low, "y", true), plot.bbox.top + plot.bbox.height));
        plot.ctx.lineTo(x, Math.max(plot.valToPos(high, "y", true), plot.bbox.top));
        plot.ctx.stroke();
      });
      plot.ctx.restore();
    });
  }

  const colour = (line) =>
    css(data.runs.length === 1 ? (line.marked ? "--second" : "--first") : `--run${line.run.colour}`);

  function nearest(values, index) {
    for (let off = 0; off < values.length; off++) {
      if (values[index - off] != null) return values[index - off];
      if (values[index + off] != null) return values[index + off];
    }
    return null;
  }

  function tell(plot, key, shown, tip) {
    const { left, idx } = plot.cursor;
    tip.replaceChildren();
    // Of several runs the rows would hide the other charts: they stand where the pointer is.
    tip.hidden = left == null || left < 0 || idx == null || (data.runs.length > 1 && !plot.root.matches(":hover"));
    if (tip.hidden) return;
    tip.classList.toggle("left", left > plot.over.clientWidth / 2);
    const row = (text, line) => {
      const node = document.createElement("div");
      if (line) {
        const key = document.createElement("span");
        key.className = "key";
        key.style.background = colour(line);
        node.append(key);
      }
      node.append(text);
      tip.append(node);
    };
    const many = data.runs.length > 1, values = new Map();
    shown.forEach((line, index) => {
      const value = hidden.has(line.index) ? null : nearest(plot.data[index + 1], idx);
      // With several runs a validation stands in the line of its run.
      if (value != null && many && values.has(line.run)) values.get(line.run).text += ` / ${figure(key, value)}`;
      else if (value != null) values.set(many ? line.run : line, { line, text: figure(key, value) });
    });
    const what = many && key === "bpb" ? ": training / validation" : "";
    row(`${axis === "step" ? "step " : ""}${along[axis](plot.data[0][idx])}${what}`);
    values.forEach(({ line, text }) => row(many || key === "bpb" ? `${text}  ${line.name}` : text, line));
  }

  function draw(box) {
    const key = box.dataset.y, shown = lines(key);
    box.replaceChildren();
    if (!shown.length) {
      box.textContent = "nothing was logged";
      return;
    }
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    const many = data.runs.length > 1;
    const ink = () => css("--quiet"), grid = { stroke: () => css("--line"), width: 1 };
    const font = "12px system-ui, sans-serif", ticks = { ...grid, size: 4 };
    const plot = new uPlot(
      {
        width: box.clientWidth,
        height: box.classList.contains("small") ? 200 : 320,
        legend: { show: false },
        cursor: { sync: { key: "curves" }, points: { show: false }, y: false },
        scales: { x: { time: false }, y: { range: (self) => range(self, key, shown) } },
        axes: [
          { stroke: ink, grid: { show: false }, ticks, font, size: 34, space: 56, incrs: steps[axis], values: (_, at) => at.map(along[axis]) },
          { stroke: ink, grid, ticks, font, size: 62, values: (_, at) => at.map(up[key] || ((value) => digits(value, 4))) },
        ],
        series: [
          {},
          ...shown.map((line) => ({
            label: line.name,
            stroke: () => colour(line),
            alpha: many && key === "bpb" && !line.marked ? 0.45 : 1,
            width: line.marked ? 2 : 1.3,
            spanGaps: true,
            show: !hidden.has(line.index),
            points: { show: line.marked || line.y.length < 2, size: 6, fill: () => colour(line) },
          })),
        ],
        hooks: {
          draw: [(self) => whiskers(self, shown)],
          setCursor: [(self) => tell(self, key, shown, tip)],
        },
      },
      uPlot.join(shown.map((line) => [line.x[axis], line.y])),
      box,
    );
    plot.root.append(tip);
    plots.push({ plot, box, shown });
  }

  function drawAll() {
    plots.splice(0).forEach(({ plot }) => plot.destroy());
    document.querySelectorAll(".chart").forEach(draw);
  }

  document.querySelectorAll("input[name=axis]").forEach((choice) =>
    choice.addEventListener("change", () => {
      axis = choice.value;
      drawAll();
    }),
  );
  document.querySelectorAll("button.chip").forEach((chip) =>
    chip.addEventListener("click", () => {
      const index = Number(chip.dataset.run);
      if (!hidden.delete(index)) hidden.add(index);
      chip.setAttribute("aria-pressed", String(!hidden.has(index)));
      plots.forEach(({ plot, shown }) =>
        shown.forEach((line, at) => line.index === index && plot.setSeries(at + 1, { show: !hidden.has(index) })),
      );
    }),
  );
  const fit = () =>
    plots.forEach(({ plot, box }) => {
      if (box.clientWidth && box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: plot.height });
    });
  new ResizeObserver(fit).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach(({ plot }) => plot.redraw()));
  const checked = document.querySelector("input[name=axis]:checked");
  if (checked) axis = checked.value;
  drawAll();
})();
