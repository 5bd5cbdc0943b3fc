// The browser client in Chromium, as the hub serves it.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { after, before, test as declare } from 'node:test';
import { launch, serve, visit } from './browser.js';
import { Hub, token, until } from './hub.js';
import { LossyProxy } from './lossy.js';

const test = (name, run) => declare(name, { timeout: 60_000 }, run);
let browser, hub, pages;
let rooms = 0;
const freshRoom = () => `project:page-${rooms++}`;

before(async () => {
  hub = await Hub.start();
  pages = await serve({ '/': '<!doctype html><meta charset="utf-8"><title>a page</title>' });
  browser = await launch();
});
after(async () => {
  await browser?.close();
  pages?.stop();
  await hub?.stop();
});

/** A page with a client that keeps what happens: `window.hub`, `states`, `events`, `told`. */
async function client(options = {}, { mint = () => token() } = {}) {
  const page = await visit(browser, pages.url);
  await page.exposeFunction('mint', mint);
  await page.evaluate(
    async ([module, options]) => {
      const { Ringhub } = await import(module);
      Object.assign(window, { states: [], events: [], told: [] });
      window.hub = new Ringhub({ token: ({ reason }) => window.mint(reason), ...options });
      hub.on('state', ({ state }) => states.push(state));
      await hub.connect();
    },
    [`${hub.http}/ringhub.js`, options],
  );
  return page;
}

const subscribe = (page, room) =>
  page.evaluate(async (room) => {
    const subscription = hub.subscribe(room, ({ seq }) => events.push(seq));
    subscription.on('recovered', (how) => told.push(how));
    await subscription.ready;
  }, room);
const seqs = (page) => page.evaluate(() => events);
const state = (page) => page.evaluate(() => hub.state);

test('a page takes the module from the hub, and finds the hub by it', async () => {
  const page = await client();
  const room = freshRoom();
  await subscribe(page, room);
  const published = await page.evaluate((room) => hub.publish(room, 'note.added', { text: 'ünï' }), room);
  assert.equal(published.seq, 1);
  await until(async () => (await seqs(page)).length === 1, 'the event comes back');
  await hub.publish(room, 'note.added', {});
  await until(async () => (await seqs(page)).length === 2, 'and the backend\'s');
  const refused = await page.evaluate(() => hub.publish('admin:x', 'n').catch(({ name, code }) => [name, code]));
  assert.deepEqual(refused, ['Refused', 'forbidden']);
  assert.deepEqual(page.problems, []);
  const again = await page.request.get(`${hub.http}/ringhub.js`);
  const { etag } = again.headers();
  assert.equal((await page.request.get(`${hub.http}/ringhub.js`, { headers: { 'If-None-Match': etag } })).status(), 304);
  await page.context().close();
});

test('the README\'s example works as it stands', async () => {
  const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8');
  const code = readme.split('\n## Browser client\n')[1].split('```js\n')[1].split('```')[0];
  await hub.publish('project:1', 'note.added', {});
  const example = await serve({
    '/': '<!doctype html><title>README</title><script>const shown = []; const show = (data) => shown.push(data); const reload = () => {};</script><script type="module" src="example.js"></script>',
    // A page of the hub's own origin needs no address; this one is another's.
    '/example.js': `${code.replace("'/ringhub.js'", `'${hub.http}/ringhub.js'`)}\nwindow.done = hub.state;`,
    '/api/hub-token': token(),
  });
  const page = await browser.newPage();
  const lines = [];
  page.on('console', (message) => lines.push(message.text()));
  await page.goto(example.url);
  await until(() => page.evaluate(() => window.done), () => `it came to its end: ${lines}`);
  assert.deepEqual(await page.evaluate(() => shown), [{ name: 'hello' }]);
  for (const line of ['connecting', 'connected', 'note.added 1', 'lock.acquired 3']) assert.ok(lines.includes(line), lines.join());
  example.stop();
  await page.close();
});

test('a worker has it too', async () => {
  const page = await visit(browser, pages.url);
  const seq = await page.evaluate(
    ([module, token]) =>
      new Promise((resolve, reject) => {
        const code = `
          import { Ringhub } from '${module}';
          const hub = new Ringhub({ token: '${token}' });
          hub.connect();
          hub.subscribe('project:worker', ({ seq }) => postMessage(seq));
          hub.publish('project:worker', 'n');`;
        const worker = new Worker(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })), { type: 'module' });
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = ({ message }) => reject(new Error(message));
      }),
    [`${hub.http}/ringhub.js`, token()],
  );
  assert.equal(seq, 1);
  await page.context().close();
});

