// The examples that are pages, in Chromium: two people in one room.
import assert from 'node:assert/strict';
import { after, before, test as declare } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { launch, serve, visit } from './browser.js';
import { Hub, token, until } from './hub.js';
import { LossyProxy } from './lossy.js';

const test = (name, run) => declare(name, { timeout: 60_000 }, run);
const file = (name) => new URL(`../examples/${name}`, import.meta.url);
let browser, hub, pages;

before(async () => {
  hub = await Hub.start({ 'rooms.project.presence_events': true, 'session.resume_window_s': 2 });
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(file('react/app.jsx'))],
    bundle: true,
    write: false,
    format: 'esm',
    jsx: 'automatic',
    target: 'es2022',
    nodePaths: [fileURLToPath(new URL('../node_modules', import.meta.url))],
    define: { 'process.env.NODE_ENV': '"development"' },
  });
  pages = await serve({
    '/plain.html': file('plain.html'),
    '/react/': file('react/index.html'),
    '/react/app.js': outputFiles[0].text,
  });
  browser = await launch();
});
after(async () => {
  await browser?.close();
  pages?.stop();
  await hub?.stop();
});

for (const [name, path] of [['plain.html', '/plain.html'], ['react', '/react/']]) {
  const enter = (user, room, address = hub.http) =>
    visit(browser, `${pages.url}${path}#${new URLSearchParams({ hub: address, room, token: token(user) })}`);
  const text = (page, id) => page.locator(`#${id}`).innerText();
  const notes = (page) => page.locator('#notes li').allInnerTexts();
  const shows = (page, id, wanted) => until(async () => (await text(page, id)).trim() === wanted, async () => `${id} shows ${wanted}`);
  const note = async (page, words) => {
    await page.locator('#text').fill(words);
    await page.locator('#form button').click();
  };

  test(`${name}: a room is live, and keeps its past`, async () => {
    const room = `project:${name}-live`;
    const alice = await enter('alice', room);
    await shows(alice, 'state', 'connected');
    await note(alice, '<b>first</b>');
    await until(async () => (await notes(alice)).length === 1, 'her own note is there');
    const bob = await enter('bob', room);
    await shows(bob, 'state', 'connected');
    await until(async () => (await notes(bob)).length === 1, 'he sees what was before him');
    await note(bob, 'second');
    for (const page of [alice, bob]) {
      await until(async () => (await notes(page)).length === 2, 'both see both');
      assert.deepEqual(await notes(page), ['<b>first</b>', 'second']);
      await shows(page, 'members', 'alice, bob (2)');
    }
    await bob.context().close();
    await shows(alice, 'members', 'alice (1)');
    assert.deepEqual(alice.problems, []);
    await alice.context().close();
  });

  test(`${name}: one edits at a time, and the other one gets what was saved`, async () => {
    const room = `project:${name}-lock`;
    const [alice, bob] = [await enter('alice', room), await enter('bob', room)];
    for (const page of [alice, bob]) await shows(page, 'members', 'alice, bob (2)');
    await alice.locator('#edit').click();
    await shows(alice, 'edit', 'Save');
    await shows(bob, 'holder', 'alice edits');
    await bob.locator('#edit').click();
    await shows(bob, 'holder', 'alice edits');
    assert.equal(await bob.locator('#title').isEditable(), false);
    await alice.locator('#title').fill('A better title');
    await alice.locator('#edit').click();
    await until(async () => (await bob.locator('#title').inputValue()) === 'A better title', 'he sees it');
    await shows(bob, 'holder', '');
    await bob.locator('#edit').click();
    await shows(bob, 'edit', 'Save');
    await hub.api('DELETE', `/api/v1/locks/${encodeURIComponent(room)}/title`);
    await shows(bob, 'edit', 'Edit');
    assert.deepEqual([...alice.problems, ...bob.problems], []);
    for (const page of [alice, bob]) await page.context().close();
  });

  test(`${name}: what was missed comes when the network does`, async () => {
    const proxy = await LossyProxy.start(hub.port);
    const room = `project:${name}-away`;
    // The module comes through the proxy as well, and finds the hub by it.
    const page = await enter('alice', room, `http://127.0.0.1:${proxy.port}`);
    await shows(page, 'state', 'connected');
    proxy.refuses = true;
    proxy.cut();
    await until(async () => /away|connecting/.test(await text(page, 'state')), 'it says so');
    await hub.publish(room, 'note.added', { text: 'meanwhile' });
    await note(page, 'from the cellar');
    proxy.refuses = false;
    await until(async () => (await notes(page)).length === 2, 'both are there');
    assert.deepEqual(await notes(page), ['meanwhile', 'from the cellar']);
    await shows(page, 'state', 'connected');
    proxy.stop();
    await page.context().close();
  });
}
