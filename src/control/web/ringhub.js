/**
 * Ringhub's client for browsers and Node: one connection that comes back by itself, rooms that go on where they were.
 *
 *     import { Ringhub } from '/ringhub.js';
 *
 *     const hub = new Ringhub({ token: () => fetch('/api/hub-token').then((answer) => answer.text()) });
 *     hub.connect();
 *
 *     hub.subscribe('project:1', {
 *       'project.updated': (event) => show(event.data),
 *       '*': (event) => console.log(event.type, event.data),
 *     });
 *     await hub.publish('project:1', 'note.added', { text: 'hello' });
 *
 * Methods may be called before there is a connection and while it is away: what they ask for waits in a bounded queue.
 * Options and fields are named as in the protocol, with underscores and their unit at the end.
 *
 * In Node 20 give a WebSocket class, `new Ringhub({ url, WebSocket: (await import('ws')).WebSocket })`; Node 22 has one.
 *
 * How it is made: `#open`, `#receive` and `#lost` are the life of a connection. A command is a text that waits in `#queue`,
 * and once it is sent in `#sent`, until it is answered. A `Room` is what the hub is to send of a room, shared by that
 * room's subscriptions; `#settle` brings the hub to what they want, one command at a time for each room.
 *
 * @module
 */

/**
 * JSON.
 * @typedef {any} Json
 */

/**
 * An event of a room.
 * @template [T=any]
 * @typedef {object} Event
 * @property {string} type for instance `project.updated`
 * @property {string} id unique (UUIDv7)
 * @property {string} timestamp RFC 3339, UTC
 * @property {string} room
 * @property {number} seq its number in the room, from 1 on without holes
 * @property {T} data what was published
 */

/**
 * A place in a room's log: all up to `seq`. In another epoch the log is another one.
 * @typedef {{ seq: number, epoch?: string }} Position
 */

/**
 * Where to begin: after a place in the log, with the newest so many events, or with those of the last seconds.
 * @typedef {Position | { last: number } | { seconds: number }} Since
 */

/**
 * Conditions over an event's `data` that all must hold; dots reach inside. A condition is a plain value, or an object of
 * `min`, `max`, `in`, `prefix`, `exists` and `not`. `any` lists alternatives.
 *
 *     { confidence_level: { min: 0.8 }, 'agent.name': { prefix: 'db-' }, status: { in: ['failed', 'blocked'] } }
 *
 * @typedef {Record<string, any>} Filters
 */

/**
 * How a subscription stands, as the hub told it.
 * @typedef {object} Subscribed
 * @property {string} room
 * @property {number} seq the room's last event at that time
 * @property {string} epoch
 * @property {boolean} recovered whether nothing was missed since the place that was asked for
 * @property {number} replayed how many past events follow
 * @property {number | null} missed how many events are lost; null where that can't be known. Where `types` or `filters` are
 *     used, lost events count whether or not they were wanted
 */

/**
 * Events that the hub had to leave out, because this client read too slowly or was away for too long.
 * @typedef {object} Gap
 * @property {string} room
 * @property {number | null} from_seq
 * @property {number | null} to_seq with `epoch`, those of the new log up to here are not given; 0 where all are
 * @property {string} reason
 * @property {string} [epoch] the room's log is another one from here on, with numbers of its own
 */

/**
 * Who one is.
 * @typedef {object} Session
 * @property {string} client_id of this connection
 * @property {string} session_id stays the same over reconnects
 * @property {string} user_id
 * @property {string[]} roles
 * @property {string[]} rooms joined without asking
 * @property {{ interval_s: number, timeout_s: number }} heartbeat
 * @property {{ message_bytes_max: number, rooms_max: number, messages_per_s: number }} limits
 * @property {{ token: string, window_s: number }} resume
 * @property {{ name: string, version: string, node: string }} server
 * @property {boolean} resumed whether the session is the one of the connection before
 */

/**
 * Somebody in a room.
 * @typedef {object} Member
 * @property {string} client_id
 * @property {string} user_id
 * @property {string} session_id identifies a member: the client id changes with a reconnect
 * @property {Record<string, Json>} metadata
 * @property {string} joined_at RFC 3339, UTC
 */

/** @typedef {{ room: string, seq: number, count: number, members: Member[], more: boolean }} Presence */

/** @typedef {{ room: string, id: string, seq: number, epoch: string, duplicate: boolean }} Published */

/** @typedef {{ client: string } | { session: string } | { sessions: string[] } | { user: string }} Target */

/**
 * `closed`: until `connect` is called. `connecting`: until the hub has greeted. `connected`. `waiting`: away, and coming back
 * by itself.
 * @typedef {'closed' | 'connecting' | 'connected' | 'waiting'} State
 */

/**
 * @typedef {object} StateChange
 * @property {State} state
 * @property {State} previous
 * @property {number} [code] the close code of the connection that was lost; 1006 where there was no farewell
 * @property {string} [reason]
 * @property {number} [retry_in_ms] when `waiting`: how long
 * @property {RinghubError} [error] when `closed` for good: why
 */

/**
 * @typedef {object} HubEvents
 * @property {StateChange} state the connection's state has changed
 * @property {Event} event an event of a room that was joined without asking (what was sent to this user or session, and
 *     `global`), unless it is subscribed to
 * @property {Gap} gap events of a room were left out; subscriptions of the room are told too
 * @property {{ reconnect_after_ms: number }} draining the hub is about to shut down; the connection comes back by itself
 * @property {{ expires_at: string | null }} expiring the token is about to end; with a token callback it is replaced
 * @property {unknown} error what nobody waited for: a handler threw, the token callback failed, an ack was refused. Without a
 *     listener it is reported to the console
 */

/**
 * @typedef {object} SubscriptionEvents
 * @property {Subscribed} recovered the connection came back; where `recovered` is false, read the state anew
 * @property {Gap} gap events were left out
 * @property {RinghubError} end the hub ended the subscription, for instance since a permission was withdrawn
 */

/**
 * What is needed from the surroundings. Everything has a default; tests bring their own clock.
 * @typedef {object} Platform
 * @property {() => number} now milliseconds since 1970
 * @property {() => number} random from 0 to 1
 * @property {(call: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 * @property {EventTarget | undefined} window where `online`, `offline` and `pageshow` are told
 * @property {(EventTarget & { visibilityState: string }) | undefined} document where `visibilitychange` is told
 * @property {typeof globalThis.fetch | undefined} fetch asks `/ready` beside the hub's `/ws` when to come back, where a connection
 *     was refused without a word
 */

/**
 * @typedef {object} Options
 * @property {string | URL} [url] of the hub's `/ws`; `http:`, `https:` and, in pages, a path will do. By default beside this
 *     module, which is where a hub serves it
 * @property {string | null | ((ask: { reason: 'connect' | 'expiring' | 'refused' }) => string | null | Promise<string | null>)} [token]
 *     a JWT, or what makes one. A function is asked again ahead of a token's end and after a refusal. None where a cookie says
 *     who one is
 * @property {string} [client_id] a name for the connection; the hub refuses it while another connection has it
 * @property {string} [session_id] a name for the session. Whoever connects with it last has it: 4409 ends the other one
 * @property {boolean} [batch] have events of a room that are due at once in one frame, which wakes the page once for all
 * @property {any} [WebSocket] the class to use; by default the global one
 * @property {number} [timeout_ms] how long the hub may take to answer a command that was sent, 10 000
 * @property {number} [connect_timeout_ms] from asking for the token to the hub's greeting, 10 000
 * @property {number} [reconnect_min_ms] the first pause is drawn from 0 to this, 500; each further one from twice as much
 * @property {number} [reconnect_max_ms] pauses are drawn from 0 to at most this, 30 000
 * @property {number} [queue_max] commands that may wait to be sent, 1000
 * @property {Partial<Platform>} [platform]
 */

/**
 * @typedef {object} CallOptions
 * @property {number} [timeout_ms] how long the hub may take to answer, from sending on; waiting for a connection does not
 *     count: bound that with `signal`
 * @property {AbortSignal} [signal] gives up; what was sent may have been done all the same
 */

/**
 * @typedef {object} SubscribeOptions
 * @property {string[]} [types] only events of these types. Follows from the handlers where they are given by type
 * @property {Filters} [filters] only events whose data satisfies them
 * @property {Since} [since] begin in the past
 * @property {boolean} [ack] tell the hub what was handled: a session that another client resumes goes on behind it. An event
 *     is handled when its handler has returned, or when the promise that it returned is settled
 * @property {AbortSignal} [signal] ends the subscription
 */

/** @typedef {(event: Event) => unknown} Handler */

/**
 * A handler for every event, or handlers by type; `*` takes the types that have none.
 * @typedef {Handler | Record<string, Handler>} Handlers
 */

/**
 * A command on its way.
 * @typedef {object} Command
 * @property {number} id
 * @property {string} type
 * @property {string} text
 * @property {boolean} repeats whether it may be sent again on the next connection
 * @property {number} [first] when it was sent first
 * @property {number} [last] when it was sent last
 * @property {number} timeout_ms
 * @property {any} [timer]
 * @property {() => void} [unlisten]
 * @property {string} [locks] of a `lock.acquire`: what
 * @property {(answer: any, message: any) => void} resolve
 * @property {(error: any) => void} reject
 */

/**
 * What the hub sends of a room, for all subscriptions to it.
 * @typedef {object} Room
 * @property {string} name
 * @property {number} seq the last event that was received
 * @property {string | undefined} epoch known once the hub has said it
 * @property {boolean} auto joined without asking
 * @property {boolean} joined whether events that arrive are the ones that come next
 * @property {boolean} busy whether a command about it is on its way
 * @property {boolean} refused whether the hub won't say where a room that was joined without asking stands
 * @property {number} told its last event as the hub counted when it answered last
 * @property {string | undefined} selection what the hub was told to choose
 * @property {Event[]} held events that came before it was known where they belong
 * @property {Set<Subscription>} subscriptions
 * @property {Promise<unknown> | undefined} handling
 * @property {number} handled the last event that is handled
 * @property {number} acked the last event that the hub was told of
 */

