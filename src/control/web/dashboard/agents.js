/**
 * What agents do: who is at work, how far workflows are, what agents believe, and the patterns they warn of.
 *
 * Agents and workflows have a room each, whose logs tell the present state to whoever comes later.
 *
 * @module
 */

import { roomHref } from './address.js';
import { fill, h, inFrame, notInFrame, set, show, write } from './dom.js';
import { ago, clock, count, many, percent, plain, words } from './format.js';

/** How often it is looked for agents and workflows that are new. */
const INTERVAL_MS = 5000;
/** Rooms of each kind that are followed. */
const ROOMS_MAX = 200;
/** Events of the past that are read of each. */
const LAST = 50;
/** Updates and alerts that are listed. */
const LISTED_MAX = 40;

/** @typedef {import('../ringhub.js').Event} Event */

/**
 * @typedef {object} Agent
 * @property {string} id
 * @property {string} room
 * @property {string} status
 * @property {string} name
 * @property {string} doing
 * @property {number} at when it was heard of last
 * @property {number | undefined} confidence
 * @property {number} alerts
 */

/**
 * @typedef {object} Workflow
 * @property {string} id
 * @property {string} room
 * @property {string} state `running`, `completed` or `failed`
 * @property {number} progress
 * @property {string} step
 * @property {number} at
 */

export class Agents {
  /** @param {import('./app.js').App} app */
  constructor({ session, feed, signal, every }) {
    this._session = session;
    this._feed = feed;
    this._signal = signal;
    /** @type {Map<string, Agent>} */
    this._agents = new Map();
    /** @type {Map<string, Workflow>} */
    this._workflows = new Map();
    /** @type {Event[]} the newest first */
    this._updates = [];
    /** @type {Event[]} */
    this._warnings = [];
    this._followed = new Set();
    /** @type {Map<string, Record<string, any>>} elements by what they show */
    this._cards = new Map();
    this._note = h('p', { class: 'note' }, 'Loading…');
    this._agentList = h('ul', { class: 'agents' });
    this._workflowList = h('ul', { class: 'workflows' });
    this._updateList = h('ol', { class: 'updates' });
    this._warningList = h('ol', { class: 'updates' });
    this._failure = h('p', { class: 'failure', role: 'alert', hidden: true });
    this.element = h(
      'div',
      { class: 'view' },
      h('div', { class: 'bar' }, h('h1', { tabindex: -1 }, 'Agents')),
      this._note,
      this._failure,
      this._agentList,
      h(
        'div',
        { class: 'columns' },
        h('section', { class: 'card' }, h('h2', null, 'Workflows'), this._workflowList),
        h('section', { class: 'card' }, h('h2', null, 'Pattern alerts'), this._warningList),
        h('section', { class: 'card' }, h('h2', null, 'Epistemic updates and predictions'), this._updateList),
      ),
    );
    this._follow('global');
    every(INTERVAL_MS, () => this._find());
  }

  close() {
    notInFrame(this);
  }

  /** Follows the rooms of agents and workflows that are not followed yet. */
  async _find() {
    const [agents, workflows] = await Promise.all(
      ['agent', 'workflow'].map((kind) => this._session.api(`/api/v1/rooms?kind=${kind}&limit=${ROOMS_MAX}`, { signal: this._signal })),
    );
    for (const { room } of [...agents.rooms, ...workflows.rooms]) this._follow(room);
    const left = Math.max(0, agents.total - ROOMS_MAX) + Math.max(0, workflows.total - ROOMS_MAX);
    const text = agents.total + workflows.total === 0 ? 'No agent has been heard of yet: rooms agent:NAME and workflow:NAME are shown here.' : `${many(agents.total, 'agent')}, ${many(workflows.total, 'workflow')}`;
    write(this._note, left > 0 ? `${text}; ${count(left)} of them are not shown` : text);
    this._later();
  }

  /** @param {string} room */
  _follow(room) {
    if (this._followed.has(room)) return;
    this._followed.add(room);
    this._feed.follow(room, {
      event: (event) => this._take(event),
      error: (error) => {
        write(this._failure, `${plain(room)}: ${plain(error.message)}`);
        show(this._failure, true);
      },
      last: LAST,
      signal: this._signal,
    });
  }

  /** @param {Event} event */
  _take(event) {
    const data = event.data !== null && typeof event.data === 'object' ? event.data : {};
    if (event.type.startsWith('agent.') || event.room.startsWith('agent:')) this._takeAgent(event, data);
    if (event.type.startsWith('workflow.')) this._takeWorkflow(event, data);
    if (event.type === 'epistemic_update' || event.type === 'prediction_update') list(this._updates, event);
    if (event.type === 'pattern_alert') list(this._warnings, event);
    this._later();
  }

