/**
 * Who one is to the hub: the token, the HTTP API, and the live connection.
 *
 * A session ends when its token does; whoever listens to `end` then asks for another one.
 *
 * @module
 */

import { Ringhub } from '../ringhub.js';

/** The page may be served below a path of a proxy. */
const BASE = new URL('../', import.meta.url);
const KEPT = 'ringhub.token';
/** How long the socket may take before the page does without. */
const SOCKET_MS = 4000;
/** Clocks that differ by more are not the same. */
const CLOCK_MS = 3000;

/** What the hub refused, or that it can't be reached (status 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   */
  constructor(status, code, message) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.code = code;
  }
}

/**
 * The token that was kept for this tab, or that came in the address, from which it is removed at once.
 * @returns {string | null}
 */
export function foundToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (given) {
    history.replaceState(null, '', location.pathname + location.search);
    keepToken(given);
  }
  return sessionStorage.getItem(KEPT);
}

/** @param {string | null} token null forgets it */
export function keepToken(token) {
  if (token) sessionStorage.setItem(KEPT, token);
  else sessionStorage.removeItem(KEPT);
}

/**
 * What a token says, without a check: the hub checks.
 * @param {string | null} token
 * @returns {{ sub?: string, exp?: number }}
 */
export function claimsOf(token) {
  try {
    const part = (token ?? '').split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
    const octets = Uint8Array.from(atob(part), (character) => character.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(octets)) ?? {};
  } catch {
    return {};
  }
}

/**
 * Events: `state` when the connection changes, `end` (an `Error` in `detail`) when it is over.
 */
export class Session extends EventTarget {
  /** @param {string | null} token none where the hub asks for none */
  constructor(token) {
    super();
    this.token = token;
    /** @type {'connecting' | 'live' | 'waiting' | 'polling' | 'ended'} */
    this.state = 'connecting';
    /** When the next attempt is, while `waiting`. */
    this.retry_at = 0;
    /** The token that the hub was shown last. */
    this._shown = token;
    this._ahead_ms = 0;
    this._over = new AbortController();
    this.hub = new Ringhub({
      url: new URL('ws', BASE),
      // The same token again would be refused again.
      token: ({ reason }) => {
        if (reason !== 'connect' && this.token === this._shown) return null;
        return (this._shown = this.token);
      },
    });
  }

  /** Ends with the session. */
  get signal() {
    return this._over.signal;
  }

  /** What time it is by the hub's clock. */
  now() {
    return Date.now() + this._ahead_ms;
  }

  /**
   * Checks the token, and connects.
   * @throws {ApiError} 401 where the hub does not know the token, 403 where it is not an administrator's
   */
  async begin() {
    await this.api('/api/v1/alerts?limit=1');
    this.hub.on('state', (change) => this._changed(change));
    // The tails of rooms have their own handlers; what goes wrong is told where it was asked for.
    this.hub.on('error', (error) => console.warn(error));
    const connected = this.hub.connect().then(() => true, () => false);
    const late = new Promise((resolve) => setTimeout(resolve, SOCKET_MS, false));
    if (await Promise.race([connected, late])) {
      this.hub.metadata({ app: 'dashboard' }).catch(() => {});
      return;
    }
    // On an internal listener there is no socket, and some proxies let none through.
    this._set('polling');
    this.hub.close();
  }

  /**
   * Calls the HTTP API.
   * @param {string} path from the root on; names in it have to be encoded
   * @param {{ method?: string, body?: unknown, signal?: AbortSignal }} [options]
   * @returns {Promise<any>}
   * @throws {ApiError}
   */
  async api(path, { method = 'GET', body, signal } = {}) {
    /** @type {Record<string, string>} */
    const headers = { Accept: 'application/json' };
    if (this.token) headers.Authorization = `Bearer ${this.token}`;
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    let answer;
    try {
      answer = await fetch(new URL(path.slice(1), BASE), {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: signal ? AbortSignal.any([signal, this.signal]) : this.signal,
        cache: 'no-store',
        credentials: 'omit',
        referrerPolicy: 'no-referrer',
      });
    } catch (error) {
      if (signal?.aborted || this.signal.aborted) throw error;
      throw new ApiError(0, 'unreachable', 'the hub can’t be reached');
    }
    const ahead_ms = Date.parse(answer.headers.get('date') ?? '') - Date.now();
    // The header tells whole seconds, and clocks that are kept differ by less.
    this._ahead_ms = Math.abs(ahead_ms) > CLOCK_MS ? ahead_ms : 0;
    const text = await answer.text();
    let content;
    try {
      content = JSON.parse(text);
    } catch {
      content = undefined;
    }
    if (answer.ok && content !== undefined) return content;
    const told = content?.error ?? {};
    // `/ready` says with a whole page that it is not.
    if (content && !content.error) return content;
    const error = new ApiError(answer.status, told.code ?? 'unknown', told.message ?? `the answer is ${answer.status}`);
    if (answer.status === 401) this.end(error);
    throw error;
  }

  /**
   * Goes on with another token.
   * @param {string} token
   * @throws {ApiError} where it won't do; the session goes on with the one that it has
   */
  async renew(token) {
    const other = new Session(token);
    await other.api('/api/v1/alerts?limit=1');
    this.token = token;
    await this.hub.refresh();
  }

  /** @param {Error} error why */
  end(error) {
    if (this.state === 'ended') return;
    this._set('ended');
    this._over.abort(error);
    this.hub.close();
    this.dispatchEvent(new CustomEvent('end', { detail: error }));
  }

  /** @param {import('../ringhub.js').StateChange} change */
  _changed({ state, code, error, retry_in_ms }) {
    if (this.state === 'ended' || this.state === 'polling') return;
    if (state === 'closed') {
      const ended = { 4401: 'the token has ended', 4403: 'the permission to connect was withdrawn', 4500: 'an administrator has closed this connection' };
      const why = ended[/** @type {keyof typeof ended} */ (code)] ?? error?.message ?? 'the connection was closed';
      return this.end(new ApiError(code === 4401 ? 401 : 0, 'closed', why));
    }
    this.retry_at = Date.now() + (retry_in_ms ?? 0);
    this._set(state === 'connected' ? 'live' : state === 'waiting' ? 'waiting' : 'connecting');
  }

  /** @param {Session['state']} state */
  _set(state) {
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}

/**
 * Does something again and again, as long as it is wanted and somebody looks; after what took long it pauses for longer.
 * @param {AbortSignal} signal
 * @param {number} interval_ms
 * @param {() => unknown} call its failures are its own business
 */
export async function every(signal, interval_ms, call) {
  while (!signal.aborted) {
    const began = performance.now();
    try {
      await call();
    } catch (error) {
      if (!signal.aborted) console.warn(error);
    }
    await pause(signal, Math.max(interval_ms, 5 * (performance.now() - began)));
    while (document.hidden && !signal.aborted) await pause(signal, 1000);
  }
}

/**
 * @param {AbortSignal} signal
 * @param {number} pause_ms
 * @returns {Promise<void>}
 */
function pause(signal, pause_ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, pause_ms);
    signal.addEventListener('abort', done);
  });
}
