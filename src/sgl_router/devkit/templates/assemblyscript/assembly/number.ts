/**
 * Decimal numbers to f64, rounded to the nearest, ties to even. A policy's author need not touch
 * this file. The language's own `parseFloat` is wrong in the last bit of some numbers.
 */

const DIGIT_0: u8 = 0x30;
const DOT: u8 = 0x2e;
const MAX_DIGITS = 800; // Past 768 a digit matters only by being there (Clinger 1990).
const POWERS: StaticArray<f64> = [
  1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
  1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/** The value of a number of JSON, without a sign, that stands in `[at, end)`. */
export function decimal(at: usize, end: usize): f64 {
  const digits = at;
  let mantissa: u64 = 0;
  let exponent: i32 = 0;
  let count: i32 = 0;
  let pointed = false;
  for (; at < end; ++at) {
    const digit = load<u8>(at) - DIGIT_0;
    if (digit > 9) {
      if (load<u8>(at) != DOT) break;
      pointed = true;
      continue;
    }
    if (count < 19) mantissa = mantissa * 10 + digit;
    if (mantissa) ++count;
    if (pointed) --exponent;
  }
  if (!mantissa) return 0;
  const stop = at;
  if (at < end) exponent += power(at + 1, end);
  // Both are exact as f64 here, so that a single operation rounds once.
  if (count <= 19 && mantissa <= <u64>1 << 53 && abs(exponent) <= 22) {
    const value = <f64>mantissa;
    return exponent < 0 ? value / POWERS[-exponent] : value * POWERS[exponent];
  }
  if (count + exponent > 310) return Infinity;
  if (count + exponent < -330) return 0;
  return exact(digits, stop, exponent);
}

/** The power of ten after the `e`, bounded. */
function power(at: usize, end: usize): i32 {
  const sign = load<u8>(at);
  if (sign == 0x2b || sign == 0x2d) ++at;
  let value: i32 = 0;
  for (; at < end; ++at) value = min(value * 10 + (load<u8>(at) - DIGIT_0), 100_000_000);
  return sign == 0x2d ? -value : value;
}

/** With a whole number of any size: the digits in `[at, end)` times a power of ten. */
function exact(at: usize, end: usize, exponent: i32): f64 {
  let sticky = false;
  let count = 0;
  big.length = 0;
  for (; at < end; ++at) {
    const digit = load<u8>(at) - DIGIT_0;
    if (digit > 9) continue;
    if (count < MAX_DIGITS) {
      big.multiply(10, digit);
      if (big.length) ++count;
    } else {
      sticky = sticky || digit != 0;
      ++exponent;
    }
  }
  for (let left = exponent; left > 0; left -= 9) big.multiply(<u64>POWERS[min(left, 9)], 0);
  // 64 bits more than the division takes away; a tenth takes 3.33 of them.
  const words = exponent < 0 ? (-exponent * 10 / 3 + 96) / 32 : 0;
  big.shift(words);
  for (let left = -exponent; left > 0; left -= 9) {
    if (big.divide(<u64>POWERS[min(left, 9)])) sticky = true;
  }
  return big.rounded(-32 * words, sticky);
}

/** A whole number in words of 32 bits, the lowest first. */
class Big {
  /** 800 digits take 84 words, and the lowest exponent of ten, -1130, another 121. */
  limbs: StaticArray<u32> = new StaticArray(208);
  length: i32 = 0;

  multiply(factor: u64, carry: u64): void {
    const limbs = this.limbs;
    for (let i = 0; i < this.length; ++i) {
      carry += limbs[i] * factor;
      limbs[i] = <u32>carry;
      carry >>= 32;
    }
    if (carry) limbs[this.length++] = <u32>carry;
  }

  shift(words: i32): void {
    const at = changetype<usize>(this.limbs);
    memory.copy(at + (words << 2), at, this.length << 2);
    memory.fill(at, 0, words << 2);
    this.length += words;
  }

  /** Returns the remainder. */
  divide(by: u64): u64 {
    const limbs = this.limbs;
    let rest: u64 = 0;
    for (let i = this.length - 1; i >= 0; --i) {
      rest = rest << 32 | limbs[i];
      limbs[i] = <u32>(rest / by);
      rest %= by;
    }
    while (this.length && !limbs[this.length - 1]) --this.length;
    return rest;
  }

  /** This times 2^scale; `sticky`: a little more than this. */
  rounded(scale: i32, sticky: bool): f64 {
    const limbs = this.limbs;
    const length = this.length;
    let top: u64 = 0;
    for (let i = 1; i <= 2; ++i) top = top << 32 | (i <= length ? <u64>limbs[length - i] : 0);
    const free = <i32>clz(top);
    const third: u64 = length > 2 ? limbs[length - 3] : 0;
    if (free) top = top << free | third >> (32 - free);
    sticky = sticky || <u32>(third << free) != 0;
    for (let i = 0; i < length - 3; ++i) sticky = sticky || limbs[i] != 0;

    const exponent = length * 32 - free - 1 + scale; // of the highest bit
    if (exponent > 1023) return Infinity;
    const kept = exponent < -1022 ? 53 + exponent + 1022 : 53; // bits; fewer where subnormal
    if (kept < 0) return 0;
    const dropped = 64 - kept;
    let bits = dropped == 64 ? 0 : top >> dropped;
    const rest = dropped == 64 ? top : top & (((<u64>1) << dropped) - 1);
    const half = <u64>1 << (dropped - 1);
    if (rest > half || (rest == half && (sticky || (bits & 1) != 0))) ++bits;
    // A carry goes into the exponent, which is as it should be.
    if (exponent >= -1022) bits += <u64>(exponent + 1022) << 52;
    return reinterpret<f64>(bits);
  }
}

/** Used again and again, so that numbers leave nothing to collect. */
const big = new Big();