  /**
   * @param {Event} event
   * @param {Record<string, any>} data
   */
  _takeAgent({ type, room, timestamp }, data) {
    const id = String(data.agent_id ?? nameOf(room));
    if (room === 'global' && data.agent_id === undefined) return;
    const agent = this._agents.get(id) ?? { id, room: room === 'global' ? `agent:${id}` : room, status: 'unknown', name: '', doing: '', at: 0, confidence: undefined, alerts: 0 };
    const at = Date.parse(timestamp);
    agent.at = Math.max(agent.at, at);
    if (typeof data.name === 'string') agent.name = data.name;
    if (type === 'agent.connected') agent.status = typeof data.status === 'string' ? data.status : 'connected';
    if (type === 'agent.disconnected') agent.status = 'disconnected';
    if (type === 'agent.status_changed' && typeof data.status === 'string') agent.status = data.status;
    if (type.startsWith('agent.')) agent.doing = textOf(data.task ?? data.current_task ?? data.message ?? data.reason) || (type === 'agent.status_changed' ? '' : agent.doing);
    if (typeof data.confidence_level === 'number') agent.confidence = data.confidence_level;
    if (type === 'pattern_alert') agent.alerts++;
    if (this._agents.size < ROOMS_MAX * 2 || this._agents.has(id)) this._agents.set(id, agent);
  }

  /**
   * @param {Event} event
   * @param {Record<string, any>} data
   */
  _takeWorkflow({ type, room, timestamp }, data) {
    const id = String(data.workflow_id ?? nameOf(room));
    const before = this._workflows.get(room);
    // In one room one workflow may follow upon another.
    const workflow = before && before.id === id ? before : { id, room, state: 'running', progress: 0, step: '', at: 0 };
    workflow.at = Date.parse(timestamp);
    if (typeof data.progress === 'number') workflow.progress = data.progress;
    workflow.step = textOf(data.step ?? data.message ?? '');
    if (type === 'workflow.started') [workflow.state, workflow.progress] = ['running', data.progress ?? 0];
    if (type === 'workflow.progress') workflow.state = 'running';
    if (type === 'workflow.completed') [workflow.state, workflow.progress] = ['completed', 100];
    if (type === 'workflow.failed') [workflow.state, workflow.step] = ['failed', textOf(data.error) || workflow.step];
    this._workflows.set(room, workflow);
  }

  _later() {
    inFrame(this, () => this._draw());
  }

  _draw() {
    const now = this._session.now();
    const agents = [...this._agents.values()].sort((a, b) => rank(a) - rank(b) || (a.id < b.id ? -1 : 1));
    const workflows = [...this._workflows.values()].sort((a, b) => (a.room < b.room ? -1 : 1));
    this._keep(this._agentList, agents.map((agent) => this._agentCard(agent, now)), 'No agents.');
    this._keep(this._workflowList, workflows.map((workflow) => this._workflowRow(workflow, now)), 'No workflows.');
    this._keep(this._updateList, this._updates.map((event) => this._updateRow(event)), 'None yet.');
    this._keep(this._warningList, this._warnings.map((event) => this._updateRow(event)), 'None yet.');
    const wanted = new Set([...agents.map(({ id }) => `a${id}`), ...workflows.map(({ room }) => `w${room}`), ...[...this._updates, ...this._warnings].map(({ id }) => `e${id}`)]);
    for (const key of this._cards.keys()) if (!wanted.has(key)) this._cards.delete(key);
  }

  /**
   * Puts elements into a list, of which those that are in it stay.
   * @param {HTMLElement} list
   * @param {HTMLElement[]} elements
   * @param {string} empty
   */
  _keep(list, elements, empty) {
    if (elements.length === 0) return list.firstElementChild?.className === 'empty' || fill(list, h('li', { class: 'empty' }, empty));
    elements.forEach((element, index) => {
      if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
    });
    while (list.children.length > elements.length) list.lastElementChild?.remove();
  }