// The hub closed since it did not like a message, and would not like it a second time.
const DISLIKED = [1002, 1003, 1007, 1008, 1009];
// The hub knows a key for five minutes; the way there takes a part of them.
const KEY_AGE_MS = 270_000;
// How long a connection has to hold for the pauses to become short again.
const STABLE_MS = 5000;
// A sign of life that somebody in front of the screen waits for.
const PROBE_MS = 5000;
// The client's own commands are answered by then, or the connection is worth nothing, however impatient its user is.
const OWN_TIMEOUT_MS = 10_000;
// Acks are gathered for so long: each says all that those before it have said.
const ACK_MS = 500;
// What the hub could not do is asked for again after this, and up to twice as long.
const RETRY_MS = 1000;
// Longer timers fire at once.
const TIMER_MAX_MS = 2 ** 31 - 1;
// Bytes that may wait in the socket, so that a ping is not minutes behind, and how often to look when they are more.
const BUFFERED_BYTES_MAX = 1 << 18;
const BUFFER_LOOK_MS = 50;
// Beyond so many different filters in one room the hub sends everything; the choice is made here anyway.
const FILTERS_MAX = 8;
// Rooms in one command; the hub takes 1000.
const ROOMS_MAX = 500;
// Events of one's own (`echo: false`) that a replay may still bring.
const OWN_IDS_MAX = 1000;

/**
 * What all errors of this module are. `code` is the protocol's where the hub sent it.
 *
 *     try {
 *       await hub.publish('project:1', 'note.added', { text });
 *     } catch (error) {
 *       if (error instanceof Refused && error.code === 'forbidden') …
 *       else if (error instanceof QueueFull) …
 *     }
 */
export class RinghubError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {ErrorOptions} [options]
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = 'RinghubError';
    /** A word for programs: `forbidden`, `timeout`, … */
    this.code = code;
  }
}

/** The hub said no: `code` is one of the protocol's (`forbidden`, `lock_held`, `rate_limited`, …). */
export class Refused extends RinghubError {
  /** @param {{ code: string, message: string, details?: Record<string, any>, retry_after_ms?: number }} error */
  constructor(error) {
    super(error.code, error.message);
    this.name = 'Refused';
    /** More about it, for instance `holder` of `lock_held`. @type {Record<string, any>} */
    this.details = error.details ?? {};
    /** When to try again, where the hub says so. @type {number | undefined} */
    this.retry_after_ms = error.retry_after_ms ?? this.details.retry_after_ms;
  }
}

/**
 * The connection ended before the answer came, and the command could not be repeated; or there is none and none is tried.
 * Whether the command was carried out is not known.
 */
export class ConnectionClosed extends RinghubError {
  /**
   * @param {string} message
   * @param {number} [close_code]
   * @param {string} [reason]
   * @param {ErrorOptions} [options]
   */
  constructor(message, close_code, reason, options) {
    super('connection_closed', message, options);
    this.name = 'ConnectionClosed';
    /** For instance 4401; none where the client closed it. */
    this.close_code = close_code;
    /** What the hub said about it. */
    this.reason = reason;
  }
}

/** The hub did not answer in time. Whether the command was carried out is not known. */
export class Timeout extends RinghubError {
  /** @param {string} message */
  constructor(message) {
    super('timeout', message);
    this.name = 'Timeout';
  }
}

/** Too much waits to be sent: the command was not taken. */
export class QueueFull extends RinghubError {
  /** @param {number} queue_max */
  constructor(queue_max) {
    super('queue_full', `${queue_max} commands wait for the connection already`);
    this.name = 'QueueFull';
  }
}

/**
 * `on` and `off`.
 * @template {Record<string, any>} Events
 */
class Emitter {
  /** @type {Map<any, Set<(value: any) => unknown>>} */
  #listeners = new Map();

  /**
   * Calls a function whenever something happens.
   * @template {keyof Events} K
   * @param {K} type
   * @param {(value: Events[K]) => unknown} listener
   * @returns {() => void} ends it
   */
  on(type, listener) {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    return () => this.off(type, listener);
  }

  /**
   * Calls it no longer.
   * @template {keyof Events} K
   * @param {K} type
   * @param {(value: Events[K]) => unknown} listener
   */
  off(type, listener) {
    this.#listeners.get(type)?.delete(listener);
  }

