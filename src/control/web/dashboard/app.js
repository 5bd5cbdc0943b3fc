/**
 * Mission control: signs in, and shows the view that the address names.
 *
 * ```
 * session ── feed ──► figures, watch ──► views: overview, rooms (room, tail), connections (connection), agents, locks,
 *                                               alerts, system
 * ```
 *
 * All is drawn by `dom`, in frames; `chart` and `table` are what many figures and many rows are shown with.
 *
 * @module
 */

import { parseAddress } from './address.js';
import { Agents } from './agents.js';
import { Alerts } from './alerts.js';
import { themeChanged } from './chart.js';
import { Connections } from './connections.js';
import { ask, noticeBoard, notify } from './dialog.js';
import { fill, h, set, show, write } from './dom.js';
import { Feed } from './feed.js';
import { Figures } from './figures.js';
import { plain, span } from './format.js';
import { Locks } from './locks.js';
import { Overview } from './overview.js';
import { Rooms } from './rooms.js';
import { claimsOf, every, foundToken, keepToken, Session } from './session.js';
import { begin, reason, signInForm } from './signin.js';
import { System } from './system.js';
import { themeButton } from './theme.js';
import { Watch } from './watch.js';

/**
 * What views work with.
 * @typedef {object} App
 * @property {Session} session
 * @property {Feed} feed
 * @property {Figures} figures
 * @property {Watch} watch
 * @property {AbortSignal} signal ends with the view
 * @property {(interval_ms: number, call: () => unknown) => void} every does something again and again while the view is shown
 */

/** @typedef {{ element: HTMLElement, close: () => void, show?: (name: string | undefined) => void }} View */

/** @type {{ name: string, title: string, make: new (app: App) => View }[]} */
const VIEWS = [
  { name: 'overview', title: 'Overview', make: Overview },
  { name: 'rooms', title: 'Rooms', make: Rooms },
  { name: 'connections', title: 'Connections', make: Connections },
  { name: 'agents', title: 'Agents', make: Agents },
  { name: 'locks', title: 'Locks', make: Locks },
  { name: 'alerts', title: 'Alerts', make: Alerts },
  { name: 'system', title: 'System', make: System },
];

/** When it is said that the token is about to end. */
const ENDING_MS = 5 * 60_000;
/** How often a hub that can't be reached is tried again. */
const RETRY_MS = 2000;

const theme = themeButton(themeChanged);
const main = h('main');
document.body.prepend(main, noticeBoard());

/** The page of a session. */
class Page {
  /** @param {Session} session */
  constructor(session) {
    const feed = new Feed(session);
    this._app = { session, feed, figures: new Figures(session, feed), watch: new Watch(session, feed) };
    this._session = session;
    /** @type {{ name: string, view: View, over: AbortController } | undefined} */
    this._shown = undefined;
    this._links = VIEWS.map(({ name, title }) => h('a', { href: `#/${name}` }, title));
    this._state = h('span', { class: 'status', role: 'status' });
    this._renew = h('button', { type: 'button', hidden: true, onclick: () => this._askForToken() });
    this._who = h('span', { class: 'who' });
    this._banner = h('div', { class: 'banner', role: 'status', hidden: true });
    this._header = h(
      'header',
      null,
      h('a', { class: 'brand', href: '#/overview' }, 'Ringhub'),
      h('nav', { 'aria-label': 'Views' }, this._links),
      h('div', { class: 'account' }, this._state, this._renew, this._who, theme, h('button', { type: 'button', class: 'quiet', onclick: () => session.end(new Error('')) }, 'Sign out')),
    );
    document.body.prepend(this._header, this._banner);
    const { signal } = session;
    session.addEventListener('state', () => this._tellState(), { signal });
    this._app.watch.addEventListener('change', () => this._tellAlerts(), { signal });
    addEventListener('hashchange', () => this._route(), { signal });
    every(signal, 1000, () => this._tellState());
    this._tellState();
    this._route();
  }

  close() {
    this._leave();
    this._header.remove();
    this._banner.remove();
  }

  _leave() {
    this._shown?.over.abort();
    this._shown?.view.close();
    this._shown = undefined;
  }

