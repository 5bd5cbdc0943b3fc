/**
 * Figures over time: a bounded number of moments, each with a value in some of the columns.
 *
 * @module
 */

/** Values by moment, the oldest first. What does not fit pushes out what is oldest. */
export class Series {
  /** @param {number} moments_max */
  constructor(moments_max) {
    this._max = moments_max;
    this._times = new Float64Array(moments_max);
    /** @type {Map<string, Float64Array>} */
    this._columns = new Map();
    this._begin = 0;
    this.length = 0;
  }

  /**
   * Adds a moment behind the others; one that is not behind them is left out.
   * @param {number} at milliseconds since 1970
   * @param {Record<string, number | null | undefined>} values
   */
  push(at, values) {
    if (this.length > 0 && at <= this.time(this.length - 1)) return;
    if (this.length === this._max) this._begin = (this._begin + 1) % this._max;
    else this.length++;
    const place = this._place(this.length - 1);
    this._times[place] = at;
    for (const column of this._columns.values()) column[place] = NaN;
    for (const [name, value] of Object.entries(values)) {
      let column = this._columns.get(name);
      if (!column) this._columns.set(name, (column = new Float64Array(this._max).fill(NaN)));
      column[place] = value ?? NaN;
    }
  }

  clear() {
    this._begin = this.length = 0;
    this._columns.clear();
  }

  /** @param {number} index 0 is the oldest */
  time(index) {
    return this._times[this._place(index)];
  }

  /**
   * @param {string} name of the column
   * @param {number} index
   * @returns {number} NaN where there is none
   */
  value(name, index) {
    const column = this._columns.get(name);
    return column && index >= 0 && index < this.length ? column[this._place(index)] : NaN;
  }

  /** @param {string} name the newest value; NaN where there is none */
  last(name) {
    return this.value(name, this.length - 1);
  }

  /**
   * The first moment at or behind a time.
   * @param {number} at
   * @returns {number} its index; `length` where there is none
   */
  from(at) {
    let [low, high] = [0, this.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.time(middle) < at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** @param {number} index */
  _place(index) {
    return (this._begin + index) % this._max;
  }
}
