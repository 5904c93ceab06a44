//! Tests of randomness, each as the number of standard deviations from what chance gives.
//!
//! Beyond 4 chance comes once in 30,000 runs (one side).

/// Beyond this a deviation is not chance.
pub const LIMIT: f64 = 4.0;

/// The upper tail of chi-square over `counts` that should be equal, by Wilson and Hilferty's cube root.
pub fn chi_square(counts: &[u32]) -> f64 {
    let expected = vec![1.0; counts.len()];
    chi_square_weighted(counts, &expected)
}

/// The same where cell `i` should hold a share of `weights[i]`.
pub fn chi_square_weighted(counts: &[u32], weights: &[f64]) -> f64 {
    let total: f64 = counts.iter().map(|count| f64::from(*count)).sum();
    let whole: f64 = weights.iter().sum();
    let cells = counts.iter().zip(weights).map(|(count, weight)| {
        let expected = total * weight / whole;
        (f64::from(*count) - expected).powi(2) / expected
    });
    let (chi, freedom) = (cells.sum::<f64>(), counts.len() as f64 - 1.0);
    let spread = 2.0 / (9.0 * freedom);
    ((chi / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// The correlation of each value with the next one.
pub fn lag_one(values: &[u16]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let off = |value: &u16| f64::from(*value) - mean;
    let variance: f64 = values.iter().map(|value| off(value).powi(2)).sum();
    let pairs = values.windows(2).map(|pair| off(&pair[0]) * off(&pair[1]));
    pairs.sum::<f64>() / variance * count.sqrt()
}

/// The number of runs above and below the median (Wald and Wolfowitz).
pub fn runs(values: &[u16]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    let above: Vec<bool> = values.iter().map(|value| *value >= median).collect();
    let high = above.iter().filter(|is| **is).count() as f64;
    let low = above.len() as f64 - high;
    let count = high + low;
    let seen = 1.0 + above.windows(2).filter(|pair| pair[0] != pair[1]).count() as f64;
    let mean = 2.0 * high * low / count + 1.0;
    (seen - mean) / ((mean - 1.0) * (mean - 2.0) / (count - 1.0)).sqrt()
}

/// How many of `values` fall in each of `cells` equal parts of `first..=last`.
pub fn histogram(values: &[u16], first: u16, last: u16, cells: usize) -> Vec<u32> {
    let width = usize::from(last - first) + 1;
    let mut counts = vec![0; cells];
    for value in values {
        counts[usize::from(value - first) * cells / width] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_passes_and_patterns_do_not() {
        // SplitMix64 from a fixed seed: chance that is the same in every run.
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 48) as u16
        };
        let random: Vec<u16> = (0..5000).map(|_| next()).collect();
        let counting: Vec<u16> = (0..5000).map(|number| number * 13).collect();
        let narrow: Vec<u16> = random.iter().map(|value| value / 2).collect();
        let spread = |values: &[u16]| chi_square(&histogram(values, 0, u16::MAX, 64));
        assert!(spread(&random) < LIMIT && spread(&narrow) > LIMIT);
        assert!(lag_one(&random).abs() < LIMIT && lag_one(&counting).abs() > LIMIT);
        assert!(runs(&random).abs() < LIMIT && runs(&counting).abs() > LIMIT);
    }
}