  /**
   * @internal
   * @template {keyof Events} K
   * @param {K} type
   * @param {Events[K]} value
   * @param {(error: unknown) => void} report
   * @returns {boolean} whether anybody listens
   */
  _emit(type, value, report) {
    const listeners = [...(this.#listeners.get(type) ?? [])];
    for (const listener of listeners) guarded(() => listener(value), report);
    return listeners.length > 0;
  }
}

/**
 * Somebody's interest in a room. Made by {@link Ringhub.subscribe}.
 *
 *     const subscription = hub.subscribe('project:1', show, { since: { last: 20 } });
 *     await subscription.ready;
 *     subscription.on('gap', reload);
 *     subscription.on('recovered', ({ recovered }) => recovered || reload());
 *     subscription.unsubscribe();
 *
 * @extends {Emitter<SubscriptionEvents>}
 */
export class Subscription extends Emitter {
  /**
   * @internal
   * @param {Room} room
   * @param {Handlers} handlers
   * @param {SubscribeOptions} options
   * @param {() => void} leave
   */
  constructor(room, handlers, options, leave) {
    super();
    /** The room's name. */
    this.room = room.name;
    /** @internal */
    this._room = room;
    /** @internal */
    this._handlers = handlers;
    /** @internal */
    this._options = options;
    const named = typeof handlers === 'function' || handlers['*'] ? undefined : Object.keys(handlers);
    /** @internal @type {string[] | undefined} */
    this._types = options.types ?? named;
    /** @internal @type {'waiting' | 'loading' | 'live' | 'ended'} */
    this._phase = 'waiting';
    /** @internal Events up to here are not for it, or come from the log. */
    this._from = 0;
    /** @internal Live events that came while those before them are read from the log. @type {Event[]} */
    this._held = [];
    /** @internal */
    this._leave = leave;
    /** @internal @type {(answer: Subscribed) => void} */
    this._resolve = () => {};
    /** @internal @type {(error: unknown) => void} */
    this._reject = () => {};
    /**
     * Settled when the hub has answered for the first time; rejected with {@link Refused} where it said no. Past events come
     * after it.
     * @type {Promise<Subscribed>}
     */
    this.ready = new Promise((resolve, reject) => {
      this._resolve = resolve;
      this._reject = reject;
    });
    this.ready.catch(() => {});
  }

  /** Whether events may still come. */
  get active() {
    return this._phase !== 'ended';
  }

  /**
   * The last event of the room that was received; none before there was an answer.
   * @returns {Position | undefined}
   */
  get position() {
    const { seq, epoch } = this._room;
    return epoch === undefined ? undefined : { seq, epoch };
  }

  /** Ends it: no handler is called any more. The room is left when this was its last subscription. */
  unsubscribe() {
    this._leave();
  }
}

/**
 * A field that one may edit and nobody else. Made by {@link Ringhub.lock}; it is renewed until it is released or lost.
 * @extends {Emitter<{ lost: { reason: string } }>}
 */
export class Lock extends Emitter {
  /**
   * @internal
   * @param {{ room: string, field: string, token: number, expires_at: string }} answer
   * @param {number} ttl_s
   * @param {(lock: Lock) => Promise<void>} release
   */
  constructor(answer, ttl_s, release) {
    super();
    /** The room's name. */
    this.room = answer.room;
    /** The field's. */
    this.field = answer.field;
    /** The fencing number: it only grows, and a backend can refuse whoever comes with a lower one than it has seen. */
    this.token = answer.token;
    /** When the hub ends it unless it is renewed; RFC 3339, UTC. */
    this.expires_at = answer.expires_at;
    /** Whether one has it, as far as is known here: it is given up before the hub gives it to somebody else. */
    this.held = true;
    /** @internal */
    this._ttl_s = ttl_s;
    /** @internal */
    this._until = 0;
    /** @internal @type {any} */
    this._timer = undefined;
    /** @internal */
    this._release = release;
  }

  /**
   * Gives it back. Without effect on one that was lost.
   * @returns {Promise<void>}
   */
  release() {
    return this._release(this);
  }
}

/**
 * Who is in a room, kept up to date. Made by {@link Ringhub.watchPresence}.
 * @extends {Emitter<{ change: PresenceView }>}
 */
export class PresenceView extends Emitter {
  /**
   * @internal
   * @param {string} room
   * @param {() => void} close
   */
  constructor(room, close) {
    super();
    /** The room's name. */
    this.room = room;
    /** How many sessions are there. */
    this.count = 0;
    /** @internal @type {Map<string, Member>} */
    this._members = new Map();
    /** Settled when the members are known. @type {Promise<PresenceView>} */
    this.ready = Promise.resolve(this);
    /** Ends it. */
    this.close = close;
  }

  /** The members, by when they joined; at most 1000 of those that were there at first. */
  get members() {
    return [...this._members.values()];
  }
}

/**
 * A connection to a hub.
 *
 *     const hub = new Ringhub({ url: 'wss://hub.example.com/ws', token: getToken });
 *     hub.on('state', ({ state, retry_in_ms }) => banner(state, retry_in_ms));
 *     hub.on('event', (event) => notify(event.data));        // sent to this user or session
 *     await hub.connect();
 *
 * When the network goes, it reconnects with growing random pauses (at once when the browser says that it is online, or the
 * page is looked at again), takes its session up and gets what it missed. It does not come back by itself after 4401 (the
 * token ended, and the callback's new one was refused too), 4403 and 4500, and 4409 for a `session_id` of one's own.
 *
 * @extends {Emitter<HubEvents>}
 */
export class Ringhub extends Emitter {
  /** @type {Options & { timeout_ms: number, connect_timeout_ms: number, reconnect_min_ms: number, reconnect_max_ms: number, queue_max: number }} */
  #options;
  /** @type {Platform} */
  #platform;
  #url;
  /** @type {State} */
  #state = 'closed';
  /** @type {any} */
  #socket;
  /** Counts connections, so that what belongs to an earlier one is known. */
  #turn = 0;
  /** What the present connection was greeted with. @type {Session | undefined} */
  #greeting;
  /** The last session that began, which the next connection goes on with. @type {Session | undefined} */
  #session;
  #resuming = false;
  /** @type {{ resolve: (session: Session) => void, reject: (error: unknown) => void }[]} */
  #waiters = [];

  /** @type {string | null | undefined} */
  #token;
  #tokenEnds = Infinity;
  /** Whether the last attempt ended without a greeting, which may be the token's fault. */
  #tokenIsSuspect = false;
  #tokenWasRenewed = false;
  /** @type {Promise<void> | undefined} */
  #refreshing;
  /** How far the hub's clock is ahead of this one's. */
  #skew = 0;

  #attempt = 0;
  #connectedAt = 0;
  /** @type {number | undefined} */
  #hint;
  #waitsByHint = false;
  /** When it is tried again. */
  #retryAt = 0;
  /** Whether it is worth asking at `/ready`: pages of some origins may not, and where nobody is nobody answers. */
  #mayAsk = true;
  #heardAt = 0;
  #heard = 0;
  /** @type {Record<string, any>} */
  #timers = {};

  #nextId = 1;
  /** The client's own commands that wait, ahead of all others. @type {Command[]} */
  #asks = [];
  /** @type {Command[]} */
  #queue = [];
  /** @type {Map<number, Command>} */
  #sent = new Map();
  #budget = 0;
  #budgetAt = 0;
  #keyPrefix = [...crypto.getRandomValues(new Uint8Array(9))].map((byte) => byte.toString(36).padStart(2, '0')).join('');

  /** @type {Map<string, Room>} */
  #rooms = new Map();
  #isUnsettled = false;
  /** @type {Set<Lock>} */
  #locks = new Set();
  /** Events that this client did not want back (`echo: false`) and a replay may bring all the same. @type {Set<string>} */
  #ownIds = new Set();
  /** @type {[EventTarget, string, () => void][]} */
  #pageListeners = [];

  /** @param {Options} [options] */
  constructor(options = {}) {
    super();
    const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
    this.#options = {
      timeout_ms: 10_000,
      connect_timeout_ms: 10_000,
      reconnect_min_ms: 500,
      reconnect_max_ms: 30_000,
      queue_max: 1000,
      WebSocket: globalThis.WebSocket,
      ...given,
    };
    const { window, document } = /** @type {any} */ (globalThis);
    this.#platform = {
      now: () => Date.now(),
      random: () => Math.random(),
      setTimeout: (call, ms) => setTimeout(call, ms),
      clearTimeout: (timer) => clearTimeout(timer),
      // Workers have no window, and are told of the network all the same.
      window: window ?? (typeof globalThis.addEventListener === 'function' ? globalThis : undefined),
      document,
      fetch: globalThis.fetch?.bind(globalThis),
      ...options.platform,
    };
    const url = new URL(options.url ?? new URL('ws', import.meta.url), globalThis.location?.href);
    url.protocol = url.protocol.replace(/^http/, 'ws');
    if (!/^wss?:$/.test(url.protocol)) throw new TypeError('url is needed where this module does not come from a hub');
    if (!this.#options.WebSocket) throw new TypeError('WebSocket is needed where there is no global one');
    for (const name of /** @type {const} */ (['client_id', 'session_id'])) {
      if (options[name]) url.searchParams.set(name, options[name]);
    }
    this.#url = url.href;
  }

  /** Where the connection stands. */
  get state() {
    return this.#state;
  }

  /** Who one is, as the hub said last; none before the first greeting. */
  get session() {
    return this.#session;
  }

  // ---- the connection ----

  /**
   * Connects, at once also where it would have been tried later, and again after it was closed. Subscriptions come back.
   * Need not be awaited.
   * @returns {Promise<Session>} settled when the hub has greeted; rejected with {@link ConnectionClosed} where it is closed for
   *     good before
   */
  connect() {
    if (this.#state === 'connected' && this.#session) return Promise.resolve(this.#session);
    const greeted = new Promise((/** @type {(session: Session) => void} */ resolve, reject) => {
      this.#waiters.push({ resolve, reject });
    });
    greeted.catch(() => {});
    if (this.#state !== 'connecting') {
      this.#attempt = 0;
      this.#tokenWasRenewed = false;
      this.#listenToPage();
      this.#open();
    }
    return greeted;
  }

  /** Closes the connection, releases locks and refuses what waits. `connect` brings subscriptions back. */
  close() {
    if (this.#state === 'connected') for (const lock of [...this.#locks]) lock.release().catch(() => {});
    this.#end(new ConnectionClosed('the client has closed the connection'));
  }

  async #open() {
    this.#clear('reconnect');
    const turn = ++this.#turn;
    const { WebSocket, connect_timeout_ms, batch } = this.#options;
    this.#set('connecting');
    // Whoever was told may have closed it.
    if (turn !== this.#turn) return;
    this.#after('connect', connect_timeout_ms, () => this.#lost(1006, 'the hub did not greet in time'));
    try {
      const { now } = this.#platform;
      if (this.#token === undefined || this.#tokenIsSuspect || this.#tokenEnds - now() < PROBE_MS) {
        const token = await this.#askForToken(this.#tokenWasRenewed ? 'refused' : 'connect');
        if (turn !== this.#turn) return;
        this.#keepToken(token);
      }
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#report(error);
      return this.#lost(1006, 'the token callback failed');
    }
    if (this.#tokenWasRenewed && !this.#token) return this.#end(new ConnectionClosed('there is no new token', 4401));
    this.#tokenIsSuspect = true;
    const protocols = ['ringhub.v1.json'];
    if (batch) protocols.unshift('ringhub.v1.json.batch');
    if (this.#token) protocols.push(`bearer.${this.#token}`);
    try {
      const socket = new WebSocket(this.#url, protocols);
      this.#socket = socket;
      socket.onmessage = (/** @type {{ data: any }} */ { data }) => this.#receive(data);
      // Browsers keep the reason of a refusal to themselves; npm's ws has it.
      let why = '';
      let isOpen = false;
      socket.onopen = () => (isOpen = true);
      socket.onerror = (/** @type {{ message?: string }} */ { message }) => (why = message ?? '');
      socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => {
        this.#lost(code, reason || why);
        if (!isOpen) this.#askWhen();
      };
      socket.on?.('unexpected-response', (/** @type {unknown} */ _request, /** @type {any} */ { statusCode, headers }) => {
        if (turn === this.#turn) this.#lost(1006, `the answer is ${statusCode}`, headers['retry-after']);
      });
    } catch (error) {
      this.#end(new ConnectionClosed(`no connection can be opened: ${error}`, undefined, undefined, { cause: error }));
    }
  }

  /** @param {string} text */
  #receive(text) {
    this.#heardAt = this.#platform.now();
    this.#heard++;
    let messages;
    try {
      // Events may come several at a time.
      messages = [JSON.parse(text)].flat();
    } catch (error) {
      return this.#report(error);
    }
    const turn = this.#turn;
    for (const message of messages) {
      // A handler may have ended the connection.
      if (turn === this.#turn) this.#message(message);
    }
  }

  /** @param {any} message */
  #message(message) {
    const { type, ref, room, seq, data } = message;
    if (ref !== undefined) return this.#answered(ref, message);
    if (seq !== undefined) return this.#event(message);
    if (type === 'connection_established') return this.#greeted(message);
    if (type === 'gap') return this.#gap(data);
    if (type === 'error') return this.#complained(data);
    if (type === 'unsubscribed') return this.#expelled(data.room, data.reason);
    if (type === 'draining') {
      this.#hint = data.reconnect_after_ms;
      this.#tell('draining', data);
    }
    if (type === 'auth.expiring') {
      this.#tell('expiring', data);
      this.refresh().catch((error) => this.#report(error));
    }
  }

  /**
   * An error that answers nothing.
   * @param {{ code: string, message: string, details?: Record<string, any> }} error
   */
  #complained(error) {
    // An operator has freed a lock, which who is in the room is told too.
    const { room, field, token } = error.details ?? {};
    if (error.code === 'lock_lost' && field) this.#lockTold(room, { field, token, reason: 'forced' });
    else this.#report(new Refused(error));
  }

  /** @param {{ timestamp: string, data: Session }} message */
  #greeted({ timestamp, data }) {
    const now = this.#platform.now();
    this.#clear('connect');
    this.#greeting = data;
    this.#tokenIsSuspect = false;
    this.#mayAsk = true;
    this.#skew = Date.parse(timestamp) - now;
    this.#keepToken(this.#token);
    this.#connectedAt = this.#budgetAt = now;
    this.#budget = data.limits.messages_per_s;
    this.#hint = undefined;
    this.#beat();
    if (!this.#session) return this.#began(data);
    this.#resuming = true;
    /** @type {Record<string, Position>} */
    const cursors = {};
    for (const { name, seq, epoch } of this.#rooms.values()) {
      if (seq > 0 || epoch !== undefined) cursors[name] = { seq, epoch };
    }
    const { session_id, resume } = this.#session;
    this.#ask('resume', { session_id, token: resume.token, cursors }, (answer) => this.#resumed(answer, data), (error) => {
      // The session may be had later.
      if (isPassing(error.code)) return this.#lost(1006, error.message);
      this.#resuming = false;
      this.#began(data);
    });
  }

  /**
   * A session begins.
   * @param {Session} greeting
   */
  #began(greeting) {
    const turn = this.#turn;
    this.#session = { ...greeting, resumed: false };
    for (const lock of this.#locks) this.#lockLost(lock, 'session_ended');
    for (const room of this.#rooms.values()) room.auto = false;
    for (const name of greeting.rooms) {
      const room = this.#room(name);
      room.auto = true;
      room.refused = false;
      // The hub sends its events already. Where the client was in it before, it goes on from there.
      room.joined = room.epoch === undefined;
      if (room.joined) room.selection = '{}';
      const held = room.held;
      room.held = [];
      if (room.joined) for (const event of held) this.#event(event);
    }
    this.#connected(turn);
  }

  /**
   * The session goes on.
   * @param {{ session_id: string, resume: { token: string }, locks: { room: string, field: string, token: number }[], results: any[] }} answer
   * @param {Session} greeting
   */
  #resumed(answer, greeting) {
    const turn = this.#turn;
    this.#resuming = false;
    const resume = { ...greeting.resume, ...answer.resume };
    this.#session = { ...greeting, session_id: answer.session_id, resume, resumed: true };
    this.#session.rooms = greeting.rooms.map((name) => (name.startsWith('session:') ? `session:${answer.session_id}` : name));
    for (const name of [...this.#session.rooms, ...answer.results.map(({ room }) => room)]) {
      // What is new here was joined without asking, and with all its events.
      if (!this.#rooms.has(name)) Object.assign(this.#room(name), { auto: true, selection: '{}' });
    }
    for (const result of answer.results) {
      if (turn !== this.#turn) return;
      const room = /** @type {Room} */ (this.#rooms.get(result.room));
      // Where the first answer never came, it is asked for again.
      if (room.epoch === undefined && room.subscriptions.size > 0) continue;
      this.#joined(room, result, { seq: room.seq, epoch: room.epoch }, []);
    }
    for (const lock of this.#locks) {
      const isHeld = answer.locks.some(({ room, field, token }) => room === lock.room && field === lock.field && token === lock.token);
      if (isHeld) this.#renew(lock);
      else this.#lockLost(lock, 'session_ended');
    }
    this.#connected(turn);
  }

  /** @param {number} turn */
  #connected(turn) {
    // Whoever was told of an event, a loss or a recovery may have closed it.
    if (turn !== this.#turn) return;
    this.#set('connected');
    for (const { resolve } of this.#waiters.splice(0)) resolve(/** @type {Session} */ (this.#session));
    this.#settle();
    this.#flushAcks();
    this.#pump();
  }

  /**
   * The connection is gone, or as good as.
   * @param {number} code
   * @param {string} reason
   * @param {string} [retryAfter] the header of a refusal
   */
  #lost(code, reason, retryAfter) {
    const { now, random } = this.#platform;
    const { reconnect_min_ms, reconnect_max_ms, session_id, token } = this.#options;
    if (this.#greeting && now() - this.#connectedAt >= STABLE_MS) {
      this.#attempt = 0;
      this.#tokenWasRenewed = false;
    }
    this.#drop(code, reason);
    if (code === 4401 && typeof token === 'function' && !this.#tokenWasRenewed) {
      this.#tokenWasRenewed = true;
      this.#token = undefined;
      this.#open();
      return;
    }
    if (code === 4401 || code === 4403 || code === 4500 || (code === 4409 && session_id)) {
      return this.#end(new ConnectionClosed(reason || `the hub has closed the connection: ${code}`, code, reason));
    }
    // Somebody else has it; taking it back would go on for ever. Another one begins.
    if (code === 4409) this.#session = undefined;
    const hint = code === 1001 && /^\d+$/.test(reason) ? Number(reason) : this.#hint;
    this.#hint = undefined;
    const delay_ms = delayOf(retryAfter);
    this.#waitsByHint = hint !== undefined || delay_ms > 0;
    const pause = random() * Math.min(reconnect_max_ms, reconnect_min_ms * 2 ** this.#attempt++);
    // Others were told the same: what is drawn spreads them out.
    this.#wakeIn(hint ?? pause + delay_ms, { code, reason });
  }

  /**
   * @param {number} ms
   * @param {Partial<StateChange>} why
   */
  #wakeIn(ms, why) {
    const retry_in_ms = Math.round(ms);
    this.#retryAt = this.#platform.now() + retry_in_ms;
    this.#after('reconnect', retry_in_ms, () => this.#open());
    this.#set('waiting', { ...why, retry_in_ms });
  }

  /** A browser does not show what a connection was refused with. A hub that takes nobody says so at `/ready` as well. */
  async #askWhen() {
    const { fetch, now, random } = this.#platform;
    if (!fetch || !this.#mayAsk || this.#state !== 'waiting') return;
    const turn = this.#turn;
    try {
      const url = new URL('ready', this.#url.replace(/^ws/, 'http'));
      const { status, headers } = await fetch(url, { cache: 'no-store', credentials: 'omit', signal: AbortSignal.timeout(PROBE_MS) });
      const delay_ms = delayOf(headers.get('retry-after'));
      if (turn !== this.#turn || status !== 503 || now() + delay_ms <= this.#retryAt) return;
      this.#waitsByHint = true;
      this.#wakeIn(delay_ms + random() * this.#options.reconnect_min_ms, { code: 1006, reason: `the answer is ${status}` });
    } catch {
      this.#mayAsk = false;
    }
  }

  /**
   * It is closed until somebody calls `connect`.
   * @param {ConnectionClosed} error
   */
  #end(error) {
    const { close_code: code, reason } = error;
    this.#drop(code ?? 1000, reason ?? '', true);
    this.#clear('reconnect');
    for (const [target, type, listener] of this.#pageListeners.splice(0)) target.removeEventListener(type, listener);
    for (const command of this.#queue.splice(0)) this.#settleCommand(command, error);
    for (const { reject } of this.#waiters.splice(0)) reject(error);
    // Last: whoever is told may call `connect`.
    this.#set('closed', { code, reason, error });
  }

  /**
   * Lets go of the socket and of all that is bound to it.
   * @param {number} code
   * @param {string} reason
   * @param {boolean} [isFarewell]
   */
  #drop(code, reason, isFarewell) {
    const { now, clearTimeout } = this.#platform;
    const socket = this.#socket;
    this.#turn++;
    this.#socket = this.#greeting = this.#refreshing = undefined;
    this.#resuming = false;
    for (const timer of ['connect', 'beat', 'probe', 'pump', 'refresh', 'acks']) this.#clear(timer);
    if (socket) {
      socket.onmessage = socket.onclose = null;
      // A half-open connection would keep Node waiting for the other side's farewell.
      if (socket.terminate && !isFarewell) socket.terminate();
      else socket.close();
    }
    for (const room of this.#rooms.values()) {
      room.joined = room.busy = false;
      room.held = [];
    }
    const again = [];
    for (const command of this.#sent.values()) {
      clearTimeout(command.timer);
      const isYoung = now() - (command.first ?? 0) < KEY_AGE_MS;
      if (command.repeats && isYoung && !DISLIKED.includes(code)) again.push(command);
      else this.#settleCommand(command, new ConnectionClosed('the connection ended before the answer came', code, reason));
    }
    this.#sent.clear();
    this.#asks = [];
    this.#queue.unshift(...again);
  }

  /**
   * @param {State} state
   * @param {Partial<StateChange>} [more]
   */
  #set(state, more) {
    const previous = this.#state;
    this.#state = state;
    if (state !== previous || more) this.#tell('state', { ...more, state, previous });
  }

  // ---- signs of life ----

  /** Looks whether the hub was heard of lately, and asks for a sign of life where it was not. */
  #beat() {
    const { interval_s } = /** @type {Session} */ (this.#greeting).heartbeat;
    const silent = this.#platform.now() - this.#heardAt;
    const left = interval_s * 1000 - silent;
    if (left > 0) return this.#after('beat', left, () => this.#beat());
    this.#probe(Infinity);
  }

  /**
   * The hub has to say something within the heartbeat's timeout.
   * @param {number} ms at most
   */
  #probe(ms) {
    if (!this.#greeting || this.#timers.probe) return;
    const { timeout_s } = this.#greeting.heartbeat;
    const heard = this.#heard;
    // Its answer is one of many signs of life; nobody waits for it.
    this.#write('{"type":"ping","id":"p"}');
    this.#after('probe', Math.min(ms, timeout_s * 1000), () => {
      if (this.#heard === heard) this.#lost(1006, 'the hub gave no sign of life');
      else this.#beat();
    });
  }

  #listenToPage() {
    const { window, document } = this.#platform;
    if (this.#pageListeners.length > 0) return;
    const listen = (/** @type {EventTarget | undefined} */ target, /** @type {string} */ type, /** @type {() => void} */ listener) => {
      if (!target) return;
      target.addEventListener(type, listener);
      this.#pageListeners.push([target, type, listener]);
    };
    const wake = () => {
      if (this.#state === 'waiting' && !this.#waitsByHint) this.#open();
      else this.#probe(PROBE_MS);
    };
    listen(window, 'online', () => {
      this.#attempt = 0;
      wake();
    });
    // It may still be there: a loopback, a second interface.
    listen(window, 'offline', () => this.#probe(PROBE_MS));
    listen(window, 'pageshow', wake);
    listen(document, 'visibilitychange', () => {
      if (document?.visibilityState === 'visible') wake();
    });
  }

  // ---- the token ----

  /**
   * Asks the token callback for a new token and shows it to the hub, for instance when a user has been given more
   * permissions. Happens by itself ahead of a token's end.
   * @returns {Promise<void>} settled when the hub has taken it, or there is none to show it to; rejected where it did not
   */
  async refresh() {
    if (this.#greeting && typeof this.#options.token === 'function') return (this.#refreshing ??= this.#refresh());
    // The next connection asks.
    this.#token = undefined;
  }

  async #refresh() {
    const turn = this.#turn;
    try {
      const token = await this.#askForToken('expiring');
      if (turn !== this.#turn || !token) return;
      await new Promise((resolve, reject) => this.#ask('auth.refresh', { token }, resolve, reject));
      this.#keepToken(token);
    } catch (error) {
      if (turn === this.#turn) this.#after('refresh', 5 * RETRY_MS, () => this.#refreshQuietly());
      throw error;
    } finally {
      if (turn === this.#turn) this.#refreshing = undefined;
    }
  }

  #refreshQuietly() {
    this.refresh().catch((error) => this.#report(error));
  }

  /** @param {'connect' | 'expiring' | 'refused'} reason */
  async #askForToken(reason) {
    const { token } = this.#options;
    return (typeof token === 'function' ? await token({ reason }) : token) ?? null;
  }

  /** @param {string | null | undefined} token */
  #keepToken(token) {
    this.#token = token;
    this.#tokenEnds = endOf(token) - this.#skew;
    if (typeof this.#options.token !== 'function' || this.#tokenEnds === Infinity || !this.#greeting) return;
    const left = this.#tokenEnds - this.#platform.now();
    // Not all at once, where many had their token at the same time.
    const ahead = Math.min(60_000, left / 4) * (1 - this.#platform.random() / 4);
    const pause = Math.max(left - ahead, RETRY_MS);
    // Timers reach for 24 days.
    this.#after('refresh', pause, () => (pause > TIMER_MAX_MS ? this.#keepToken(token) : this.#refreshQuietly()));
  }

  // ---- commands ----

  /**
   * Sends a command of the protocol and waits for its answer: for what has no method here.
   *
   *     const { rooms } = await hub.request('rooms');
   *
   * @param {string} type
   * @param {Json} [data]
   * @param {CallOptions & { repeat?: boolean }} [options] `repeat`: send it again where the connection was lost before the
   *     answer came
   * @returns {Promise<any>} the answer's `data`
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  request(type, data, options = {}) {
    return this.#request(type, data, options);
  }

  /**
   * @param {string} type
   * @param {Json} data
   * @param {CallOptions & { repeat?: boolean }} options
   * @param {Partial<Command>} [more] becomes the command
   * @returns {Promise<any>}
   */
  #request(type, data, { timeout_ms = this.#options.timeout_ms, signal, repeat: repeats = false }, more = {}) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      if (this.#state === 'closed') return reject(new ConnectionClosed('there is no connection: call connect() first'));
      if (this.#queue.length >= this.#options.queue_max) return reject(new QueueFull(this.#options.queue_max));
      const id = this.#nextId++;
      const text = JSON.stringify({ type, id, data });
      const command = Object.assign(more, { id, type, text, repeats, timeout_ms, resolve, reject });
      if (signal) {
        const abort = () => this.#giveUp(command, signal.reason);
        signal.addEventListener('abort', abort);
        command.unlisten = () => signal.removeEventListener('abort', abort);
      }
      this.#queue.push(command);
      this.#pump();
    });
  }

  /**
   * Sends a command of the client's own, ahead of others. Where it is not answered in time the connection is worth nothing.
   * @param {string} type
   * @param {Json} data
   * @param {(answer: any) => void} resolve
   * @param {(error: any) => void} reject not called where the connection was lost
   */
  #ask(type, data, resolve, reject) {
    const id = this.#nextId++;
    const failed = (/** @type {unknown} */ error) => {
      if (error instanceof Timeout) this.#lost(1006, error.message);
      else if (error instanceof Refused || type === 'auth.refresh') reject(error);
    };
    const text = JSON.stringify({ type, id, data });
    const timeout_ms = Math.max(OWN_TIMEOUT_MS, this.#options.timeout_ms);
    /** @type {Command} */
    const command = { id, type, text, repeats: false, timeout_ms, resolve, reject: failed };
    // There may be hundreds of rooms. Of the others there are few, and they can't wait.
    if (!type.endsWith('subscribe')) return this.#dispatch(command);
    this.#asks.push(command);
    this.#pump();
  }

  /**
   * How long to wait until the hub takes another message.
   * @returns {number} milliseconds
   */
  #wait() {
    const { messages_per_s } = /** @type {Session} */ (this.#greeting).limits;
    // A ping must not wait behind minutes of data.
    if (this.#socket.bufferedAmount > BUFFERED_BYTES_MAX) return BUFFER_LOOK_MS;
    if (messages_per_s === 0) return 0;
    const now = this.#platform.now();
    this.#budget = Math.min(messages_per_s, this.#budget + ((now - this.#budgetAt) * messages_per_s) / 1000);
    this.#budgetAt = now;
    return this.#budget < 1 ? Math.ceil(((1 - this.#budget) * 1000) / messages_per_s) : 0;
  }

  /** Sends what waits, as fast as the hub takes it. */
  #pump() {
    // Who subscribes and then publishes gets it.
    if (this.#isUnsettled) this.#settle();
    while (this.#state === 'connected' && !this.#timers.pump && this.#asks.length + this.#queue.length > 0) {
      const wait_ms = this.#wait();
      if (wait_ms > 0) return this.#after('pump', wait_ms, () => this.#pump());
      const command = /** @type {Command} */ (this.#asks.shift() ?? this.#queue.shift());
      const { type, text } = command;
      const { message_bytes_max } = /** @type {Session} */ (this.#greeting).limits;
      // The hub would close the connection.
      if (text.length * 3 > message_bytes_max && new TextEncoder().encode(text).length > message_bytes_max) {
        const message = `${type} has more than ${message_bytes_max} bytes`;
        this.#settleCommand(command, new Refused({ code: 'too_large', message }));
      } else {
        this.#dispatch(command);
      }
    }
  }

  /** @param {Command} command */
  #dispatch(command) {
    command.last = this.#platform.now();
    command.first ??= command.last;
    this.#sent.set(command.id, command);
    command.timer = this.#platform.setTimeout(() => {
      this.#giveUp(command, new Timeout(`no answer to ${command.type} within ${command.timeout_ms} ms`));
    }, command.timeout_ms);
    this.#write(command.text);
  }

  /** @param {string} text */
  #write(text) {
    this.#budget--;
    this.#socket?.send(text);
  }

  /**
   * Nobody waits for a command any longer.
   * @param {Command} command
   * @param {unknown} error
   */
  #giveUp(command, error) {
    this.#settleCommand(command, error);
    if (command.locks && command.first !== undefined) {
      // It may be granted all the same, and has to be given back then.
      command.resolve = (lock) => this.#giveBack(lock).catch((error) => this.#report(error));
      command.reject = () => {};
      command.repeats = false;
    } else {
      this.#queue = this.#queue.filter((one) => one !== command);
      this.#sent.delete(command.id);
    }
  }

  /**
   * @param {Command} command
   * @param {unknown} error
   */
  #settleCommand(command, error) {
    this.#platform.clearTimeout(command.timer);
    command.unlisten?.();
    command.reject(error);
  }

  /**
   * @param {number} ref
   * @param {{ type: string, data: any }} message
   */
  #answered(ref, { type, data }) {
    const command = this.#sent.get(ref);
    if (!command) return;
    this.#sent.delete(ref);
    if (type === 'error') return this.#settleCommand(command, new Refused(data));
    this.#platform.clearTimeout(command.timer);
    command.unlisten?.();
    command.resolve(data, type);
  }

  /**
   * Publishes an event. Where the connection is lost before the answer comes it is published again on the next one, and not
   * twice: it carries a key that the hub knows for five minutes. Events to one room keep their order.
   *
   *     const { seq } = await hub.publish('project:1', 'note.added', { text: 'hello' });
   *
   * @param {string} room
   * @param {string} type 1 to 100 of `A-Z a-z 0-9 . _ : / -`
   * @param {Json} [data]
   * @param {CallOptions & { key?: string | null, echo?: boolean }} [options] `key`: one's own idempotency key; null for none (in
   *     rooms with the policy `latest` the newest event of each key is kept, or of each type where there is none), in which case
   *     it is not published again. `echo: false`: not to me
   * @returns {Promise<Published>}
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  async publish(room, type, data, options = {}) {
    const { key = `${this.#keyPrefix}-${this.#nextId}`, echo } = options;
    const event = { room, type, data, key: key ?? undefined, echo };
    const published = await this.#request('publish', event, { ...options, repeat: key !== null });
    if (echo === false) {
      this.#ownIds.add(published.id);
      if (this.#ownIds.size > OWN_IDS_MAX) this.#ownIds.delete(/** @type {string} */ (this.#ownIds.values().next().value));
    }
    return published;
  }

  /**
   * Sends an event to one client, session or user, or to several sessions. What goes to a session or user that is away waits.
   *
   *     await hub.send({ user: 'alice' }, 'notification.created', { title: 'Your turn' });
   *
   * @param {Target} to
   * @param {string} type
   * @param {Json} [data]
   * @param {CallOptions} [options]
   * @returns {Promise<{ delivered: number, queued: number }>}
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  send(to, type, data, options = {}) {
    return this.#request('send', { to, type, data }, options);
  }

  /**
   * Puts something into the inbox that the backend reads of this session.
   * @param {Json} data
   * @param {CallOptions} [options]
   * @returns {Promise<void>} settled when the hub has it
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  async message(data, options = {}) {
    await this.#request('message', data, options);
  }

  /**
   * Merges into this session's metadata, which presence shows to others; null removes a key.
   * @param {Record<string, Json>} [set] none only reads
   * @param {CallOptions} [options]
   * @returns {Promise<Record<string, Json>>} all of it
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  metadata(set, options = {}) {
    return this.#request('metadata', set && { set }, { ...options, repeat: true });
  }

  /**
   * Reads a room's log, page by page as it is walked through: oldest first, or newest first with `reverse`.
   *
   *     for await (const event of hub.history('project:1', { since: { seconds: 3600 } })) list.append(event);
   *     for await (const event of hub.history('project:1', { reverse: true, limit: 50 })) …
   *
   * @param {string} room
   * @param {CallOptions & { since?: Since, limit?: number, reverse?: boolean, page?: number }} [options] `limit`: events in all;
   *     `page`: events asked for at a time, 100, at most 1000
   * @returns {AsyncGenerator<Event, void, void>}
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason; `RinghubError` with code `conflict`
   *     where the log was lost meanwhile
   */
  async *history(room, { since, limit = Infinity, reverse = false, page = 100, ...options } = {}) {
    /** @type {string | undefined} */
    let epoch;
    while (limit > 0) {
      const ask = { room, since, reverse, limit: Math.min(limit, page) };
      const { events, more, ...log } = await this.#request('history', ask, { ...options, repeat: true });
      epoch ??= log.epoch;
      if (epoch !== log.epoch) throw new RinghubError('conflict', `the log of ${room} is another one now`);
      yield* events;
      limit -= events.length;
      if (!more || events.length === 0) return;
      since = { seq: events[events.length - 1].seq, epoch };
    }
  }

  /**
   * Who is in a room; one need not be in it. At most 1000 members are listed, `count` is exact.
   * @param {string} room
   * @param {CallOptions} [options]
   * @returns {Promise<Presence>}
   * @throws {Refused | ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  presence(room, options = {}) {
    return this.#request('presence', { room }, { ...options, repeat: true });
  }

  /**
   * Keeps a list of who is in a room. Whoever watches is a member too. Who comes and goes is told in kinds of rooms with
   * `presence_events`; for others say how often to ask.
   *
   *     const view = hub.watchPresence('project:1', ({ count, members }) => avatars(members));
   *     …
   *     view.close();
   *
   * @param {string} room
   * @param {(view: PresenceView) => unknown} [listener] called with every change
   * @param {{ poll_s?: number, signal?: AbortSignal }} [options] `poll_s`: asks this often
   * @returns {PresenceView}
   */
  watchPresence(room, listener, { poll_s, signal } = {}) {
    /** @type {Event<Member>[] | undefined} */
    let early = [];
    let round = 0;
    /** @type {any} */
    let timer;
    const changed = () => view._emit('change', view, (error) => this.#report(error));
    const apply = (/** @type {Event<Member>} */ { type, data }) => {
      const isNew = !view._members.has(data.session_id);
      if (type === 'presence.joined') {
        view._members.set(data.session_id, data);
        if (isNew) view.count++;
      } else {
        view._members.delete(data.session_id);
        view.count--;
      }
    };
    const heard = (/** @type {Event<Member>} */ event) => {
      if (early) return early.push(event);
      apply(event);
      changed();
    };
    const load = async () => {
      const mine = ++round;
      this.#platform.clearTimeout(timer);
      early ??= [];
      const told = await this.presence(room, { signal });
      // Asked anew meanwhile, or over.
      if (mine !== round || !subscription.active) return;
      view.count = told.count;
      view._members = new Map(told.members.map((member) => [member.session_id, member]));
      for (const event of early) if (event.seq > told.seq) apply(event);
      early = undefined;
      changed();
      if (poll_s) timer = this.#platform.setTimeout(reload, poll_s * 1000);
    };
    const reload = () => {
      load().catch((error) => {
        if (!subscription.active) return;
        this.#report(error);
        timer = this.#platform.setTimeout(reload, 5 * RETRY_MS);
      });
    };
    const close = () => {
      this.#platform.clearTimeout(timer);
      subscription.unsubscribe();
    };
    const view = new PresenceView(room, close);
    if (listener) view.on('change', listener);
    const subscription = this.subscribe(room, { 'presence.joined': heard, 'presence.left': heard }, { signal });
    subscription.on('gap', reload);
    subscription.on('recovered', ({ recovered }) => recovered || reload());
    view.ready = subscription.ready.then(load).then(() => view);
    view.ready.catch(() => {});
    return view;
  }

  // ---- rooms ----

  /**
   * Receives a room's events. Several subscriptions to a room share one at the hub, each with its own types, filters and
   * beginning. Works before there is a connection, and goes on after it was lost.
   *
   *     hub.subscribe('project:1', (event) => console.log(event.type, event.data));
   *     hub.subscribe('agent:a1', { epistemic_update: show }, { filters: { confidence_level: { min: 0.8 } } });
   *
   * @param {string} room
   * @param {Handlers} handlers
   * @param {SubscribeOptions} [options]
   * @returns {Subscription} whose `ready` tells how it went
   */
  subscribe(room, handlers, options = {}) {
    const { signal } = options;
    const state = this.#room(room);
    const leave = () => this.#leave(subscription);
    const subscription = new Subscription(state, handlers, options, leave);
    if (signal?.aborted) {
      subscription._phase = 'ended';
      subscription._reject(signal.reason);
      return subscription;
    }
    signal?.addEventListener('abort', leave, { once: true });
    state.subscriptions.add(subscription);
    this.#settleSoon();
    return subscription;
  }

  /** @param {Subscription} subscription */
  #leave(subscription) {
    if (!subscription.active) return;
    this.#finish(subscription, new RinghubError('unsubscribed', 'the subscription was ended before the hub answered'));
    this.#settleSoon();
  }

  /**
   * @param {string} name
   * @returns {Room}
   */
  #room(name) {
    let room = this.#rooms.get(name);
    if (!room) {
      room = {
        name,
        seq: 0,
        epoch: undefined,
        auto: false,
        joined: false,
        busy: false,
        refused: false,
        told: 0,
        selection: undefined,
        held: [],
        subscriptions: new Set(),
        handling: undefined,
        handled: 0,
        acked: 0,
      };
      this.#rooms.set(name, room);
    }
    return room;
  }

  /** What changes together is told together. */
  #settleSoon() {
    if (!this.#isUnsettled) queueMicrotask(() => this.#isUnsettled && this.#settle());
    this.#isUnsettled = true;
  }

  /** Brings the hub to what the subscriptions want. */
  #settle() {
    this.#isUnsettled = false;
    if (this.#state !== 'connected') return;
    /** @type {Map<string, { wanted: any, since: Since | undefined, rooms: Room[] }>} */
    const joins = new Map();
    for (const room of [...this.#rooms.values()]) {
      if (room.busy) continue;
      if (room.subscriptions.size === 0 && !room.auto) {
        if (room.joined) this.#part(room);
        else this.#rooms.delete(room.name);
        continue;
      }
      const subscriptions = [...room.subscriptions];
      const wanted = together(subscriptions);
      const selection = JSON.stringify(wanted);
      const isKnown = room.epoch !== undefined;
      if (room.joined && (isKnown || room.refused) && room.selection === selection) {
        for (const subscription of subscriptions) this.#begin(room, subscription, Math.max(room.seq, room.told));
        continue;
      }
      const since = room.joined ? undefined : isKnown ? { seq: room.seq, epoch: room.epoch } : common(subscriptions);
      // Rooms that are alike go into one command.
      const alike = selection + (isKnown ? room.name : JSON.stringify(since));
      const join = joins.get(alike);
      if (join && join.rooms.length < ROOMS_MAX) join.rooms.push(room);
      else joins.set(alike, { wanted, since: /** @type {Since | undefined} */ (since), rooms: [room] });
    }
    for (const { wanted, since, rooms } of joins.values()) this.#join(rooms, wanted, since);
  }

  /**
   * @param {Room[]} rooms
   * @param {{ types?: string[], filters?: Filters }} wanted
   * @param {Since} [since]
   */
  #join(rooms, wanted, since) {
    const selection = JSON.stringify(wanted);
    const waiting = new Map(rooms.map((room) => [room, [...room.subscriptions]]));
    for (const room of rooms) {
      room.busy = true;
      // Until there is an answer nobody knows what the hub chooses.
      room.selection = undefined;
    }
    const names = rooms.length === 1 ? { room: rooms[0].name } : { rooms: rooms.map((room) => room.name) };
    const turn = this.#turn;
    const done = (/** @type {any[]} */ results) => {
      for (const result of results) {
        const room = rooms.find((room) => room.name === result.room);
        if (!room || turn !== this.#turn) continue;
        room.busy = false;
        room.selection = selection;
        this.#joined(room, result, since, waiting.get(room) ?? []);
      }
      this.#settle();
    };
    this.#ask('subscribe', { ...names, ...wanted, since }, (answer) => done(answer.results ?? [answer]), (error) => {
      done(rooms.map(({ name }) => ({ room: name, error })));
    });
  }

  /** @param {Room} room */
  #part(room) {
    room.busy = true;
    const done = () => {
      room.busy = room.joined = false;
      room.epoch = room.selection = undefined;
      room.seq = room.told = room.handled = room.acked = 0;
      this.#settle();
    };
    this.#ask('unsubscribe', { room: room.name }, done, done);
  }

  /**
   * The hub has answered for a room.
   * @param {Room} room
   * @param {any} result
   * @param {Since | undefined} since what was asked for
   * @param {Subscription[]} waiting on whose behalf it was asked
   */
  #joined(room, result, since, waiting) {
    if (result.error) return this.#notJoined(room, result.error, waiting);
    const { seq, epoch, replayed } = /** @type {Subscribed} */ (result);
    const isFirst = room.epoch === undefined;
    const wasLive = [...room.subscriptions].filter((subscription) => subscription._phase !== 'waiting');
    if (!isFirst && (epoch !== room.epoch || (since && seq < room.seq))) {
      room.seq = room.handled = room.acked = 0;
      for (const subscription of wasLive) subscription._from = 0;
    }
    room.epoch = epoch;
    room.told = seq;
    const comesBack = since && !room.joined;
    room.joined = true;
    if (isFirst && !since) room.seq = Math.max(room.seq, seq);
    if (isFirst && since && 'seq' in since && (since.epoch ?? epoch) === epoch && since.seq <= seq) room.seq = since.seq;
    if (since && replayed === 0) room.seq = seq;
    for (const subscription of waiting) {
      if (isFirst && since && subscription._phase === 'waiting') {
        subscription._phase = 'live';
        subscription._resolve(result);
      }
      this.#begin(room, subscription, seq, result);
    }
    if (!isFirst && comesBack) {
      for (const subscription of wasLive) subscription._emit('recovered', result, (error) => this.#report(error));
    }
    const held = room.held;
    room.held = [];
    // An answer for several rooms comes behind live events of those that had nothing to replay. Where there is a replay, live
    // ones come behind it, and what came before the answer comes once more.
    if (!since || replayed === 0) for (const event of held) this.#event(event);
  }

  /**
   * @param {Room} room
   * @param {{ code: string, message: string }} error
   * @param {Subscription[]} waiting
   */
  #notJoined(room, error, waiting) {
    if (isPassing(error.code)) {
      const turn = this.#turn;
      // Until then nothing is asked of the hub about it.
      room.busy = true;
      room.selection = undefined;
      this.#platform.setTimeout(() => {
        if (turn !== this.#turn) return;
        room.busy = false;
        this.#settle();
      }, RETRY_MS * (1 + this.#platform.random()));
      return;
    }
    room.refused = true;
    const late = waiting.filter(({ _phase }) => _phase === 'waiting');
    // One whose filter is none does not spoil it for the others.
    const isFilter = error.code === 'bad_filter' && late.length > 0;
    const ended = isFilter ? late.slice(-1) : room.joined ? late : [...room.subscriptions];
    if (!room.joined && !isFilter) room.auto = false;
    for (const subscription of ended) this.#ended(subscription, new Refused(error));
  }

  /**
   * @param {Subscription} subscription
   * @param {RinghubError} error
   */
  #finish(subscription, error) {
    subscription._phase = 'ended';
    subscription._held = [];
    subscription._options.signal?.removeEventListener('abort', subscription._leave);
    subscription._room.subscriptions.delete(subscription);
    subscription._reject(error);
  }

  /**
   * The hub has ended a subscription.
   * @param {Subscription} subscription
   * @param {RinghubError} error
   */
  #ended(subscription, error) {
    this.#finish(subscription, error);
    subscription._emit('end', error, (error) => this.#report(error));
  }

  /**
   * A subscription begins in a room that the hub sends already.
   * @param {Room} room
   * @param {Subscription} subscription
   * @param {number} seq
   * @param {Subscribed} [told]
   */
  #begin(room, subscription, seq, told) {
    if (subscription._phase !== 'waiting') return;
    subscription._from = seq;
    const epoch = /** @type {string} */ (room.epoch);
    const answer = { room: room.name, epoch, recovered: true, replayed: 0, missed: 0, ...told, seq };
    if (!subscription._options.since) {
      subscription._phase = 'live';
      return subscription._resolve(answer);
    }
    subscription._phase = 'loading';
    this.#load(room, subscription, { ...answer, replayed: 0, recovered: true, missed: 0 }).catch((error) => {
      if (subscription.active) this.#ended(subscription, error);
      this.#settle();
    });
  }

  /**
   * Reads the events of the past for a subscription whose room is live for others, so that these are left alone.
   * @param {Room} room
   * @param {Subscription} subscription
   * @param {Subscribed} answer
   */
  async #load(room, subscription, answer) {
    const asked = /** @type {Since} */ (subscription._options.since);
    let isSame = !('seq' in asked) || (asked.epoch ?? answer.epoch) === answer.epoch;
    /** @type {Since} */
    let since = isSame ? asked : { seq: 0 };
    /** @type {Event[]} */
    const past = [];
    for (let more = true; more; ) {
      const page = await this.#request('history', { room: room.name, since, limit: 1000 }, { repeat: true });
      if (subscription._phase !== 'loading') return;
      // The log was lost meanwhile: what the next one has comes live, from its beginning.
      if (page.epoch !== answer.epoch) {
        isSame = false;
        break;
      }
      past.push(...page.events.filter((/** @type {Event} */ { seq }) => seq <= subscription._from));
      const last = page.events.at(-1)?.seq ?? subscription._from;
      since = { seq: last, epoch: page.epoch };
      more = page.more && last < subscription._from;
    }
    const first = past[0]?.seq ?? answer.seq + 1;
    answer.missed = !isSame ? null : 'seq' in asked ? Math.max(0, first - asked.seq - 1) : 0;
    answer.recovered = answer.missed === 0;
    const wanted = past.filter((event) => wants(subscription, event));
    answer.replayed = wanted.length;
    subscription._resolve(answer);
    // Whoever awaits that is first.
    await null;
    if (subscription._phase !== 'loading') return;
    subscription._phase = 'live';
    const held = subscription._held;
    subscription._held = [];
    for (const event of wanted.concat(held)) if (subscription.active) this.#handle(subscription, event);
  }

  /** @param {Event} event */
  #event(event) {
    const room = this.#rooms.get(event.room);
    if (!room) return;
    if (!room.joined || this.#resuming) {
      room.held.push(event);
      return;
    }
    if (event.seq <= room.seq) return;
    room.seq = event.seq;
    if (this.#ownIds.delete(event.id)) return;
    if (event.type === 'lock.released' || event.type === 'lock.expired') this.#lockTold(event.room, event.data);
    if (room.subscriptions.size === 0) {
      this.#tell('event', event);
      return;
    }
    const handled = [];
    let acks = false;
    for (const subscription of [...room.subscriptions]) {
      if (event.seq <= subscription._from || !wants(subscription, event)) continue;
      if (subscription._phase === 'loading') subscription._held.push(event);
      if (subscription._phase !== 'live') continue;
      acks ||= subscription._options.ack === true;
      handled.push(this.#handle(subscription, event));
    }
    if (acks) this.#acknowledge(room, event.seq, handled);
  }

  /**
   * @param {Subscription} subscription
   * @param {Event} event
   */
  #handle(subscription, event) {
    const { _handlers: handlers } = subscription;
    const handler = typeof handlers === 'function' ? handlers : own(handlers, event.type) ?? handlers['*'];
    return handler && guarded(() => handler(event), (error) => this.#report(error));
  }

  /** @param {Gap} gap */
  #gap(gap) {
    const room = this.#rooms.get(gap.room);
    this.#tell('gap', gap);
    if (!room?.joined) return;
    if (gap.epoch !== undefined) {
      // The log is another one: numbers begin anew.
      room.epoch = gap.epoch;
      room.seq = gap.to_seq ?? 0;
      for (const subscription of room.subscriptions) subscription._from = 0;
    } else if (gap.to_seq === null) room.seq = 0;
    else room.seq = Math.max(room.seq, gap.to_seq);
    for (const subscription of [...room.subscriptions]) subscription._emit('gap', gap, (error) => this.#report(error));
  }

  /**
   * The hub has put this client out of a room.
   * @param {string} name
   * @param {string} [reason]
   */
  #expelled(name, reason = 'forbidden') {
    const room = this.#rooms.get(name);
    if (!room) return;
    this.#rooms.delete(name);
    const error = new Refused({ code: reason, message: `the hub has ended the subscription to ${name}` });
    for (const subscription of [...room.subscriptions]) this.#ended(subscription, error);
  }

  /**
   * All up to an event is handled once what was handled before is, and the handlers' promises are settled.
   * @param {Room} room
   * @param {number} seq
   * @param {unknown[]} results
   */
  #acknowledge(room, seq, results) {
    const { epoch } = room;
    const done = () => {
      if (room.epoch !== epoch) return;
      room.handled = seq;
      if (!this.#timers.acks) this.#after('acks', ACK_MS, () => this.#flushAcks());
    };
    const handling = Promise.all([room.handling, ...results]).then(done);
    room.handling = handling;
  }

  #flushAcks() {
    if (this.#state !== 'connected') return;
    for (const room of this.#rooms.values()) {
      if (room.handled <= room.acked || !room.joined) continue;
      const wait_ms = this.#wait();
      if (wait_ms > 0) return this.#after('acks', wait_ms, () => this.#flushAcks());
      room.acked = room.handled;
      this.#write(JSON.stringify({ type: 'ack', data: { room: room.name, seq: room.acked } }));
    }
  }

  // ---- locks ----

  /**
   * Locks a field of a room, for instance while somebody edits it. The lock is renewed until it is released or lost; it is
   * kept over a reconnect, if that comes in time.
   *
   *     const lock = await hub.lock('quote:7', 'premium', { wait_ms: 5000 });
   *     lock.on('lost', ({ reason }) => readOnly(reason));
   *     …
   *     await lock.release();
   *
   * @param {string} room
   * @param {string} field 1 to 200 bytes
   * @param {CallOptions & { ttl_s?: number, wait_ms?: number }} [options] `ttl_s`: how long it outlives this client, 1 to 3600,
   *     30; `wait_ms`: how long to try while somebody else has it, 0
   * @returns {Promise<Lock>}
   * @throws {Refused} with code `lock_held` and `details.holder` where somebody else has it
   * @throws {ConnectionClosed | Timeout | QueueFull} or the signal's reason
   */
  async lock(room, field, { ttl_s = 30, wait_ms = 0, ...options } = {}) {
    const { now, random } = this.#platform;
    const until = now() + wait_ms;
    for (;;) {
      try {
        /** @type {Partial<Command>} */
        const command = { locks: fieldOf(room, field) };
        const answer = await this.#request('lock.acquire', { room, field, ttl_s }, { ...options, repeat: true }, command);
        const lock = new Lock(answer, ttl_s, (lock) => this.#release(lock));
        this.#locks.add(lock);
        this.#extend(lock, /** @type {number} */ (command.last), answer.expires_at);
        return lock;
      } catch (error) {
        // The hub keeps a lock for whoever was refused three times within 5 s of one another.
        const pause = Math.min(RETRY_MS * (0.5 + random()), until - now());
        if (!(error instanceof Refused && error.code === 'lock_held') || pause <= 0) throw error;
        await this.#pause(pause, options.signal);
      }
    }
  }

  /**
   * @param {Lock} lock
   * @param {number} asked when: the hub counts from later on, so that it is given up here first
   * @param {string} expires_at
   */
  #extend(lock, asked, expires_at) {
    const { now, setTimeout, clearTimeout } = this.#platform;
    lock._until = asked + lock._ttl_s * 1000;
    lock.expires_at = expires_at;
    clearTimeout(lock._timer);
    lock._timer = setTimeout(() => this.#renew(lock), (lock._until - now()) / 3);
  }

  /** @param {Lock} lock */
  #renew(lock) {
    const { now, setTimeout, clearTimeout } = this.#platform;
    if (!lock.held) return;
    const asked = now();
    clearTimeout(lock._timer);
    if (asked >= lock._until) return this.#lockLost(lock, 'expired');
    // Whatever becomes of the answer.
    lock._timer = setTimeout(() => this.#renew(lock), Math.min(lock._until - asked, Math.max(RETRY_MS, (lock._ttl_s * 1000) / 3)));
    if (!this.#greeting || this.#resuming) return;
    const { room, field, token } = lock;
    const renewed = (/** @type {any} */ answer) => lock.held && this.#extend(lock, asked, answer.expires_at);
    this.#ask('lock.renew', { room, field, token, ttl_s: lock._ttl_s }, renewed, (error) => {
      if (!isPassing(error.code)) this.#lockLost(lock, error.code);
    });
  }

  /**
   * @param {Lock} lock
   * @param {string} reason
   */
  #lockLost(lock, reason) {
    if (!this.#forget(lock)) return;
    lock._emit('lost', { reason }, (error) => this.#report(error));
  }

  /** @param {Lock} lock */
  #forget(lock) {
    const wasHeld = lock.held;
    lock.held = false;
    this.#locks.delete(lock);
    this.#platform.clearTimeout(lock._timer);
    return wasHeld;
  }

  /**
   * A lock is over.
   * @param {string} room
   * @param {{ field: string, token: number, reason?: string }} told
   */
  #lockTold(room, { field, token, reason = 'expired' }) {
    for (const lock of this.#locks) {
      if (lock.room === room && lock.field === field && lock.token === token) this.#lockLost(lock, reason);
    }
  }

