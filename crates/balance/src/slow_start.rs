//! Slow start: a host that has just become healthy gets its share little by little (Envoy `SlowStartConfig`).

/// The window and how weights grow in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// Above zero.
    pub window_millis: u64,
    /// 1 grows evenly; more is faster at first. Above zero.
    pub aggression: f64,
    /// The least share of the full weight, 0 to 1 (Envoy's default is 0.1).
    pub min_weight: f64,
}

impl SlowStart {
    /// What a weight is multiplied by, so many milliseconds after the host became healthy.
    pub(crate) fn factor(&self, healthy_for: u64) -> f64 {
        if healthy_for >= self.window_millis {
            return 1.0;
        }
        let time = healthy_for.max(1) as f64 / self.window_millis as f64;
        let grown = if self.aggression == 1.0 { time } else { time.powf(1.0 / self.aggression) };
        grown.max(self.min_weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_grow_as_envoys_formula_says() {
        let slow = SlowStart { window_millis: 60_000, aggression: 1.0, min_weight: 0.1 };
        let factors: Vec<f64> = [0, 3_000, 6_000, 30_000, 59_999, 60_000].map(|t| slow.factor(t)).to_vec();
        assert_eq!(factors[..4], [0.1, 0.1, 0.1, 0.5]);
        assert!(factors[4] < 1.0 && factors[5] == 1.0);
        let eager = SlowStart { aggression: 2.0, ..slow };
        assert_eq!(eager.factor(15_000), 0.5);
        let timid = SlowStart { aggression: 0.5, min_weight: 0.0, ..slow };
        assert_eq!(timid.factor(30_000), 0.25);
    }
}
