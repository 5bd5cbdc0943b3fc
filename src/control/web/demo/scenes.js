/**
 * What the demo's page does with the client: these functions run, and their text is what the page shows as code.
 *
 * @module
 */

/** @typedef {import('../ringhub.js').Ringhub} Ringhub */
/** @typedef {import('../ringhub.js').Event} Event */

const QUOTE = 'quote:Q-1001';

/**
 * @param {Ringhub} hub
 * @param {(event: Event) => void} show
 */
export function followProjects(hub, show) {
  for (const name of ['atlas', 'borealis', 'cascade']) {
    hub.subscribe(`project:${name}`, show, { since: { last: 3 } });
  }
}

/**
 * @param {Ringhub} hub
 * @param {string[]} agents
 * @param {number} least
 * @param {(event: Event) => void} show
 */
export function followBeliefs(hub, agents, least, show) {
  // The hub chooses: what is less certain is never sent here.
  const options = { filters: { confidence_level: { min: least } }, since: { last: 2 } };
  return agents.map((name) => hub.subscribe(`agent:${name}`, { epistemic_update: show }, options));
}

/**
 * @param {Ringhub} hub
 * @param {(event: Event) => void} show
 */
export function followWorkflows(hub, show) {
  for (const name of ['atlas', 'borealis', 'cascade']) {
    // Its last event says where it stands.
    hub.subscribe(`workflow:${name}`, show, { since: { last: 1 } });
  }
}

/**
 * @param {Ringhub} hub
 * @param {Record<string, (event: Event) => void>} show
 */
export function followQuote(hub, show) {
  hub.subscribe(
    QUOTE,
    {
      'quote.field_edited': show.edited,
      'quote.premium_calculated': show.priced,
      'lock.acquired': show.locked,
      'lock.released': show.unlocked,
      'lock.expired': show.unlocked,
    },
    { since: { last: 100 } },
  );
}

/**
 * @param {Ringhub} hub
 * @param {string} field
 * @param {number} value
 */
export async function editField(hub, field, value) {
  // Two other editors are at it: we wait for our turn.
  const lock = await hub.lock(QUOTE, field, { wait_ms: 15_000 });
  try {
    const data = { quote_id: 'Q-1001', field, value, editor: 'you', lock: lock.token };
    await hub.publish(QUOTE, 'quote.field_edited', data);
    // Long enough for people to see.
    await new Promise((resolve) => setTimeout(resolve, 2000));
  } finally {
    await lock.release();
  }
}

/**
 * @param {Ringhub} hub
 * @param {(event: Event) => void} show
 */
export function followEveryone(hub, show) {
  // `global`, and what is sent to this user, are joined without asking.
  hub.on('event', show);
}

/**
 * @param {Ringhub} hub
 * @param {string} text
 */
export function tellAnna(hub, text) {
  return hub.send({ user: 'anna' }, 'notification.created', { title: 'From the demo', message: text });
}

/**
 * @param {(path: string) => Promise<any>} api
 */
export async function lookAtSlowReader(api) {
  const path = '/api/v1/connections/demo-slow-wallboard';
  const { queue_bytes, slow_rooms } = await api(path);
  const { connections } = await api(`${path}/trace?limit=500`);
  const telling = ['opened', 'waits', 'fell_behind', 'gap', 'caught_up', 'closing', 'closed'];
  /** @type {{ what: string }[]} the oldest first */
  const records = connections[0].records;
  return { queue_bytes, slow_rooms, records: records.filter(({ what }) => telling.includes(what)).slice(-6) };
}