  /** @param {Lock} lock */
  async #release(lock) {
    if (this.#forget(lock)) await this.#giveBack(lock);
  }

  /**
   * A session holds a field once, however often it has asked: it is given back when nobody here wants it any more.
   * @param {{ room: string, field: string, token: number }} lock
   */
  async #giveBack({ room, field, token }) {
    const what = fieldOf(room, field);
    if ([...this.#locks].some((lock) => fieldOf(lock.room, lock.field) === what)) return;
    // One more is on its way, and renews it. (One that was given up gives back what it gets.)
    if ([...this.#queue, ...this.#sent.values()].some(({ locks, repeats }) => locks === what && repeats)) return;
    try {
      await this.#request('lock.release', { room, field, token }, { repeat: true });
    } catch (error) {
      // It ends by itself where the hub can't be told.
      if (error instanceof Refused && error.code !== 'lock_lost') throw error;
    }
  }

  // ---- helpers ----

  /**
   * @param {number} ms
   * @param {AbortSignal} [signal]
   * @returns {Promise<void>}
   */
  #pause(ms, signal) {
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.#platform.clearTimeout(timer);
        reject(signal?.reason);
      };
      const timer = this.#platform.setTimeout(() => {
        signal?.removeEventListener('abort', abort);
        resolve();
      }, ms);
      signal?.addEventListener('abort', abort, { once: true });
    });
  }

  /**
   * One timer of each name.
   * @param {string} name
   * @param {number} ms
   * @param {() => void} call
   */
  #after(name, ms, call) {
    this.#clear(name);
    this.#timers[name] = this.#platform.setTimeout(() => {
      this.#timers[name] = undefined;
      call();
    }, Math.min(ms, TIMER_MAX_MS));
  }

  /** @param {string} name */
  #clear(name) {
    this.#platform.clearTimeout(this.#timers[name]);
    this.#timers[name] = undefined;
  }

  /**
   * @template {keyof HubEvents} K
   * @param {K} type
   * @param {HubEvents[K]} value
   */
  #tell(type, value) {
    return this._emit(type, value, (error) => this.#report(error));
  }

  /** @param {unknown} error */
  #report(error) {
    if (!this._emit('error', error, (error) => console.error(error))) console.error(error);
  }
}