test('a token is refreshed while the page is open', async () => {
  const reasons = [];
  const mint = (reason) => {
    reasons.push(reason);
    return token('alice', { ttl_s: 4 });
  };
  const page = await client({}, { mint });
  await until(() => reasons.length >= 4, () => reasons.join());
  assert.deepEqual(reasons.slice(0, 4), ['connect', 'expiring', 'expiring', 'expiring']);
  assert.deepEqual(await page.evaluate(() => states), ['connecting', 'connected']);
  await page.context().close();
});

test('a page that was offline is back as soon as the browser says that it is online', async () => {
  const proxy = await LossyProxy.start(hub.port);
  // By itself it would not be back before the test is over.
  const page = await client({ url: proxy.url, reconnect_min_ms: 3_600_000, reconnect_max_ms: 3_600_000 });
  const room = freshRoom();
  await subscribe(page, room);
  await page.context().setOffline(true);
  assert.equal(await page.evaluate(() => navigator.onLine), false);
  proxy.cut();
  await until(async () => (await state(page)) === 'waiting', 'it is away');
  for (let n = 0; n < 3; n++) await hub.publish(room, 'n', n);
  const waits = page.evaluate((room) => hub.publish(room, 'n', 'from the page'), room);
  await page.context().setOffline(false);
  assert.equal((await waits).seq, 4, 'what was asked for while it was away is done');
  await until(async () => (await seqs(page)).length === 4, 'nothing is missing');
  const [{ recovered, replayed }] = await page.evaluate(() => told);
  assert.equal(recovered, true);
  assert.ok(replayed >= 3);
  proxy.stop();
  await page.context().close();
});

test('a page that is looked at again notices that its connection is dead', async () => {
  const proxy = await LossyProxy.start(hub.port);
  const page = await client({ url: proxy.url });
  const room = freshRoom();
  await subscribe(page, room);
  // Without a screen every page is visible; what the browser would tell is told in its place.
  const show = (visibility) =>
    page.evaluate((visibility) => {
      Object.defineProperty(document, 'visibilityState', { value: visibility, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }, visibility);
  await show('hidden');
  proxy.freeze();
  await hub.publish(room, 'n');
  const began = Date.now();
  await show('visible');
  await until(async () => (await seqs(page)).length === 1, 'it is back with what it missed');
  assert.ok(Date.now() - began < 10_000, 'long before the heartbeat would tell');
  proxy.stop();
  await page.context().close();
});

test('a page that is refused without a word waits for as long as /ready says', async () => {
  // A hub lets go of its port as it drains: it is what stands in front of it that goes on refusing.
  const front = createServer((_, answer) => {
    answer.writeHead(503, { 'Retry-After': '2', 'Access-Control-Allow-Origin': '*', 'Access-Control-Expose-Headers': 'retry-after' }).end('{}');
  });
  front.on('upgrade', (_, socket) => socket.end('HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n'));
  front.listen(0, '127.0.0.1');
  await once(front, 'listening');
  const page = await visit(browser, pages.url);
  const change = await page.evaluate(
    async ([module, url]) => {
      const { Ringhub } = await import(module);
      const late = new Ringhub({ url, reconnect_min_ms: 100, reconnect_max_ms: 100 });
      const told = new Promise((resolve) => late.on('state', (change) => change.reason === 'the answer is 503' && resolve(change)));
      late.connect();
      const { state, code, retry_in_ms } = await told;
      late.close();
      return { state, code, retry_in_ms };
    },
    [`${hub.http}/ringhub.js`, `http://127.0.0.1:${front.address().port}/ws`],
  );
  assert.deepEqual([change.state, change.code], ['waiting', 1006]);
  assert.ok(change.retry_in_ms >= 2000 && change.retry_in_ms <= 2100, String(change.retry_in_ms));
  front.close();
  front.closeAllConnections();
  await page.context().close();
});

test('a page outlives a restart of the hub', async () => {
  const page = await client();
  const room = freshRoom();
  await subscribe(page, room);
  await hub.publish(room, 'n', 1);
  await until(async () => (await seqs(page)).length === 1, 'an event before');
  await hub.stop();
  await until(async () => (await state(page)) !== 'connected', 'it notices');
  await hub.again();
  await until(async () => (await state(page)) === 'connected', 'it is back');
  await hub.publish(room, 'n', 2);
  await until(async () => (await seqs(page)).length === 2, 'an event after');
  assert.deepEqual(await seqs(page), [1, 1]);
  assert.deepEqual((await page.evaluate(() => told)).map(({ recovered, missed }) => [recovered, missed]), [[false, null]]);
  await page.context().close();
});
