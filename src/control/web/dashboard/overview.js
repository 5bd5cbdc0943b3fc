/**
 * The hub at a glance: what it does, how long that takes, what it costs.
 *
 * @module
 */

import { Chart, LINES_MAX } from './chart.js';
import { h, inFrame, notInFrame, show, write } from './dom.js';
import { SmallTable } from './facts.js';
import { byteRate, bytes, count, ms, percent, rate, short } from './format.js';
import { Series } from './series.js';
import { shardBytes, storedSeries } from './figures.js';

const HOUR_MS = 3_600_000;
/** @type {{ name: string, span_ms: number, isStored: boolean }[]} */
const RANGES = [
  { name: '1 min', span_ms: 60_000, isStored: false },
  { name: '5 min', span_ms: 300_000, isStored: false },
  { name: '15 min', span_ms: 900_000, isStored: false },
  { name: '1 h', span_ms: HOUR_MS, isStored: true },
  { name: '24 h', span_ms: 24 * HOUR_MS, isStored: true },
  { name: '7 d', span_ms: 168 * HOUR_MS, isStored: true },
];
/** How often a sample is stored. */
const STORED_MS = 10_000;

export class Overview {
  /** @param {import('./app.js').App} app */
  constructor({ session, figures, signal, every }) {
    this._session = session;
    this._figures = figures;
    this._range = RANGES[0];
    this._shards = -1;
    /** @type {{ chart: Chart, isLook: boolean }[]} */
    this._charts = [];
    const chart = (/** @type {any} */ options, isLook = false) => {
      const one = new Chart(options);
      this._charts.push({ chart: one, isLook });
      return one;
    };
    const messages = [
      { name: 'received', column: 'messages_received_per_s' },
      { name: 'published', column: 'publishes_per_s' },
      { name: 'delivered', column: 'deliveries_per_s', fills: true },
    ];
    const traffic = [
      { name: 'in', column: 'bytes_received_per_s' },
      { name: 'out', column: 'bytes_sent_per_s', fills: true },
    ];
    this._latency = chart({ title: 'Delivery latency', hint: 'From receiving a publish to the completion of a subscriber’s send, over the last 10 s', format: ms, least: 0.5, lines: [] }, true);
    this._memory = chart({ title: 'Memory', hint: 'Of the process, and what each shard has allocated for connections, rooms, logs and outboxes', format: bytes, binary: true, lines: [] }, true);
    this._cpu = chart({ title: 'CPU', hint: 'All threads of the process, where 100 % is one core; and the part of the time in which each shard has something to do', format: percent, lines: [] }, true);
    const trouble = [
      { name: 'errors', column: 'errors_per_s', fills: true },
      { name: 'fell behind', column: 'slow_readers_per_s' },
      { name: 'gaps', column: 'gaps_per_s' },
    ];
    const charts = [
      chart({ title: 'Connections', format: short, least: 4, lines: [{ name: 'open', column: 'connections', fills: true }, { name: 'connects/s', column: 'connects_per_s' }] }),
      chart({ title: 'Messages', hint: 'Each second', format: rate, least: 4, lines: messages }),
      chart({ title: 'Bytes', hint: 'Each second, of clients', format: byteRate, binary: true, least: 1024, lines: traffic }),
      this._latency,
      chart({ title: 'Rooms', format: short, least: 4, lines: [{ name: 'rooms', column: 'rooms' }, { name: 'subscriptions', column: 'subscriptions' }] }),
      chart({ title: 'Errors', hint: 'Told to clients, each second; clients that read too slowly, and what they had to be told of it', format: rate, lines: trouble }, true),
      this._memory,
      this._cpu,
      chart({ title: 'Waiting to be sent', hint: 'In the outboxes of all connections', format: bytes, binary: true, least: 1024, lines: [{ name: 'outboxes', column: 'outbox_bytes', fills: true }] }),
    ];
    this._ranges = RANGES.map((range) => h('button', { type: 'button', 'aria-pressed': String(range === this._range), onclick: () => this._choose(range) }, range.name));
    this._note = h('p', { class: 'note', hidden: true });
    this._table = new SmallTable('Shards', ['Shard', 'Connections', 'Rooms', 'Deliveries/s', 'Busy', 'p99', 'Outboxes', 'Logs', 'Memory']);
    this.element = h(
      'div',
      { class: 'view' },
      h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Overview'), h('div', { class: 'segments', role: 'group', 'aria-label': 'Range' }, this._ranges)),
      this._note,
      h('div', { class: 'charts' }, charts.map((one) => one.element)),
      h('section', { class: 'card' }, h('h2', null, 'Shards'), this._table.element),
    );
    figures.addEventListener('change', () => this._later(), { signal });
    every(STORED_MS, () => this._loadStored());
    this._showRange();
    this._later();
  }

