/**
 * Questions before what can't be undone, and words about what was done.
 *
 * @module
 */

import { fill, freshId, h, show, write } from './dom.js';

const NOTICE_MS = 6000;

/**
 * Asks, and does what was asked for; stays open with the reason where that fails.
 * @param {object} question
 * @param {string} question.title
 * @param {string} question.text
 * @param {string} question.action the word on the button
 * @param {boolean} [question.isHarmless]
 * @param {{ name: string, label: string, value?: string, hint?: string, type?: string, rows?: number }[]} [question.fields]
 * @param {(values: Record<string, string>) => Promise<unknown>} question.act
 * @returns {Promise<boolean>} whether it was done
 */
export function ask({ title, text, action, isHarmless = false, fields = [], act }) {
  const heading = freshId();
  const inputs = new Map(fields.map((field) => [field.name, input(field)]));
  const failure = h('p', { class: 'failure', role: 'alert', hidden: true });
  const submit = h('button', { type: 'submit', class: isHarmless ? 'primary' : 'danger' }, action);
  const form = h(
    'form',
    { method: 'dialog' },
    h('h2', { id: heading }, title),
    h('p', null, text),
    [...inputs.values()].map(({ label }) => label),
    failure,
    h('div', { class: 'buttons' }, h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'), submit),
  );
  const dialog = h('dialog', { 'aria-labelledby': heading }, form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    let isDone = false;
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(isDone);
    });
    form.addEventListener('submit', async (/** @type {SubmitEvent} */ event) => {
      event.preventDefault();
      submit.disabled = true;
      try {
        await act(Object.fromEntries([...inputs].map(([name, { control }]) => [name, control.value])));
        isDone = true;
        dialog.close();
      } catch (error) {
        write(failure, /** @type {Error} */ (error).message);
        show(failure, true);
      } finally {
        submit.disabled = false;
      }
    });
  });
}

/**
 * A labelled input.
 * @param {{ label: string, value?: string, hint?: string, type?: string, rows?: number }} field
 * @returns {{ label: HTMLElement, control: HTMLInputElement | HTMLTextAreaElement }}
 */
export function input({ label, value = '', hint, type = 'text', rows }) {
  const described = hint ? freshId() : null;
  const common = { 'aria-describedby': described, autocomplete: 'off', spellcheck: 'false' };
  const control = rows ? h('textarea', { rows, ...common }) : h('input', { type, ...common });
  control.value = value;
  return { control, label: h('label', { class: 'field' }, h('span', null, label), control, hint && h('small', { id: described }, hint)) };
}

const notices = h('div', { class: 'notices', role: 'status', 'aria-live': 'polite' });

/** Where notices are shown. */
export function noticeBoard() {
  return notices;
}

/**
 * Says for some seconds what was done, or why not.
 * @param {string} text
 * @param {'good' | 'bad'} [tone]
 */
export function notify(text, tone = 'good') {
  const notice = h('p', { class: `notice ${tone}` }, text);
  notices.append(notice);
  setTimeout(() => notice.remove(), NOTICE_MS);
}

/**
 * Puts something in the place of what there is, with a word of what failed where it does.
 * @param {HTMLElement} place
 * @param {unknown} error
 */
export function fillFailure(place, error) {
  fill(place, h('p', { class: 'failure', role: 'alert' }, /** @type {Error} */ (error).message));
}
