//! The value below which a share of many lies.

/// Of `values`, which are put in order; by the nearest rank, so that it is one of them.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place among some millions"
    )]
    let rank = (values.len() as f64 * share).ceil() as usize;
    let place = rank.max(1) - 1;
    values.get(place).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn is_the_value_of_the_nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, expected) in [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (0.0, 1.0)] {
            assert!((quantile(&mut values, share) - expected).abs() < f64::EPSILON);
        }
        assert!((quantile(&mut [7.0], 0.5) - 7.0).abs() < f64::EPSILON);
        assert!(quantile(&mut [], 0.5).is_nan());
    }
}
