/**
 * The hub's figures: a snapshot each second, told in the room `analytics:hub`, and with it what the statistics page adds
 * (percentiles, how busy each shard is, where its memory is). Where no snapshots come they are made of two looks at that page.
 *
 * @module
 */

import { Series } from './series.js';
import { every } from './session.js';

/** Moments that are kept: a quarter of an hour of seconds. */
const MOMENTS_MAX = 900;
const STATS_MS = 2000;
/** Without a snapshot for so long they are made here. */
const SILENT_MS = 3500;
/** What is shown of the past when the page begins, as far as it was told. */
const BACK_S = 300;

/** Keeps them, and tells (`change`) that there are new ones. */
export class Figures extends EventTarget {
  /**
   * @param {import('./session.js').Session} session
   * @param {import('./feed.js').Feed} feed
   */
  constructor(session, feed) {
    super();
    /** Rates, gauges: a moment per snapshot. */
    this.snapshots = new Series(MOMENTS_MAX);
    /** Percentiles, shards: a moment per look. */
    this.looks = new Series(MOMENTS_MAX);
    /** The last answer of the statistics page. @type {any} */
    this.stats = undefined;
    /** When that was. */
    this.stats_at = 0;
    this._session = session;
    this._told = 0;
    /** @type {any} */
    this._before = undefined;
    const event = (/** @type {import('./feed.js').Event} */ one) => {
      const at = Date.parse(one.timestamp);
      // What the log tells of the past is no sign of life.
      if (session.now() - at < SILENT_MS) this._told = session.now();
      this.snapshots.push(at, snapshotValues(one.data));
      this._changed();
    };
    feed.follow('analytics:hub', { event, types: ['analytics.snapshot'], seconds: BACK_S, signal: session.signal });
    every(session.signal, STATS_MS, () => this._look());
  }

  async _look() {
    const stats = await this._session.api('/api/v1/websocket/stats');
    const now = this._session.now();
    this.stats = stats;
    this.stats_at = now;
    this.looks.push(now, { ...lookValues(stats), ...growth(stats, this._before?.stats, (now - this._before?.at) / 1000) });
    if (this._before && now - this._told > SILENT_MS) {
      this.snapshots.push(now, snapshotOf(stats, this._before.stats, (now - this._before.at) / 1000));
    }
    this._before = { stats, at: now };
    this._changed();
  }

  _changed() {
    this.dispatchEvent(new Event('change'));
  }
}

/** @param {any} data of `analytics.snapshot` */
function snapshotValues({ latency_ms, alerts, shards, ...values }) {
  return values;
}

/** @param {any} stats */
function lookValues({ lately, shards, process }) {
  /** @type {Record<string, number | null>} */
  const values = { resident_bytes: process.resident_bytes };
  const latency = lately.total.latency_us.last_10_s;
  for (const name of ['p50', 'p90', 'p99', 'p99_9']) values[name] = latency[name] === null ? null : latency[name] / 1000;
  const busy = lately.shards.map((/** @type {any} */ shard) => shard.rates.busy * 100);
  const memory = shards.map(shardBytes);
  busy.forEach((/** @type {number} */ one, /** @type {number} */ shard) => (values[`busy_${shard}`] = one));
  memory.forEach((/** @type {number} */ one, /** @type {number} */ shard) => (values[`bytes_${shard}`] = one));
  Object.assign(values, { busy_most: Math.max(...busy), busy_mean: mean(busy), bytes_most: Math.max(...memory), bytes_mean: mean(memory) });
  return values;
}

/**
 * What has grown since the look before.
 * @param {any} now
 * @param {any} before none at first, and after the hub began anew
 * @param {number} seconds between the two
 * @returns {Record<string, number>}
 */
function growth(now, before, seconds) {
  if (!before || now.uptime_s < before.uptime_s) return {};
  const per_s = (/** @type {number} */ a, /** @type {number} */ b) => Math.max(0, a - b) / seconds;
  return {
    cpu_percent: per_s(now.process.cpu_seconds, before.process.cpu_seconds) * 100,
    errors_per_s: per_s(sum(Object.values(now.total.errors)), sum(Object.values(before.total.errors))),
    slow_readers_per_s: per_s(now.total.slow_readers, before.total.slow_readers),
    gaps_per_s: per_s(now.total.gaps, before.total.gaps),
  };
}

/** @param {any} shard its figures: what it has allocated for whom */
export function shardBytes({ connection_bytes, room_bytes, log_bytes, outbox_bytes, recorder_bytes }) {
  return connection_bytes + room_bytes + log_bytes + outbox_bytes + recorder_bytes;
}

/**
 * What a snapshot would have said.
 * @param {any} now
 * @param {any} before
 * @param {number} seconds between the two
 */
function snapshotOf({ total, process }, before, seconds) {
  const per_s = (/** @type {string} */ name) => Math.max(0, total[name] - before.total[name]) / seconds;
  return {
    connections: total.connections,
    rooms: total.rooms,
    subscriptions: total.subscriptions,
    outbox_bytes: total.outbox_bytes,
    log_bytes: total.log_bytes,
    connects_per_s: per_s('connections_opened'),
    messages_received_per_s: per_s('messages_received'),
    publishes_per_s: per_s('publishes'),
    deliveries_per_s: per_s('deliveries'),
    bytes_received_per_s: per_s('bytes_received'),
    bytes_sent_per_s: per_s('bytes_sent'),
    resident_bytes: process.resident_bytes,
  };
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

/** @param {number[]} values */
function mean(values) {
  return values.length > 0 ? sum(values) / values.length : NaN;
}

/**
 * A stored history's points as the same columns.
 * @param {any} page of `/api/v1/performance`
 * @returns {Series}
 */
export function storedSeries({ points, step_s }) {
  const series = new Series(Math.max(1, points.length));
  for (const point of points) {
    const seconds = point.span_s ?? step_s;
    const rate = (/** @type {string} */ name) => (point[name] === null ? null : point[name] / seconds);
    series.push(Date.parse(point.at), {
      connections: point.connections,
      rooms: point.rooms,
      subscriptions: point.subscriptions,
      connects_per_s: rate('connections_opened'),
      messages_received_per_s: rate('messages_received'),
      publishes_per_s: rate('publishes'),
      deliveries_per_s: rate('deliveries'),
      bytes_received_per_s: rate('bytes_received'),
      bytes_sent_per_s: rate('bytes_sent'),
      errors_per_s: rate('errors'),
      slow_readers_per_s: rate('slow_readers'),
      gaps_per_s: rate('gaps'),
      outbox_bytes: point.outbox_bytes,
      log_bytes: point.log_bytes,
      resident_bytes: point.resident_bytes,
      cpu_percent: point.cpu_s === null ? null : (point.cpu_s / seconds) * 100,
      p50: point.latency_p50_ms,
      p99: point.latency_p99_ms,
    });
  }
  return series;
}
