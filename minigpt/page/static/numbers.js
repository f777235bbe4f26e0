/**
 * Rows of numbers: softmax, and which are the largest.
 *
 * JavaScript computes in float64 and a Float32Array rounds what is put into it, so sums here are more exact than
 * torch's, and what is kept has torch's type.
 */

/**
 * Each score's share of the whole: exp(score) / sum of all, of any row that has a finite score.
 *
 * @param {ArrayLike<number>} scores (V,); -inf has the share 0.
 * @returns {Float32Array} (V,), whose sum is 1.
 */
export function softmax(scores) {
  const shares = new Float32Array(scores.length);
  const highest = largest(scores); // subtracted first, or exp overflows
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += Math.exp(scores[i] - highest);
  for (let i = 0; i < scores.length; i++) shares[i] = Math.exp(scores[i] - highest) / sum;
  return shares;
}

/**
 * The logarithm of the softmax, exact also where that rounds to 0.
 *
 * @param {ArrayLike<number>} scores (V,).
 * @returns {Float32Array} (V,).
 */
export function logSoftmax(scores) {
  const logs = new Float32Array(scores.length);
  const highest = largest(scores);
  let sum = 0;
  for (let i = 0; i < scores.length; i++) sum += Math.exp(scores[i] - highest);
  const whole = highest + Math.log(sum);
  for (let i = 0; i < scores.length; i++) logs[i] = scores[i] - whole;
  return logs;
}

/**
 * The largest value.
 *
 * @param {ArrayLike<number>} values (V,).
 * @returns {number}
 */
export function largest(values) {
  let highest = -Infinity;
  for (let i = 0; i < values.length; i++) if (values[i] > highest) highest = values[i];
  return highest;
}

/**
 * Where the largest value stands, the first of several.
 *
 * @param {ArrayLike<number>} values (V,).
 * @returns {number}
 */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/**
 * Where the k largest values stand, the largest first; of equal ones the first.
 *
 * @param {ArrayLike<number>} values (V,).
 * @param {number} k how many; all if there are fewer.
 * @returns {number[]}
 */
export function topK(values, k) {
  const best = []; // sorted; a heap would be faster for a large k, and no view asks for one
  for (let i = 0; i < values.length; i++) {
    if (best.length === k && !(values[i] > values[best[k - 1]])) continue;
    let place = best.length;
    while (place > 0 && values[i] > values[best[place - 1]]) place--;
    best.splice(place, 0, i);
    if (best.length > k) best.pop();
  }
  return best;
}

/**
 * The entropy of a distribution in nats.
 *
 * @param {ArrayLike<number>} shares (V,), whose sum is 1.
 * @returns {number} from 0 to ln V.
 */
export function entropy(shares) {
  let sum = 0;
  for (let i = 0; i < shares.length; i++) if (shares[i] > 0) sum -= shares[i] * Math.log(shares[i]);
  return sum;
}