  close() {
    for (const { chart } of this._charts) chart.close();
    notInFrame(this);
  }

  _later() {
    inFrame(this, () => this._draw());
  }

  /** @param {typeof RANGES[0]} range */
  _choose(range) {
    this._range = range;
    RANGES.forEach((one, index) => this._ranges[index].setAttribute('aria-pressed', String(one === range)));
    show(this._note, false);
    this._showRange();
    if (range.isStored) this._loadStored();
  }

  _showRange() {
    const { span_ms, isStored } = this._range;
    const lines = isStored
      ? [{ name: 'p50', column: 'p50' }, { name: 'p99', column: 'p99' }]
      : [{ name: 'p50', column: 'p50' }, { name: 'p90', column: 'p90' }, { name: 'p99', column: 'p99' }, { name: 'p99.9', column: 'p99_9' }];
    this._latency.setLines(lines);
    this._shards = -1;
    const { snapshots, looks } = this._figures;
    for (const { chart, isLook } of this._charts) {
      if (isStored) chart.show(new Series(1), span_ms, span_ms / 360);
      else chart.show(isLook ? looks : snapshots, span_ms, isLook ? 2000 : 1000);
    }
    this._later();
  }

  async _loadStored() {
    const range = this._range;
    if (!range.isStored) return;
    try {
      const since = Math.floor((this._session.now() - range.span_ms) / 1000);
      const page = await this._session.api(`/api/v1/performance?since=${since}`);
      if (range !== this._range) return;
      const series = storedSeries(page);
      for (const { chart } of this._charts) chart.show(series, range.span_ms, page.step_s * 1000);
      write(this._note, series.length === 0 ? 'Nothing was stored in this time yet.' : '');
    } catch (error) {
      if (range !== this._range) return;
      const { status, message } = /** @type {import('./session.js').ApiError} */ (error);
      write(this._note, status === 404 ? 'No history is kept: set store.path to a file, and the hub stores what is shown here.' : message);
    }
    show(this._note, this._note.textContent !== '');
  }

  _draw() {
    const { stats } = this._figures;
    if (!stats) return;
    const { shards, lately } = stats;
    if (this._shards !== shards.length) {
      this._shards = shards.length;
      const isStored = this._range.isStored;
      const [cpu, process] = ['cpu_percent', 'resident_bytes'].map((column) => ({ name: 'process', column, fills: isStored }));
      this._cpu.setLines(isStored ? [cpu] : [cpu, ...shardLines('busy', shards.length, LINES_MAX - 1)]);
      this._memory.setLines(isStored ? [process] : [process, ...shardLines('bytes', shards.length, LINES_MAX - 1)]);
    }
    if (!this._range.isStored) for (const { chart } of this._charts) chart.draw();
    this._table.set(
      shards.map((/** @type {any} */ shard, /** @type {number} */ index) => {
        const { rates, latency_us } = lately.shards[index];
        const p99 = latency_us.last_60_s.p99;
        const memory = [shard.outbox_bytes, shard.log_bytes, shardBytes(shard)].map(bytes);
        return [String(index), count(shard.connections), count(shard.rooms), rate(rates.deliveries_per_s), percent(rates.busy * 100), ms(p99 === null ? null : p99 / 1000), ...memory];
      }),
    );
  }
}

/**
 * A line for each shard, as long as there are not too many to tell apart.
 * @param {string} what
 * @param {number} shards
 * @param {number} lines_max
 */
function shardLines(what, shards, lines_max) {
  if (shards > lines_max) {
    return [{ name: 'most of a shard', column: `${what}_most` }, { name: 'mean of the shards', column: `${what}_mean` }];
  }
  return Array.from({ length: shards }, (_, shard) => ({ name: `shard ${shard}`, column: `${what}_${shard}` }));
}
