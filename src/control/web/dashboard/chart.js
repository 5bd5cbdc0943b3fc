/**
 * A chart of lines over time, on a canvas. The newest moment is at the right edge, so that lines scroll as moments come. The
 * legend has the newest values, or those under the pointer.
 *
 * Nothing is measured while it draws: the size comes from an observer, the colours are read when the theme changes.
 *
 * @module
 */

import { fill, h, inFrame, set, write } from './dom.js';
import { axisTime, clock } from './format.js';

/** Room for the axes, in pixels. */
const LEFT = 62;
const BOTTOM = 18;
const TOP = 8;
const RIGHT = 8;
/** How many lines have a colour of their own. */
export const LINES_MAX = 8;
/** How often what is read aloud is written anew. */
const ALOUD_MS = 10_000;

/**
 * @typedef {object} Line
 * @property {string} name in the legend
 * @property {string} column
 * @property {boolean} [fills] whether the space below is coloured
 */

/** @type {Set<Chart>} */
const charts = new Set();

/** Colours are other ones now. */
export function themeChanged() {
  for (const chart of charts) chart._restyle();
}

export class Chart {
  /**
   * @param {object} options
   * @param {string} options.title
   * @param {string} [options.hint] what is measured
   * @param {(value: number) => string} options.format
   * @param {Line[]} options.lines
   * @param {boolean} [options.binary] whether the axis goes by powers of two
   * @param {number} [options.least] the axis reaches at least so far
   */
  constructor({ title, hint, format, lines, binary = false, least = 1 }) {
    this._title = title;
    this._format = format;
    this._binary = binary;
    this._least = least;
    /** @type {import('./series.js').Series | undefined} */
    this._series = undefined;
    this._span_ms = MINUTE_MS;
    this._step_ms = 1000;
    /** @type {number | undefined} where the pointer is */
    this._x = undefined;
    this._aloud = 0;
    this._width = this._height = 0;
    this._canvas = h('canvas', { role: 'img', 'aria-label': title });
    this._legend = h('ul', { class: 'legend' });
    this._when = h('span', { class: 'when' });
    this.element = h(
      'section',
      { class: 'card chart' },
      h('h2', { title: hint }, title, this._when),
      this._legend,
      h('div', { class: 'plot' }, this._canvas),
    );
    /** @type {Line[]} */
    this._lines = [];
    this.setLines(lines);
    this._canvas.addEventListener('pointermove', (/** @type {PointerEvent} */ { offsetX }) => this._point(offsetX));
    this._canvas.addEventListener('pointerleave', () => this._point(undefined));
    this._observer = new ResizeObserver(([entry]) => {
      this._width = entry.contentRect.width;
      this._height = entry.contentRect.height;
      this.draw();
    });
    this._observer.observe(this._canvas.parentElement);
    charts.add(this);
    this._restyle();
  }

  /** It is not looked at any more. */
  close() {
    charts.delete(this);
    this._observer.disconnect();
  }

  /**
   * Other lines, unless they are the same.
   * @param {Line[]} lines
   */
  setLines(lines) {
    const shown = lines.slice(0, LINES_MAX);
    if (JSON.stringify(shown) === JSON.stringify(this._lines)) return;
    this._lines = shown;
    const values = (this._values = shown.map(() => h('b')));
    const swatches = (this._swatches = shown.map((_, index) => h('i', { class: `line-${index}`, 'aria-hidden': 'true' })));
    fill(
      this._legend,
      shown.map(({ name }, index) => h('li', null, swatches[index], `${name} `, values[index])),
    );
    this._restyle();
  }

  /**
   * @param {import('./series.js').Series} series
   * @param {number} span_ms how much of it
   * @param {number} step_ms how far its moments are apart; where they are farther there is a gap
   */
  show(series, span_ms, step_ms) {
    this._series = series;
    this._span_ms = span_ms;
    this._step_ms = step_ms;
    this.draw();
  }

  draw() {
    inFrame(this, () => this._draw());
  }

  /** @param {number | undefined} x */
  _point(x) {
    this._x = x;
    this.draw();
  }

  _restyle() {
    inFrame(this._legend, () => {
      const style = getComputedStyle(this._canvas);
      // Resolved by the browser, whatever the theme is made of.
      this._ink = style.color;
      this._grid = style.outlineColor;
      this._colours = (this._swatches ?? []).map((swatch) => getComputedStyle(swatch).backgroundColor);
      this.draw();
    });
  }

