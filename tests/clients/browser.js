// Debian's Chromium, and pages for it.
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer as overHttp } from 'node:http';
import { createServer as overTls } from 'node:https';
import { extname } from 'node:path';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8' };

/** A browser with an empty profile of its own. */
export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
}

/** Serves what is given: by path a text, or the address of a file. With `tls`, a certificate and its key, over that. */
export async function serve(files, tls) {
  const server = (tls ? overTls : overHttp)(tls ?? {}, async ({ url }, answer) => {
    const { pathname } = new URL(url, 'http://pages');
    const file = files[pathname];
    // Browsers ask for an icon, and complain where there is none.
    if (file === undefined) return answer.writeHead(pathname === '/favicon.ico' ? 204 : 404).end();
    const text = file instanceof URL ? await readFile(file) : file;
    answer.writeHead(200, { 'Content-Type': TYPES[extname(pathname)] ?? TYPES['.html'] }).end(text);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return { url: `${tls ? 'https' : 'http'}://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

/** Opens a page; what goes wrong in it is kept in `problems`. */
export async function visit(browser, url) {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.problems = [];
  page.on('pageerror', (error) => page.problems.push(String(error)));
  page.on('console', (message) => message.type() === 'error' && page.problems.push(message.text()));
  await page.goto(url);
  return page;
}
