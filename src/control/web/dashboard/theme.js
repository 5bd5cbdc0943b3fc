/**
 * Dark or light: as the system has it, unless one says otherwise.
 *
 * @module
 */

import { h, write } from './dom.js';

const KEPT = 'ringhub.theme';
const THEMES = ['auto', 'light', 'dark'];

/**
 * A button that goes from one theme to the next.
 * @param {() => void} changed
 */
export function themeButton(changed) {
  const label = h('span');
  const button = h('button', { type: 'button', class: 'quiet', onclick: () => use(THEMES[(THEMES.indexOf(kept()) + 1) % THEMES.length]) }, label);
  const use = (/** @type {string} */ theme) => {
    if (theme === 'auto') {
      localStorage.removeItem(KEPT);
      delete document.documentElement.dataset.theme;
    } else {
      localStorage.setItem(KEPT, theme);
      document.documentElement.dataset.theme = theme;
    }
    write(label, `Theme: ${theme}`);
    changed();
  };
  use(kept());
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changed);
  return button;
}

function kept() {
  const theme = localStorage.getItem(KEPT) ?? 'auto';
  return THEMES.includes(theme) ? theme : 'auto';
}