  /**
   * @param {Agent} agent
   * @param {number} now
   */
  _agentCard(agent, now) {
    const key = `a${agent.id}`;
    let card = this._cards.get(key);
    if (!card) {
      const [status, doing, facts] = [h('span'), h('p', { class: 'doing' }), h('p', { class: 'quiet' })];
      const link = h('a', { href: roomHref(agent.room) }, h('bdi', null, plain(agent.id, 100)));
      card = { status, doing, facts, element: h('li', { class: 'card' }, h('h2', null, link), status, doing, facts) };
      this._cards.set(key, card);
    }
    write(card.status, words(agent.status));
    set(card.status, 'class', `status ${toneOf(agent.status)}`);
    write(card.doing, plain(agent.doing || agent.name, 200));
    const confidence = agent.confidence === undefined ? '' : `confidence ${percent(agent.confidence * 100)} · `;
    write(card.facts, `${confidence}${agent.alerts > 0 ? `${many(agent.alerts, 'alert')} · ` : ''}${ago(agent.at, now)} ago`);
    return card.element;
  }

  /**
   * @param {Workflow} workflow
   * @param {number} now
   */
  _workflowRow(workflow, now) {
    const key = `w${workflow.room}`;
    let row = this._cards.get(key);
    if (!row) {
      const [name, bar, state] = [h('a', { href: roomHref(workflow.room) }), h('progress', { max: 100, 'aria-label': `Progress of ${plain(workflow.room, 80)}` }), h('p', { class: 'quiet' })];
      const status = h('span');
      row = { name, bar, state, status, element: h('li', null, h('div', { class: 'bar' }, name, status), bar, state) };
      this._cards.set(key, row);
    }
    write(row.name, plain(workflow.id, 100));
    write(row.status, workflow.state === 'running' ? percent(workflow.progress) : workflow.state);
    set(row.status, 'class', `status ${workflow.state === 'failed' ? 'bad' : workflow.state === 'completed' ? 'good' : 'busy'}`);
    if (row.bar.value !== workflow.progress) row.bar.value = workflow.progress;
    write(row.state, `${plain(workflow.step, 200)}${workflow.step ? ' · ' : ''}${ago(workflow.at, now)} ago`);
    return row.element;
  }

  /** @param {Event} event */
  _updateRow(event) {
    const key = `e${event.id}`;
    const known = this._cards.get(key);
    if (known) return known.element;
    const data = event.data ?? {};
    const text = textOf(data.belief ?? data.summary ?? data.message ?? data.prediction ?? data.pattern ?? (Array.isArray(data.patterns) ? data.patterns.map(textOf).join(', ') : ''));
    const confidence = typeof data.confidence_level === 'number' ? data.confidence_level : undefined;
    const severity = textOf(data.severity);
    const meter = confidence === undefined ? null : h('meter', { min: 0, max: 1, value: confidence, 'aria-label': 'Confidence' });
    const element = h(
      'li',
      null,
      h('div', { class: 'bar' }, h('a', { href: roomHref(event.room) }, plain(data.agent_id ?? nameOf(event.room), 100)), severity && h('span', { class: `status ${toneOf(severity)}` }, plain(severity, 40)), h('time', { class: 'quiet' }, clock(event.timestamp))),
      h('p', null, h('bdi', null, plain(text, 300) || words(event.type))),
      meter && h('p', { class: 'quiet' }, meter, ` ${event.type === 'prediction_update' ? 'predicted with' : 'held with'} ${percent(/** @type {number} */ (confidence) * 100)}`),
    );
    this._cards.set(key, { element });
    return element;
  }
}

/**
 * @param {Event[]} events
 * @param {Event} event
 */
function list(events, event) {
  events.push(event);
  // Rooms tell of the past one after the other.
  events.sort((a, b) => (a.timestamp < b.timestamp ? 1 : a.timestamp > b.timestamp ? -1 : 0));
  if (events.length > LISTED_MAX) events.length = LISTED_MAX;
}

/** @param {string} room */
function nameOf(room) {
  return room.slice(room.indexOf(':') + 1);
}

/** @param {unknown} value */
function textOf(value) {
  return value === undefined || value === null ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value);
}

/** @param {Agent} agent those who need somebody come first */
function rank({ status }) {
  const place = ['bad', 'warn', 'busy', 'good', '', 'off'].indexOf(toneOf(status));
  return place < 0 ? 4 : place;
}

/** @param {string} word */
function toneOf(word) {
  if (/^(failed|error|critical|blocked|crashed|high)$/i.test(word)) return 'bad';
  if (/^(warning|waiting|stuck|degraded|paused|medium)$/i.test(word)) return 'warn';
  if (/^(working|running|busy|thinking|active|executing)$/i.test(word)) return 'busy';
  if (/^(disconnected|offline|stopped)$/i.test(word)) return 'off';
  if (/^(idle|ready|connected|completed|done|online|info|low)$/i.test(word)) return 'good';
  return '';
}
