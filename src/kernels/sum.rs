//! The sum of many numbers, read as fast as the memory gives them.

use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use super::inference::AHEAD;
use super::inference::Machine;

/// Bytes that a thread reads at a time: about those of a panel of weights.
const PART_BYTES: usize = 128 << 10;

/// Reads numbers on all threads, which meet at the end, as in a product with a matrix of weights.
pub fn read(machine: &Machine, values: &[u64]) {
    let parts: Vec<&[u64]> = values.chunks(PART_BYTES / size_of::<u64>()).collect();
    machine.pool.run(parts.len(), |number| {
        black_box(sum(parts[number]));
    });
}

/// Reads with the loads and the prefetches of matrix products. Otherwise, they would read faster than this limit: on Zen 5, prefetches
/// alone make 8 %.
pub fn sum(values: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2, the only requirement of the function.
        return unsafe { sum_avx2(values) };
    }
    plain_sum(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(values: &[u64]) -> u64 {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    let mut sum = 0u64;
    for block in values.chunks(BLOCK) {
        for line in (0..BLOCK).step_by(LINE) {
            // A prefetched address need not be valid.
            _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(line).wrapping_byte_add(AHEAD).cast());
        }
        sum = sum.wrapping_add(plain_sum(block));
    }
    sum
}

/// Numbers in a cache line, and in the lines that are prefetched at a time.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 8;
#[cfg(target_arch = "x86_64")]
const BLOCK: usize = 8 * LINE;

/// The compiler vectorises this into several independent sums, so that memory is the limit and not the adder. An
/// explicit array of 8 to 32 sums was ten times slower when compiled for a CPU with AVX-512.
#[inline(always)]
fn plain_sum(values: &[u64]) -> u64 {
    values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read() {
        for length in [0, 1, 31, 32, 33, 1000] {
            let values: Vec<u64> = (1..=length).collect();
            assert_eq!(sum(&values), length * (length + 1) / 2);
            assert_eq!(plain_sum(&values), sum(&values));
        }
    }
}
