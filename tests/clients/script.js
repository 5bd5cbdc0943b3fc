// A hub that says what a test tells it to, and a clock that goes when it is told to: for what depends on time.
import assert from 'node:assert/strict';
import { Ringhub } from '../../src/control/web/ringhub.js';

export const START_MS = Date.parse('2026-07-01T09:00:00Z');

/** Time that stands still between `pass`es. */
class Clock {
  time = START_MS;
  timers = new Map();
  #next = 1;
  now = () => this.time;
  setTimeout = (call, ms) => {
    assert.ok(ms >= 0 && ms < 2 ** 31, `no timer takes ${ms} ms`);
    this.timers.set(this.#next, { at: this.time + ms, call });
    return this.#next++;
  };
  clearTimeout = (timer) => this.timers.delete(timer);

  /** Lets time pass, timer by timer, with everything that follows from each. */
  async pass(ms) {
    const until = this.time + ms;
    await settled();
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= until).sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].call();
      await settled();
    }
    this.time = until;
  }
}

/** All that was to follow has followed. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));

/** The hub's end of a WebSocket. */
class Socket {
  sent = [];
  bufferedAmount = 0;
  closed = false;
  constructor(world, url, protocols) {
    Object.assign(this, { world, url, protocols });
    world.sockets.push(this);
    this.listeners = {};
  }

  /** As npm's ws has it. */
  on(type, listener) {
    this.listeners[type] = listener;
  }

  // What the client calls.

  send(text) {
    assert.ok(!this.closed, `sent into a closed socket: ${text}`);
    const message = JSON.parse(text);
    if (message.type === 'ping' && this.world.pongs) queueMicrotask(() => this.say({ type: 'pong', ref: message.id, data: {} }));
    else this.sent.push(message);
  }

  close() {
    this.closed = true;
  }

  // What a test does.

  say(message) {
    this.onmessage?.({ data: JSON.stringify({ id: 'x', timestamp: new Date(this.world.clock.time + this.world.skew).toISOString(), ...message }) });
  }

  /** A frame as it is. */
  frame(value) {
    this.onmessage?.({ data: JSON.stringify(value) });
  }

  /** The handshake is refused, as it is told to a client of npm's ws. */
  refuseUpgrade(statusCode, headers = {}) {
    this.listeners['unexpected-response']({}, { statusCode, headers });
  }

  greet(more = {}) {
    this.onopen?.({});
    const number = this.world.sockets.indexOf(this) + 1;
    this.say({
      type: 'connection_established',
      data: {
        client_id: `c${number}`,
        session_id: `s${number}`,
        user_id: 'ann',
        roles: [],
        rooms: [],
        heartbeat: { interval_s: 30, timeout_s: 10 },
        resume: { token: `resume ${number}`, window_s: 120 },
        limits: { message_bytes_max: 1000, rooms_max: 10, messages_per_s: 0 },
        server: { name: 'ringhub', version: '0', node: 'n' },
        ...more,
      },
    });
  }

  /** Takes the next command of a type, which must have been sent. */
  take(type) {
    const at = this.sent.findIndex((message) => message.type === type);
    assert.notEqual(at, -1, `no ${type} was sent; there is ${JSON.stringify(this.sent)}`);
    return this.sent.splice(at, 1)[0];
  }

  /** Takes a command and answers it. */
  answer(type, data, as = { subscribe: 'subscribed', unsubscribe: 'unsubscribed', publish: 'published' }[type] ?? type) {
    const command = this.take(type);
    this.say({ type: as, ref: command.id, data });
    return command.data;
  }

  refuse(type, code, more = {}) {
    const command = this.take(type);
    this.say({ type: 'error', ref: command.id, data: { code, message: `${code}, says the test`, details: {}, ...more } });
    return command.data;
  }

  subscribed(room, more = {}) {
    return this.answer('subscribe', standing(room, more));
  }

  event(room, seq, type = 'n', data = {}, more = {}) {
    this.say({ type, id: `${room}#${seq}`, room, seq, data, ...more });
  }

  hangUp(code = 1006, reason = '') {
    this.closed = true;
    this.onclose?.({ code, reason });
  }
}

/** What `subscribed` says of a room. */
export const standing = (room, more = {}) => ({ room, seq: 0, epoch: 'e1', recovered: true, replayed: 0, missed: 0, ...more });

/** A client with all that is around it. */
export class World {
  sockets = [];
  clock = new Clock();
  random = 0.5;
  /** Whether the hub answers pings, of which a test then sees nothing. */
  pongs = true;
  /** How far the hub's clock is ahead. */
  skew = 0;
  states = [];
  errors = [];
  events = [];
  /** What is asked over HTTP, and the answers to it. */
  asked = [];
  answers = [];
  window = new EventTarget();
  document = Object.assign(new EventTarget(), { visibilityState: 'visible' });

  constructor(options = {}) {
    const world = this;
    const { now, setTimeout, clearTimeout } = this.clock;
    this.hub = new Ringhub({
      url: 'http://hub.example/ws',
      WebSocket: class extends Socket {
        constructor(url, protocols) {
          super(world, url, protocols);
        }
      },
      platform: { now, setTimeout, clearTimeout, random: () => this.random, window: this.window, document: this.document, fetch: this.fetch },
      ...options,
    });
    this.hub.on('state', (change) => this.states.push(change));
    this.hub.on('error', (error) => this.errors.push(error));
    this.hub.on('event', (event) => this.events.push(event));
  }

  /** Answers with the next of `answers`; without one nobody is there. */
  fetch = async (url) => {
    this.asked.push(String(url));
    const answer = await (this.answer ?? this.answers.shift());
    if (!answer) throw new TypeError('nobody answers');
    return new Response('{}', answer);
  };

  get socket() {
    return this.sockets.at(-1);
  }

  /** A world whose client is connected. */
  static async connected(options, greeting) {
    const world = new World(options);
    world.hub.connect();
    await settled();
    world.socket.greet(greeting);
    await settled();
    return world;
  }

  pass(ms) {
    return this.clock.pass(ms);
  }

  /** The connection is lost, and the next one is there; not greeted yet. */
  async reconnect(code, reason) {
    this.socket.hangUp(code, reason);
    await this.comeBack();
    return this.socket;
  }

  /** The pause is over. */
  comeBack() {
    return this.pass(this.states.at(-1).retry_in_ms);
  }

  /** The same, and the session goes on: `rooms` stand so. */
  async resume(rooms = [], more = {}) {
    const socket = await this.reconnect();
    socket.greet();
    await settled();
    const asked = socket.answer('resume', { session_id: 's1', resume: { token: 'resume 1' }, locks: [], results: rooms, ...more }, 'resumed');
    await settled();
    return asked;
  }

  /** A subscription that the hub has taken, and what it was given. */
  async subscribe(room, options, more) {
    const got = [];
    const subscription = this.hub.subscribe(room, (event) => got.push(event.seq), options);
    await settled();
    this.socket.subscribed(room, more);
    await subscription.ready;
    return { subscription, got };
  }
}

/** An unsigned token that looks like one. */
export function jwt(claims) {
  return ['{}', JSON.stringify(claims), 'signature'].map((part) => Buffer.from(part).toString('base64url')).join('.');
}

/** What a promise was rejected with. */
export async function failure(promise) {
  return promise.then(
    (value) => assert.fail(`it worked: ${JSON.stringify(value)}`),
    (error) => error,
  );
}