/**
 * Calls what is not ours: its failure is reported and stops nothing.
 * @param {() => unknown} call
 * @param {(error: unknown) => void} report
 * @returns {unknown} a promise that is never rejected, where it returned a promise
 */
function guarded(call, report) {
  try {
    const result = call();
    return result instanceof Promise ? result.catch(report) : result;
  } catch (error) {
    report(error);
  }
}

/**
 * @param {string} room
 * @param {string} field
 */
function fieldOf(room, field) {
  return JSON.stringify([room, field]);
}

/**
 * Whether a refusal says that it may work later.
 * @param {string} code
 */
function isPassing(code) {
  return code === 'unavailable' || code === 'rate_limited' || code === 'internal';
}

/**
 * What a `Retry-After` in seconds asks for, in milliseconds; nothing where there is none, or a date.
 * @param {string | null | undefined} header
 */
function delayOf(header) {
  return Number(/^\d+$/.exec(header ?? '')?.[0] ?? 0) * 1000;
}

/**
 * When a token ends, by the hub's clock, in milliseconds since 1970.
 * @param {string | null | undefined} token
 */
function endOf(token) {
  try {
    const claims = (token ?? '').split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
    return JSON.parse(atob(claims)).exp * 1000 || Infinity;
  } catch {
    return Infinity;
  }
}

