/**
 * Lists of the HTTP API, read page by page and kept fresh.
 *
 * @module
 */

import { every } from './session.js';

const PAGE = 500;
/** More rows than anybody reads; from there on one has to search. */
const ROWS_MAX = 10_000;

/**
 * @template T
 * @typedef {object} Listed
 * @property {T[]} rows
 * @property {number} total how many there are, of which `rows` may be the first
 */

/** @template T */
export class Listing {
  /**
   * @param {object} options
   * @param {import('./session.js').Session} options.session
   * @param {string} options.path
   * @param {string} options.field of the answer that has the rows
   * @param {number} options.interval_ms
   * @param {AbortSignal} options.signal
   * @param {(listed: Listed<T>) => void} options.changed
   * @param {(error: Error) => void} options.failed
   */
  constructor({ session, path, field, interval_ms, signal, changed, failed }) {
    this._session = session;
    this._path = path;
    this._field = field;
    this._changed = changed;
    this._failed = failed;
    this._signal = signal;
    /** @type {Record<string, string>} */
    this._query = {};
    this._round = new AbortController();
    every(signal, interval_ms, () => this.load());
  }

  /**
   * Other rows are wanted.
   * @param {Record<string, string | undefined>} query
   */
  ask(query) {
    const wanted = Object.fromEntries(Object.entries(query).filter(([, value]) => value));
    if (JSON.stringify(wanted) === JSON.stringify(this._query)) return;
    this._query = /** @type {Record<string, string>} */ (wanted);
    this.load();
  }

  /** Reads the list now. A reading that goes on is given up. */
  async load() {
    this._round.abort();
    const round = (this._round = new AbortController());
    const signal = AbortSignal.any([this._signal, round.signal]);
    /** @type {T[]} */
    let rows = [];
    let total = 0;
    let after;
    try {
      do {
        const query = new URLSearchParams({ ...this._query, limit: String(PAGE), ...(after && { after }) });
        const page = await this._session.api(`${this._path}?${query}`, { signal });
        rows = rows.concat(page[this._field]);
        total = page.total;
        after = page.next;
      } while (after && rows.length < ROWS_MAX);
    } catch (error) {
      if (!signal.aborted) this._failed(/** @type {Error} */ (error));
      return;
    }
    if (!signal.aborted) this._changed({ rows, total });
  }
}
