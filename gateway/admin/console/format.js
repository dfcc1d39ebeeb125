// Numbers and times for people.

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** Return seconds as one or two units, such as `3 min 20 s`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** Return the seconds since a timestamp. */
export const since = (timestamp) => (timestamp ? (Date.now() - Date.parse(timestamp)) / 1000 : NaN);

/** Return a timestamp as the local time of day. */
export function clock(timestamp) {
  const time = new Date(timestamp);
  return Number.isNaN(time.getTime()) ? String(timestamp) : time.toLocaleTimeString("en-GB");
}

/** Return milliseconds with a sensible precision. */
export function milliseconds(value) {
  if (value === null || value === undefined) return "";
  return value < 1000 ? `${number.format(value)} ms` : `${number.format(value / 1000)} s`;
}

/** Return a number of bytes. */
export function bytes(value) {
  if (value === null || value === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  for (; value >= 1024 && index < units.length - 1; index++) value /= 1024;
  return `${number.format(value)} ${units[index]}`;
}

export const rate = (value) => number.format(value);