  _route() {
    const address = parseAddress(location.hash);
    const { name, title, make } = VIEWS.find((one) => one.name === address.view) ?? VIEWS[0];
    VIEWS.forEach((one, index) => {
      set(this._links[index], 'aria-current', one.name === name ? 'page' : null);
      if (one.name === name) this._links[index].scrollIntoView({ block: 'nearest', inline: 'nearest' });
    });
    document.title = `${title} · Ringhub`;
    if (this._shown?.name !== name) {
      const isFirst = this._shown === undefined;
      this._leave();
      const over = new AbortController();
      const signal = AbortSignal.any([over.signal, this._session.signal]);
      const view = new make({ ...this._app, signal, every: (interval_ms, call) => every(signal, interval_ms, call) });
      this._shown = { name, view, over };
      fill(main, view.element);
      // Whoever reads with the ears is told where they are.
      if (!isFirst) view.element.querySelector('h1')?.focus();
    }
    this._shown.view.show?.(address.name);
  }

  _tellState() {
    const { state, retry_at, hub, token } = this._session;
    const wait = Math.max(0, retry_at - Date.now());
    const states = {
      connecting: ['Connecting', 'warn'],
      live: ['Live', 'good'],
      waiting: [`Reconnecting in ${span(wait)}`, 'warn'],
      polling: ['Polling', 'warn'],
      ended: ['Ended', 'bad'],
    };
    const [word, tone] = states[state];
    write(this._state, word);
    set(this._state, 'class', `status ${tone}`);
    set(this._state, 'title', state === 'polling' ? 'The WebSocket can’t be had here, so that the hub is asked again and again' : null);
    const claims = claimsOf(token);
    write(this._who, token ? plain(hub.session?.user_id ?? claims.sub ?? '', 40) : 'no sign-in needed');
    const left = claims.exp === undefined ? Infinity : claims.exp * 1000 - this._session.now();
    show(this._renew, left < ENDING_MS);
    write(this._renew, `Token ends in ${span(left)}: renew…`);
  }

  _tellAlerts() {
    const { active } = this._app.watch;
    show(this._banner, active.length > 0);
    fill(this._banner, active.map(({ alert, message }) => h('p', null, h('b', null, plain(alert)), ` ${plain(message)} `, h('a', { href: '#/alerts' }, 'Alerts'))));
  }

  async _askForToken() {
    const isDone = await ask({
      title: 'Renew the token',
      text: 'The page goes on with a newer token of the same user.',
      action: 'Renew',
      isHarmless: true,
      fields: [{ name: 'token', label: 'Token', rows: 4 }],
      act: async ({ token }) => {
        const text = token.replace(/\s+/g, '');
        await this._session.renew(text);
        keepToken(text);
      },
    });
    if (isDone) notify('The token was renewed.');
  }
}

/** @param {string} [why] */
function signIn(why) {
  document.title = 'Sign in · Ringhub';
  fill(main, h('div', { class: 'view' }, signInForm(open, why), theme));
  main.querySelector('textarea')?.focus();
}

/** @param {Session} session */
function open(session) {
  const page = new Page(session);
  session.addEventListener('end', (event) => {
    const { message, status } = /** @type {CustomEvent} */ (event).detail;
    page.close();
    keepToken(null);
    signIn(!message ? undefined : status === 401 ? `Signed out: ${message}. Sign in with another token.` : `Signed out: ${message}.`);
  });
}

async function start() {
  const token = foundToken();
  const status = h('p', { class: 'view note', role: 'status' }, 'Connecting…');
  fill(main, status);
  for (;;) {
    try {
      return open(await begin(token));
    } catch (error) {
      const { status: code } = /** @type {any} */ (error);
      if (code === 401 || code === 403) {
        keepToken(null);
        // Without a token it was only a try whether the hub wants one.
        return signIn(token === null ? undefined : reason(error));
      }
      write(status, `${reason(error)} It is tried again.`);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

addEventListener('hashchange', () => {
  // A new token in the address of a page that is open.
  if (new URLSearchParams(location.hash.slice(1)).has('token')) location.reload();
});
start();
