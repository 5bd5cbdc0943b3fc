/**
 * How values are written for people. Numbers are short, times are those of the reader's clock, and what others wrote is
 * shown as it is, characters that would act on the text around them excepted.
 *
 * @module
 */

/** What there is nothing to say of. */
export const NOTHING = '–';

/** @param {number | null | undefined} value */
const isKnown = (value) => typeof value === 'number' && Number.isFinite(value);

/**
 * A count, with its digits in groups.
 * @param {number | null | undefined} value
 */
export function count(value) {
  return isKnown(value) ? Math.round(/** @type {number} */ (value)).toLocaleString('en') : NOTHING;
}

/**
 * `1 room`, `12 rooms`.
 * @param {number} value
 * @param {string} what
 */
export function many(value, what) {
  return `${count(value)} ${what}${value === 1 ? '' : 's'}`;
}

/**
 * A number with about three digits: `0.2`, `35`, `4.1 k`.
 * @param {number | null | undefined} value
 */
export function short(value) {
  if (!isKnown(value)) return NOTHING;
  return scaled(/** @type {number} */ (value), 1000, ['', ' k', ' M', ' G', ' T']);
}

/**
 * So many times a second.
 * @param {number | null | undefined} value
 */
export function rate(value) {
  return isKnown(value) ? `${short(value)}/s` : NOTHING;
}

/**
 * Bytes, in units of 1024.
 * @param {number | null | undefined} value
 */
export function bytes(value) {
  if (!isKnown(value)) return NOTHING;
  return scaled(/** @type {number} */ (value), 1024, [' B', ' KiB', ' MiB', ' GiB', ' TiB']);
}

/** @param {number | null | undefined} value */
export function byteRate(value) {
  return isKnown(value) ? `${bytes(value)}/s` : NOTHING;
}

/** @param {number | null | undefined} value from 0 to 100 */
export function percent(value) {
  return isKnown(value) ? `${digits(/** @type {number} */ (value))} %` : NOTHING;
}

/** @param {number | null | undefined} value milliseconds */
export function ms(value) {
  if (!isKnown(value)) return NOTHING;
  const known = /** @type {number} */ (value);
  return known >= 1000 ? `${digits(known / 1000)} s` : `${digits(known)} ms`;
}

/**
 * @param {number} value
 * @param {number} step
 * @param {string[]} units
 */
function scaled(value, step, units) {
  let unit = 0;
  // Half a digit below the next unit would be written as a whole one.
  while (Math.abs(value) >= step * 0.9995 && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  return digits(value) + units[unit];
}

/** @param {number} value */
function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size < 0.01) return value.toPrecision(1);
  return size < 10 ? String(Number(value.toFixed(size < 0.1 ? 2 : 1))) : String(Math.round(value));
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const MINUTE = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit' });
const DAY = new Intl.DateTimeFormat('en-GB', { day: '2-digit', month: 'short' });

/**
 * `14:03:27.518`, and the day in front where it is another one.
 * @param {string | number | null | undefined} moment RFC 3339, or milliseconds since 1970
 */
export function time(moment) {
  const date = dateOf(moment);
  if (!date) return NOTHING;
  const day = date.toDateString() === new Date().toDateString() ? '' : `${DAY.format(date)} `;
  return `${day}${CLOCK.format(date)}.${String(date.getMilliseconds()).padStart(3, '0')}`;
}

/** @param {string | number | null | undefined} moment */
export function clock(moment) {
  const date = dateOf(moment);
  if (!date) return NOTHING;
  const day = date.toDateString() === new Date().toDateString() ? '' : `${DAY.format(date)} `;
  return day + CLOCK.format(date);
}

/**
 * For an axis.
 * @param {number} moment
 * @param {number} span_ms how much the axis shows
 */
export function axisTime(moment, span_ms) {
  const format = span_ms > 2 * 86_400_000 ? DAY : span_ms > 120_000 ? MINUTE : CLOCK;
  return format.format(moment);
}

/**
 * `14 s`, `3 min`, `2 h 5 min`, `4 d`.
 * @param {number | null | undefined} span_ms
 */
export function span(span_ms) {
  if (!isKnown(span_ms)) return NOTHING;
  const seconds = Math.max(0, Math.round(/** @type {number} */ (span_ms) / 1000));
  if (seconds < 100) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

/**
 * How long ago.
 * @param {string | number | null | undefined} moment
 * @param {number} [now]
 */
export function ago(moment, now = Date.now()) {
  const date = dateOf(moment);
  return date ? span(now - date.getTime()) : NOTHING;
}

/** @param {string | number | null | undefined} moment */
function dateOf(moment) {
  if (moment === null || moment === undefined) return undefined;
  const date = new Date(moment);
  return Number.isNaN(date.getTime()) ? undefined : date;
}

/**
 * Characters that are not seen, or turn the direction of the text around them: what is seen would not be what is there.
 * Controls; soft hyphen; zero widths and marks of direction; line separators; the byte order mark.
 */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/**
 * Text of others for one line.
 * @param {unknown} value
 * @param {number} [length_max] how much of it
 */
export function plain(value, length_max = 500) {
  const text = typeof value === 'string' ? value : value === undefined || value === null ? '' : String(value);
  const cut = text.length > length_max ? `${text.slice(0, length_max)}…` : text;
  return cut.replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/**
 * JSON on one line.
 * @param {unknown} value
 * @param {number} [length_max]
 */
export function json(value, length_max = 500) {
  return value === undefined ? '' : plain(JSON.stringify(value), length_max);
}

/**
 * JSON over several lines.
 * @param {unknown} value
 * @param {number} [length_max]
 */
export function pretty(value, length_max = 100_000) {
  const text = value === undefined ? '' : JSON.stringify(value, undefined, 2);
  return text.split('\n').map((line) => plain(line, length_max)).join('\n').slice(0, length_max);
}

/** `slow_readers` as `slow readers`. @param {string} word */
export function words(word) {
  return plain(word).replace(/_/g, ' ');
}