/**
 * What several subscriptions want together: each of them chooses its own from it.
 * @param {Subscription[]} subscriptions
 * @returns {{ types?: string[], filters?: Filters }}
 */
function together(subscriptions) {
  const types = subscriptions.map(({ _types }) => _types);
  const filters = new Map(subscriptions.map(({ _options }) => [JSON.stringify(_options.filters), _options.filters]));
  /** @type {{ types?: string[], filters?: Filters }} */
  const wanted = {};
  if (subscriptions.length === 0) return wanted;
  if (types.every((one) => one && one.length > 0)) wanted.types = [...new Set(/** @type {string[]} */ (types.flat()))].sort();
  const all = /** @type {Filters[]} */ ([...filters.values()]);
  if (all.every((one) => one && Object.keys(one).length > 0) && all.length <= FILTERS_MAX) {
    wanted.filters = all.length === 1 ? all[0] : { any: all };
  }
  return wanted;
}

/**
 * Where all begin; none where that is not the same place.
 * @param {Subscription[]} subscriptions
 * @returns {Since | undefined}
 */
function common(subscriptions) {
  const since = subscriptions[0]?._options.since;
  const text = JSON.stringify(since);
  return subscriptions.every(({ _options }) => JSON.stringify(_options.since) === text) ? since : undefined;
}

