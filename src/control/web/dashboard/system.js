/**
 * What the hub rests on: the process, its shards, and what it keeps and calls beside them.
 *
 * @module
 */

import { h, inFrame, notInFrame, set, show, write } from './dom.js';
import { bytes, clock, count, ms, percent, plain, rate, short, span, words } from './format.js';
import { Facts, SmallTable } from './facts.js';

const READY_MS = 5000;

/**
 * @typedef {object} State
 * @property {string} word
 * @property {string} tone
 */

/** @typedef {{ title: string, state?: State, facts: [string, string][] }} Card */

export class System {
  /** @param {import('./app.js').App} app */
  constructor({ session, figures, signal, every }) {
    this._session = session;
    this._figures = figures;
    /** @type {any} */
    this._ready = undefined;
    this._cards = h('div', { class: 'cards' });
    /** @type {Map<string, { element: HTMLElement, status: HTMLElement, facts: Facts }>} */
    this._shown = new Map();
    this._shards = new SmallTable('Shards', ['Shard', 'Busy', 'Turns/s', 'Turn p99', 'Mesh waits', 'Requests wait', 'Journal waits', 'Fell behind', 'Gaps', 'Buffers out']);
    this.element = h(
      'div',
      { class: 'view' },
      h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'System')),
      this._cards,
      h('section', { class: 'card' }, h('h2', null, 'Shards'), this._shards.element),
    );
    figures.addEventListener('change', () => this._later(), { signal });
    every(READY_MS, async () => {
      this._ready = await session.api('/ready', { signal });
      this._later();
    });
    this._later();
  }

  close() {
    notInFrame(this);
  }

  _later() {
    inFrame(this, () => this._draw());
  }

  _draw() {
    const { stats } = this._figures;
    if (!stats) return;
    for (const card of cardsOf(stats, this._ready, this._session.hub.session?.server.node)) this._write(card);
    this._shards.set(
      stats.shards.map((/** @type {any} */ shard, /** @type {number} */ index) => {
        const { rates, turn_us } = stats.lately.shards[index];
        const p99 = turn_us.last_60_s.p99;
        const counts = [shard.mesh_waiting, shard.requests_waiting, shard.journal_pending, shard.slow_readers, shard.gaps, shard.buffers_exhausted];
        return [String(index), percent(rates.busy * 100), rate(rates.turns_per_s), ms(p99 === null ? null : p99 / 1000), ...counts.map(count)];
      }),
    );
  }

  /** @param {Card} card */
  _write({ title, state, facts }) {
    let shown = this._shown.get(title);
    if (!shown) {
      const [status, list] = [h('span'), new Facts()];
      const element = h('section', { class: 'card' }, h('div', { class: 'bar' }, h('h2', null, title), status), list.element);
      this._shown.set(title, (shown = { element, status, facts: list }));
      this._cards.append(element);
    }
    write(shown.status, state?.word ?? '');
    set(shown.status, 'class', `status ${state?.tone ?? ''}`);
    show(shown.status, state !== undefined);
    shown.facts.set(facts);
  }
}

const OFF = { word: 'off', tone: 'off' };

/**
 * @param {any} stats
 * @param {any} ready the answer of `/ready`
 * @param {string | undefined} node
 * @returns {Card[]}
 */
