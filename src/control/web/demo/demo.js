/**
 * The demo: what the simulated fleet does, and beside it the code that receives and produces it.
 *
 * @module
 */

import { connectionHref } from '../dashboard/address.js';
import { notify, noticeBoard } from '../dashboard/dialog.js';
import { fill, h, inFrame, set, write } from '../dashboard/dom.js';
import { bytes, clock, count, json, percent, plain, rate, words } from '../dashboard/format.js';
import { every, foundToken, keepToken } from '../dashboard/session.js';
import { begin, reason, signInForm } from '../dashboard/signin.js';
import { themeButton } from '../dashboard/theme.js';
import * as scenes from './scenes.js';
import { curl, rust, textOf } from './source.js';

const AGENTS = ['planner', 'coder-1', 'coder-2', 'reviewer', 'tester', 'analyst'];
const FIELDS = ['deductible', 'coverage', 'start_date', 'discount'];
/** Events that a stream shows. */
const STREAM_MAX = 6;
/** The types of the protocol. */
const TYPES = [
  'project.updated', 'project.deleted', 'agent.status_changed', 'agent.connected', 'agent.disconnected', 'workflow.started', 'workflow.progress',
  'workflow.completed', 'workflow.failed', 'pr.created', 'pr.updated', 'pr.closed', 'issue.created', 'issue.updated', 'issue.closed', 'ai.suggestion',
  'ai.analysis_complete', 'connection.established', 'connection.error', 'epistemic_update', 'pattern_alert', 'prediction_update', 'system_alert',
  'quote.updated', 'quote.premium_calculated', 'quote.field_edited', 'analytics.snapshot', 'notification.created',
];

/** @typedef {import('../ringhub.js').Event} Event */

const main = h('main');
document.body.append(main, noticeBoard());

/** The newest events, the newest first. */
class Stream {
  /** @param {(event: Event) => string} textOf */
  constructor(textOf) {
    this.element = h('ol', { class: 'stream' }, h('li', { class: 'empty' }, 'Nothing has come yet: what comes is shown here.'));
    this._textOf = textOf;
    /** @type {Event[]} */
    this._new = [];
    /** @type {Event | undefined} */
    this.last = undefined;
  }

  /** @param {Event} event */
  show(event) {
    this.last = event;
    this._new.push(event);
    if (this._new.length > STREAM_MAX) this._new.shift();
    inFrame(this, () => {
      this.element.querySelector('.empty')?.remove();
      for (const one of this._new.splice(0)) {
        const room = one.room.slice(one.room.indexOf(':') + 1);
        this.element.prepend(h('li', null, h('time', null, clock(one.timestamp)), h('b', null, `${plain(room, 40)} ${plain(one.type)}`), h('span', null, this._textOf(one))));
      }
      while (this.element.children.length > STREAM_MAX) this.element.lastElementChild?.remove();
    });
  }
}

/**
 * A scene: what happens, and the code of it.
 * @param {string} title
 * @param {string} about
 * @param {(Node | null)[]} live
 * @param {{ name: string, text: () => string | Promise<string> }[]} codes
 */
function scene(title, about, live, codes) {
  const text = h('pre', { tabindex: 0, role: 'region', 'aria-label': `Code of ${title}` });
  const buttons = codes.map((code, index) => h('button', { type: 'button', 'aria-pressed': String(index === 0), onclick: () => choose(index) }, code.name));
  const choose = async (/** @type {number} */ index) => {
    buttons.forEach((button, at) => set(button, 'aria-pressed', String(at === index)));
    try {
      write(text, await codes[index].text());
    } catch (error) {
      write(text, /** @type {Error} */ (error).message);
    }
  };
  choose(0);
  return h(
    'section',
    { class: 'card scene' },
    h('h2', null, title),
    h('p', { class: 'about' }, about),
    h('div', { class: 'live' }, live),
    h('div', { class: 'code' }, h('div', { class: 'segments', role: 'group', 'aria-label': 'Code' }, buttons), text),
  );
}