  _draw() {
    const series = this._series;
    const [width, height] = [this._width, this._height];
    if (!series || width === 0 || height === 0 || !this._ink) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this._canvas.width !== w || this._canvas.height !== h) {
      this._canvas.width = w;
      this._canvas.height = h;
    }
    const context = /** @type {CanvasRenderingContext2D} */ (this._canvas.getContext('2d'));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);

    const end = series.length > 0 ? series.time(series.length - 1) : Date.now();
    const begin = end - this._span_ms;
    // One more, so that lines come in from beyond the edge.
    const first = Math.max(0, series.from(begin) - 1);
    let most = this._least;
    for (const { column } of this._lines) {
      for (let index = first; index < series.length; index++) most = Math.max(most, series.value(column, index) || 0);
    }
    const step = niceStep(most / 3, this._binary);
    const top = Math.ceil(most / step) * step;
    const plot = { left: LEFT, right: width - RIGHT, top: TOP, bottom: height - BOTTOM };
    const x = (/** @type {number} */ at) => plot.left + ((at - begin) / this._span_ms) * (plot.right - plot.left);
    const y = (/** @type {number} */ value) => plot.bottom - (value / top) * (plot.bottom - plot.top);

    this._drawAxes(context, plot, { begin, end, top, step, x, y });
    context.save();
    context.beginPath();
    context.rect(plot.left, 0, plot.right - plot.left + RIGHT, height);
    context.clip();
    for (let line = this._lines.length - 1; line >= 0; line--) this._drawLine(context, line, first, x, y, plot.bottom);
    const at = this._x === undefined ? series.length - 1 : nearest(series, begin + ((this._x - plot.left) / (plot.right - plot.left)) * this._span_ms);
    if (this._x !== undefined && at >= first) {
      context.strokeStyle = this._ink;
      context.globalAlpha = 0.5;
      context.beginPath();
      context.moveTo(x(series.time(at)), plot.top);
      context.lineTo(x(series.time(at)), plot.bottom);
      context.stroke();
    }
    context.restore();
    this._tell(series, at);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {{ left: number, right: number, top: number, bottom: number }} plot
   * @param {{ begin: number, end: number, top: number, step: number, x: (at: number) => number, y: (value: number) => number }} scale
   */
  _drawAxes(context, plot, { begin, end, top, step, x, y }) {
    context.font = '11px system-ui, sans-serif';
    context.fillStyle = this._ink ?? '';
    context.strokeStyle = this._grid ?? '';
    context.lineWidth = 1;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    context.beginPath();
    for (let value = 0; value <= top * 1.0001; value += step) {
      const line = Math.round(y(value)) + 0.5;
      context.moveTo(plot.left, line);
      context.lineTo(plot.right, line);
      context.fillText(this._format(value), plot.left - 6, line);
    }
    context.stroke();
    context.textAlign = 'center';
    context.textBaseline = 'alphabetic';
    const labels = Math.max(2, Math.floor((plot.right - plot.left) / 80));
    const every_ms = TIME_STEPS_MS.find((one) => this._span_ms / one <= labels) ?? TIME_STEPS_MS[TIME_STEPS_MS.length - 1];
    // On whole minutes and days of the reader's clock.
    const offset_ms = new Date(end).getTimezoneOffset() * 60_000;
    for (let at = Math.ceil((begin - offset_ms) / every_ms) * every_ms + offset_ms; at <= end; at += every_ms) {
      const place = x(at);
      if (place > plot.left + 12 && place < plot.right - 8) context.fillText(axisTime(at, this._span_ms), place, plot.bottom + 14);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} line
   * @param {number} first
   * @param {(at: number) => number} x
   * @param {(value: number) => number} y
   * @param {number} bottom
   */
  _drawLine(context, line, first, x, y, bottom) {
    const series = /** @type {import('./series.js').Series} */ (this._series);
    const { column, fills } = this._lines[line];
    const colour = this._colours?.[line] ?? this._ink ?? '';
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = 1.6;
    context.lineJoin = 'round';
    /** @type {[number, number][]} a piece without a gap */
    let piece = [];
    const finish = () => {
      if (piece.length === 0) return;
      context.beginPath();
      for (const [px, py] of piece) context.lineTo(px, py);
      if (piece.length === 1) context.lineTo(piece[0][0] + 1.5, piece[0][1]);
      context.stroke();
      if (fills && piece.length > 1) {
        context.lineTo(piece[piece.length - 1][0], bottom);
        context.lineTo(piece[0][0], bottom);
        context.globalAlpha = 0.12;
        context.fill();
        context.globalAlpha = 1;
      }
      piece = [];
    };
    let before = NaN;
    for (let index = first; index < series.length; index++) {
      const [at, value] = [series.time(index), series.value(column, index)];
      if (at - before > this._step_ms * 4) finish();
      if (Number.isNaN(value)) finish();
      else piece.push([x(at), y(value)]);
      before = at;
    }
    finish();
  }

  /**
   * @param {import('./series.js').Series} series
   * @param {number} index
   */
  _tell(series, index) {
    this._lines.forEach(({ column }, line) => write(/** @type {Node[]} */ (this._values)[line], this._format(series.value(column, index))));
    write(this._when, this._x === undefined || index < 0 || index >= series.length ? '' : clock(series.time(index)));
    const now = performance.now();
    if (now - this._aloud < ALOUD_MS && this._aloud > 0) return;
    this._aloud = now;
    const values = this._lines.map(({ name, column }) => `${name} ${this._format(series.last(column))}`);
    set(this._canvas, 'aria-label', `${this._title}: ${values.join(', ')}`);
  }
}

const MINUTE_MS = 60_000;
const TIME_STEPS_MS = [1 / 6, 1 / 4, 1 / 2, 1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880].map((minutes) => minutes * MINUTE_MS);

/**
 * @param {import('./series.js').Series} series
 * @param {number} at
 */
function nearest(series, at) {
  const behind = Math.min(series.from(at), series.length - 1);
  if (behind <= 0) return behind;
  return series.time(behind) - at < at - series.time(behind - 1) ? behind : behind - 1;
}

/**
 * A step that people count in.
 * @param {number} least
 * @param {boolean} binary
 */
function niceStep(least, binary) {
  if (binary) {
    const unit = 1024 ** Math.max(0, Math.floor(Math.log2(Math.max(least, 1)) / 10));
    return [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024].map((one) => one * unit).find((one) => one >= least) ?? least;
  }
  const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1e-6)));
  return [1, 2, 5, 10].map((one) => one * unit).find((one) => one >= least * 0.9999) ?? least;
}