function cardsOf(stats, ready, node) {
  const { process, total, store, hooks, journal, telemetry, broker } = stats;
  const answering = ready ? `${ready.shards_answering ?? 0} of ${stats.shards.length}` : '';
  /** @type {Card[]} */
  const ofHooks = [];
  if (hooks?.events) ofHooks.push(service('Hooks: events', hooks.events));
  if (hooks?.connect) ofHooks.push(service('Hooks: connect', hooks.connect));
  if (ofHooks.length === 0) ofHooks.push({ title: 'Hooks', state: OFF, facts: [['Why', 'hooks.url and hooks.connect_url are empty: the backend is told and asked nothing']] });
  return [
    {
      title: 'Hub',
      state: readiness(ready),
      facts: [
        ['Node', plain(node ?? 'unknown')],
        ['Version', plain(stats.version)],
        ['Up for', span(stats.uptime_s * 1000)],
        ['Driver', plain(stats.driver === 'epoll' ? 'epoll: io_uring is forbidden or not wanted' : 'io_uring')],
        ['Started', clock(process.start_time_seconds * 1000)],
        ['Shards that answer', answering],
      ],
    },
    {
      title: 'Process',
      facts: [
        ['Memory', bytes(process.resident_bytes)],
        ['CPU time', span(process.cpu_seconds * 1000)],
        ['Threads', count(process.threads)],
        ['Descriptors', `${count(process.open_fds)} of ${count(process.max_fds)}`],
      ],
    },
    brokerCard(broker),
    store ? service('Store', store) : { title: 'Store', state: OFF, facts: [['Why', 'store.path names no file: no history is kept']] },
    ...ofHooks,
    journal ? journalCard(journal) : { title: 'Journal', state: OFF, facts: [['Why', 'journal.path names no folder: rooms live as long as the process']] },
    telemetry ? service('Telemetry', telemetry) : { title: 'Telemetry', state: OFF, facts: [['Why', 'telemetry.otlp_url is empty: nothing is sent']] },
    {
      title: 'Rooms and locks',
      facts: [
        ['Locks held', count(total.locks)],
        ['Locks granted', count(total.locks_acquired)],
        ['Locks refused, expired', `${count(total.locks_refused)}, ${count(total.locks_expired)}`],
        ['Logs', bytes(total.log_bytes)],
        ['Logs that had to go', count(total.logs_evicted)],
        ['Events replayed', count(total.replayed)],
        ['Duplicates', count(total.duplicates)],
      ],
    },
    counters('Events by kind of room', total.publishes_by_kind),
    counters('Errors told to clients', total.errors),
    counters('Connections refused', total.refused),
    counters('Connections closed', total.closes),
  ];
}

/** @param {any} ready */
function readiness(ready) {
  if (!ready) return undefined;
  return ready.status === 'ok' ? { word: 'ready', tone: 'good' } : { word: plain(ready.status), tone: 'bad' };
}

/**
 * Something behind a breaker: whether it works is the breaker's state, the rest are counts.
 * @param {string} title
 * @param {Record<string, any>} status
 * @returns {Card}
 */
function service(title, { breaker, trouble, ...counts }) {
  const states = { closed: { word: 'works', tone: 'good' }, open: { word: 'down', tone: 'bad' }, half_open: { word: 'is tried', tone: 'warn' } };
  const facts = Object.entries(counts).map(([name, value]) => /** @type {[string, string]} */ ([words(name), typeof value === 'number' ? count(value) : plain(typeof value === 'object' ? JSON.stringify(value) : value)]));
  return { title, state: states[/** @type {keyof typeof states} */ (breaker)], facts: trouble ? [['last trouble', plain(trouble)], ...facts] : facts };
}

/**
 * What numbers events and brings them to every node. In memory there is nothing that could be away.
 * @param {any} broker
 * @returns {Card}
 */
function brokerCard({ kind, state, ...status }) {
  const { facts } = service('Broker', status);
  const isHere = kind === 'memory';
  const nodes = /** @type {[string, string]} */ (['Nodes', 'this one, whose shards number and keep all rooms']);
  return { title: 'Broker', state: state === 'up' ? { word: 'works', tone: 'good' } : { word: 'down', tone: 'bad' }, facts: [['Kind', plain(kind)], ...(isHere ? [nodes] : []), ...facts] };
}

/**
 * @param {any} journal
 * @returns {Card}
 */
function journalCard(journal) {
  const mean_ms = journal.syncs > 0 ? journal.sync_us / journal.syncs / 1000 : null;
  return {
    title: 'Journal',
    state: journal.up ? { word: 'works', tone: 'good' } : { word: 'down', tone: 'bad' },
    facts: [
      ['Files', `${count(journal.files)}, ${bytes(journal.bytes)}`],
      ['Still needed', bytes(journal.live_bytes)],
      ['Written', `${bytes(journal.written_bytes)} in ${short(journal.batches)} batches`],
      ['A sync takes', `${ms(mean_ms)}, at most ${ms(journal.sync_us_max / 1000)}`],
      ['Failures, refused', `${count(journal.failures)}, ${count(journal.refused)}`],
      ['Cut off, damaged at start', `${bytes(journal.cut_bytes)}, ${count(journal.damaged)}`],
    ],
  };
}

/**
 * Those that are not 0, the largest first.
 * @param {string} title
 * @param {Record<string, number>} counts
 * @returns {Card}
 */
function counters(title, counts) {
  const some = Object.entries(counts).filter(([, value]) => value > 0);
  some.sort(([, a], [, b]) => b - a);
  return { title, facts: some.length > 0 ? some.map(([name, value]) => [plain(name), count(value)]) : [['None', 'so far']] };
}
