/**
 * Asks for a token, and begins a session with it.
 *
 * @module
 */

import { h, show, write } from './dom.js';
import { input } from './dialog.js';
import { keepToken, Session } from './session.js';

/**
 * What to say where a token won't do.
 * @param {any} error
 */
function reason({ status, message }) {
  if (status === 401) return `The hub does not take this token: ${message}.`;
  if (status === 403) return 'This token is valid, but it is not an administrator’s, and the dashboard shows everything. It needs the permission websocket:admin, which the role admin has.';
  return `${message[0].toUpperCase()}${message.slice(1)}.`;
}

/**
 * The form.
 * @param {(session: Session) => void} signedIn
 * @param {string} [why] what happened before
 */
export function signInForm(signedIn, why) {
  const token = input({ label: 'Token', hint: 'kept in this tab until it is closed', rows: 4 });
  const failure = h('p', { class: 'failure', role: 'alert', hidden: true });
  const button = h('button', { type: 'submit', class: 'primary' }, 'Sign in');
  const say = (/** @type {string} */ text) => {
    write(failure, text);
    show(failure, true);
  };
  const submit = async (/** @type {globalThis.Event} */ event) => {
    event.preventDefault();
    // Copied out of a terminal it may have been broken into lines.
    const text = token.control.value.replace(/\s+/g, '');
    if (!text) return say('A token is needed.');
    button.disabled = true;
    try {
      signedIn(await begin(text));
    } catch (error) {
      say(reason(error));
    } finally {
      button.disabled = false;
    }
  };
  token.control.addEventListener('keydown', (event) => {
    if (/** @type {KeyboardEvent} */ (event).key === 'Enter') submit(event);
  });
  const form = h(
    'form',
    { class: 'card sign-in', onsubmit: submit },
    h('h1', null, 'Ringhub'),
    h('p', null, 'Mission control of this hub. Sign in with an administrator’s token:'),
    h('pre', { tabindex: 0 }, 'ringhub token --sub me --role admin --ttl 8h'),
    token.label,
    failure,
    button,
  );
  if (why) say(why);
  return form;
}

/**
 * Begins a session; the token is kept once the hub has taken it.
 * @param {string | null} token
 */
export async function begin(token) {
  const session = new Session(token);
  await session.begin();
  keepToken(token);
  return session;
}

export { reason };
