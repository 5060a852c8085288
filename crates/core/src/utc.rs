//! Moments in the UTC calendar, and as RFC 3339 writes them. Times before 1970 count as 1970.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A second in the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: i64,
    /// From 1.
    pub month: u32,
    /// Of the month, from 1.
    pub day: u32,
    /// From 0.
    pub day_of_year: u32,
    /// Sunday is 0.
    pub weekday: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl Civil {
    /// The second that is so many after 1970 began.
    pub fn at(seconds: u64) -> Self {
        let (days, of_day) = ((seconds / 86_400) as i64, (seconds % 86_400) as u32);
        // Counted in cycles of 400 years from 1 March of year 0, so that a leap day is the last of its year.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let day = (from_march - (153 * march_month + 2) / 5 + 1) as u32;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before_month = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][(month - 1) as usize];
        let day_of_year = before_month + day - 1 + u32::from(leap && month > 2);
        let weekday = (days + 4).rem_euclid(7) as u32;
        Self { year, month, day, day_of_year, weekday, hour: of_day / 3600, minute: of_day / 60 % 60, second: of_day % 60 }
    }
}

/// `2026-11-21T03:20:07Z`, as Kubernetes writes times.
pub fn rfc3339(time: SystemTime) -> String {
    written(since_1970(time), "")
}

/// `2026-11-21T03:20:07.123Z`, as protobuf's JSON writes them.
pub fn rfc3339_millis(time: SystemTime) -> String {
    let since = since_1970(time);
    written(since, &format!(".{:03}", since.subsec_millis()))
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

fn written(since: Duration, fraction: &str) -> String {
    let Civil { year, month, day, hour, minute, second, .. } = Civil::at(since.as_secs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_007, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(rfc3339_millis(time), text);
            assert_eq!(rfc3339(time), format!("{}Z", &text[..19]));
        }
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }
}