/**
 * @param {Subscription} subscription
 * @param {Event} event
 */
function wants({ _types: types, _options: { filters } }, event) {
  return (!types?.length || types.includes(event.type)) && (!filters || satisfies(event.data, filters));
}

/**
 * Whether data satisfies filters, as the hub decides it.
 * @param {Json} data
 * @param {Filters} filters
 * @returns {boolean}
 */
function satisfies(data, filters) {
  return Object.entries(filters).every(([path, condition]) => {
    if (path === 'any' && Array.isArray(condition)) return condition.some((one) => satisfies(data, one));
    return holds(at(data, path), condition);
  });
}

/**
 * @param {Json} value undefined where there is none
 * @param {Json} condition
 * @returns {boolean}
 */
function holds(value, condition) {
  if (condition === null || typeof condition !== 'object') return value === condition;
  return Object.entries(condition).every(([test, expected]) => {
    if (test === 'in') return expected.includes(value);
    if (test === 'prefix') return typeof value === 'string' && value.startsWith(expected);
    if (test === 'exists') return (value !== undefined) === expected;
    if (test === 'not') return !holds(value, expected);
    return typeof value === 'number' && (test === 'min' ? value >= expected : value <= expected);
  });
}

/**
 * What stands in data at a path. A key may have dots itself: the whole is tried first.
 * @param {Json} data
 * @param {string} path
 */
function at(data, path) {
  return own(data, path) ?? (own(data, path) === null ? null : path.split('.').reduce(own, data));
}

/**
 * @param {Json} object
 * @param {string} key
 */
function own(object, key) {
  const isObject = object !== null && typeof object === 'object' && !Array.isArray(object);
  return isObject && Object.hasOwn(object, key) ? object[key] : undefined;
}