/** @param {Stream} stream */
const shell = (stream) => ({ name: 'from a shell', text: () => (stream.last ? curl(stream.last) : 'Nothing has come yet.') });

/** @param {import('../dashboard/session.js').Session} session */
function projects({ hub }) {
  const stream = new Stream(({ data }) => plain(data.title ?? data.summary ?? data.status ?? ''));
  scenes.followProjects(hub, (event) => stream.show(event));
  return scene('Projects', 'Pull requests, issues and what an assistant makes of them, published by a backend that embeds the hub. Each room is a log: this page began with the last three events of each.', [stream.element], [
    { name: 'receives', text: () => textOf(scenes.followProjects) },
    { name: 'produces', text: () => rust('world.rs', 'impl Project {') },
    shell(stream),
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function beliefs({ hub }) {
  const stream = new Stream(({ data }) => `${percent(data.confidence_level * 100)}: ${plain(data.belief)}`);
  const value = h('output');
  const slider = h('input', { type: 'range', min: 0, max: 0.95, step: 0.05, value: 0.6, 'aria-label': 'Least confidence' });
  /** @type {import('../ringhub.js').Subscription[]} */
  let subscriptions = [];
  const choose = () => {
    for (const one of subscriptions) one.unsubscribe();
    fill(stream.element);
    write(value, `at least ${percent(slider.value * 100)}`);
    subscriptions = scenes.followBeliefs(hub, AGENTS, Number(slider.value), (event) => stream.show(event));
  };
  slider.addEventListener('change', choose);
  choose();
  return scene('What agents believe', 'Each agent tells in its own room, over its own connection, what it believes and how surely. Choose how sure is sure enough; the hub then sends no others.', [h('div', { class: 'bar' }, h('span', null, 'Confidence'), slider, value), stream.element], [
    { name: 'receives', text: () => textOf(scenes.followBeliefs) },
    { name: 'produces', text: () => rust('agent.rs', 'fn tell_belief(') },
    shell(stream),
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function workflows({ hub }) {
  const list = h('ul', { class: 'workflows' });
  const rows = new Map();
  scenes.followWorkflows(hub, ({ room, type, data }) => {
    const row = rows.get(room) ?? { name: h('b'), bar: h('progress', { max: 100, 'aria-label': room }), state: h('span', { class: 'status' }), step: h('p', { class: 'quiet' }) };
    if (!rows.has(room)) list.append(h('li', null, h('div', { class: 'bar' }, row.name, row.state), row.bar, row.step));
    rows.set(room, row);
    const state = type.slice('workflow.'.length);
    inFrame(row, () => {
      write(row.name, plain(data.workflow_id));
      write(row.state, state === 'progress' ? percent(data.progress) : state);
      set(row.state, 'class', `status ${{ failed: 'bad', completed: 'good' }[state] ?? 'busy'}`);
      row.bar.value = data.progress ?? 0;
      write(row.step, plain(data.error ?? data.step ?? ''));
    });
  });
  return scene('Workflows', 'Three pipelines. Whoever comes in the middle learns from a room’s last event where it stands.', [list], [
    { name: 'receives', text: () => textOf(scenes.followWorkflows) },
    { name: 'produces', text: () => rust('world.rs', 'impl Workflow {') },
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function quote({ hub }) {
  const premium = h('b', null, '–');
  const fields = new Map(FIELDS.map((name) => [name, { value: h('b', null, '–'), holder: h('small', null, 'free'), element: h('li') }]));
  for (const [name, { value, holder, element }] of fields) element.append(words(name), value, holder);
  const lock = (/** @type {Event} */ { data }, /** @type {string} */ text) => {
    const field = fields.get(data.field);
    if (!field) return;
    write(field.holder, text);
    set(field.element, 'class', text === 'free' ? null : 'locked');
  };
  scenes.followQuote(hub, {
    edited: ({ data }) => write(fields.get(data.field)?.value ?? h('b'), plain(data.value)),
    priced: ({ data }) => write(premium, `${plain(data.premium)} ${plain(data.currency)}`),
    locked: (event) => lock(event, `${plain(event.data.user_id, 40)} edits`),
    unlocked: (event) => lock(event, 'free'),
  });
  const choice = h('select', { 'aria-label': 'Field' }, FIELDS.map((name) => h('option', { value: name }, words(name))));
  const status = h('span', { role: 'status', class: 'quiet' });
  const edit = async () => {
    button.disabled = true;
    write(status, 'waiting for the field…');
    try {
      await scenes.editField(hub, choice.value, Math.ceil(Math.random() * 40) * 25);
      write(status, 'edited');
    } catch (error) {
      const { code, details, message } = /** @type {any} */ (error);
      write(status, code === 'lock_held' ? `${plain(details.holder?.user_id ?? 'somebody')} has it still` : plain(message));
    } finally {
      button.disabled = false;
    }
  };
  const button = h('button', { type: 'button', onclick: edit }, 'Edit it too');
  return scene('A quote with two editors', 'Anna and Ben edit the same quote. A field belongs to whoever has its lock; a third client hears what was edited and says what the quote costs now.', [
    h('p', null, 'Premium ', premium),
    h('ul', { class: 'fields' }, [...fields.values()].map(({ element }) => element)),
    h('div', { class: 'bar' }, choice, button, status),
  ], [
    { name: 'receives', text: () => textOf(scenes.followQuote) },
    { name: 'edits', text: () => textOf(scenes.editField) },
    { name: 'Anna and Ben', text: () => rust('editor.rs', 'impl Actor for Editor {') },
    { name: 'pricing', text: () => rust('pricing.rs', 'impl Actor for Pricing {') },
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function slowReader(session) {
  const state = h('p', null, 'Looking…');
  const records = h('ol', { class: 'stream' });
  every(session.signal, 2000, async () => {
    try {
      const { queue_bytes, slow_rooms, records: told } = await scenes.lookAtSlowReader((path) => session.api(path));
      write(state, slow_rooms > 0 ? `${bytes(queue_bytes)} wait for it, and it is behind in ${count(slow_rooms)} rooms.` : `${bytes(queue_bytes)} wait for it.`);
      fill(records, [...told].reverse().map((/** @type {any} */ { at, what, room, from_seq, to_seq, reason: why }) => h('li', null, h('time', null, clock(at)), h('b', null, words(what)), h('span', null, [room, from_seq && `#${from_seq}${to_seq > from_seq ? `–${to_seq}` : ''}`, why].filter(Boolean).map((one) => plain(one)).join(' · ')))));
    } catch (error) {
      if (/** @type {any} */ (error).status === 404) write(state, 'It is not connected: somebody has switched it off. It is back within a minute.');
    }
  });
  const there = new URL('../dashboard', import.meta.url);
  there.hash = connectionHref('demo-slow-wallboard').slice(1);
  return scene('A slow reader', 'One wallboard takes in less than it is sent. Nobody else feels it: what it can’t have it is told as a gap, and the flight recorder knows why. Look at it in the dashboard, and disconnect it: it is back a minute later.', [state, records, h('p', null, h('a', { href: there.href }, 'This connection in the dashboard'))], [
    { name: 'looks', text: () => textOf(scenes.lookAtSlowReader) },
    { name: 'reads slowly', text: () => rust('wallboard.rs', 'fn appetite(') },
    { name: 'what it is sent', text: () => rust('world.rs', 'fn transcript(') },
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function everyone({ hub }) {
  const stream = new Stream(({ data }) => plain(data.message ?? json(data)));
  scenes.followEveryone(hub, (event) => stream.show(event));
  const text = h('input', { type: 'text', value: 'Your turn', 'aria-label': 'Text for Anna' });
  const send = async () => {
    try {
      const { delivered, queued } = await scenes.tellAnna(hub, text.value);
      notify(delivered > 0 ? 'Anna has it.' : `Anna is away; ${queued > 0 ? 'it waits for her' : 'she does not get it'}.`);
    } catch (error) {
      notify(/** @type {Error} */ (error).message, 'bad');
    }
  };
  return scene('To everyone, to one', 'What is published into the room global comes to every connection; what is sent to a user, to all of that user’s.', [stream.element, h('div', { class: 'bar' }, text, h('button', { type: 'button', onclick: send }, 'Send to Anna'))], [
    { name: 'receives', text: () => textOf(scenes.followEveryone) },
    { name: 'sends', text: () => textOf(scenes.tellAnna) },
    { name: 'produces', text: () => rust('world.rs', 'pub(super) fn step(') },
    shell(stream),
  ]);
}

/** @param {import('../dashboard/session.js').Session} session */
function types(session) {
  const counts = new Map(TYPES.map((type) => [type, { seen: 0, element: h('li', null, type) }]));
  const figures = h('p', { class: 'note' }, 'Waiting for the first figures…');
  const seen = (/** @type {Event} */ event) => {
    const one = counts.get(event.type);
    if (one) one.seen++;
    if (event.room === 'analytics:hub') {
      const { connections, publishes_per_s, deliveries_per_s } = event.data;
      write(figures, `${count(connections)} connections, ${rate(publishes_per_s)} published, ${rate(deliveries_per_s)} delivered`);
    }
    inFrame(counts, () => {
      for (const [type, { seen: times, element }] of counts) {
        write(element, times > 0 ? `${type} ${times}` : type);
        set(element, 'class', times > 0 ? 'seen' : null);
      }
    });
  };
  const rooms = ['project:atlas', 'project:borealis', 'project:cascade', 'project:sandbox', 'quote:Q-1001', 'analytics:hub', 'analytics:sales', 'user:anna'];
  rooms.push(...AGENTS.map((name) => `agent:${name}`), ...['atlas', 'borealis', 'cascade'].map((name) => `workflow:${name}`));
  for (const room of rooms) session.hub.subscribe(room, seen);
  session.hub.on('event', seen);
  return h('section', { class: 'card' }, h('h2', null, 'Every type of the protocol'), h('p', null, 'How often each was heard since this page was opened. Their fields are checked when they are published.'), figures, h('ul', { class: 'types' }, [...counts.values()].map(({ element }) => element)));
}

/** @param {import('../dashboard/session.js').Session} session */
function open(session) {
  const state = h('span', { class: 'status good', role: 'status' }, 'Live');
  const header = h('header', null, h('a', { class: 'brand', href: new URL('../dashboard', import.meta.url).href }, 'Ringhub'), h('nav', { 'aria-label': 'Pages' }, h('a', { href: new URL('../dashboard', import.meta.url).href }, 'Dashboard'), h('a', { href: '', 'aria-current': 'page' }, 'Demo')), h('div', { class: 'account' }, state, themeButton(() => {})));
  document.body.prepend(header);
  session.addEventListener('state', () => {
    write(state, session.state);
    set(state, 'class', `status ${session.state === 'live' ? 'good' : 'warn'}`);
  });
  session.addEventListener('end', (event) => {
    header.remove();
    keepToken(null);
    signIn(`Signed out: ${/** @type {CustomEvent} */ (event).detail.message}.`);
  });
  fill(
    main,
    h(
      'div',
      { class: 'view' },
      h('div', { class: 'bar' }, h('h1', null, 'A hub at work')),
      h('p', { class: 'note' }, 'A simulated fleet beside this hub: agents, projects, workflows, a quote with two editors. All of it goes through the hub as yours would.'),
      h('div', { class: 'scenes' }, [projects, beliefs, workflows, quote, slowReader, everyone, types].map((make) => make(session))),
    ),
  );
}

/** @param {string} [why] */
function signIn(why) {
  fill(main, h('div', { class: 'view' }, signInForm(open, why)));
}

async function start() {
  const token = foundToken();
  fill(main, h('p', { class: 'view note', role: 'status' }, 'Connecting…'));
  try {
    open(await begin(token));
  } catch (error) {
    signIn(token === null && /** @type {any} */ (error).status === 401 ? undefined : reason(error));
  }
}

start();
