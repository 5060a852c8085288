//! `strftime` in UTC, with the sub-second forms that Envoy adds (`%3f`, `%6f`, `%E4S`).
use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lateen_core::utc::Civil;

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A compiled time format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field(char),
    /// The first so many digits of the fraction.
    Fraction(u8),
    /// Seconds with so many digits of fraction; none gives no point.
    Seconds(u8),
    /// Seconds since 1970.
    Epoch,
    /// The offset, with a colon.
    OffsetColon,
    /// Envoy's default as one piece: nearly every line of every log has it.
    Iso8601,
}

impl TimeFormat {
    /// Compiles a format.
    ///
    /// # Errors
    /// The conversion that is not known.
    pub fn compile(format: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            literal.push_str(&rest[..at]);
            let (part, used) = conversion(&rest[at + 1..])?;
            match part {
                Part::Literal(text) => literal.push_str(&text),
                part => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(part);
                }
            }
            rest = &rest[at + 1 + used..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// Envoy's default: `2026-11-21T02:54:23.844Z`.
    pub fn iso8601() -> Self {
        Self(vec![Part::Iso8601])
    }

    /// Appends `time`; times before 1970 count as 1970.
    pub fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if let [Part::Iso8601] = self.0[..] {
            return write_iso8601(since, out);
        }
        let civil = Civil::at(since.as_secs());
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Field(field) => write_field(*field, &civil, since, out),
                Part::Fraction(digits) => push_fraction(out, since.subsec_nanos(), *digits),
                Part::Seconds(digits) => {
                    push_padded(out, civil.second.into(), 2, b'0');
                    if *digits > 0 {
                        out.push(b'.');
                        push_fraction(out, since.subsec_nanos(), *digits);
                    }
                }
                Part::Epoch => push_padded(out, since.as_secs(), 1, b'0'),
                Part::OffsetColon => out.extend_from_slice(b"+00:00"),
                Part::Iso8601 => write_iso8601(since, out),
            }
        }
    }
}

/// Reads what follows a `%`: the part and how many bytes it took.
fn conversion(rest: &str) -> Result<(Part, usize), String> {
    let mut chars = rest.chars();
    let unknown = |text: &str| Err(format!("%{text} is not a time conversion"));
    match chars.next() {
        None => unknown(""),
        Some('%') => Ok((Part::Literal("%".to_owned()), 1)),
        Some('n') => Ok((Part::Literal("\n".to_owned()), 1)),
        Some('t') => Ok((Part::Literal("\t".to_owned()), 1)),
        Some('s') => Ok((Part::Epoch, 1)),
        Some('f') => Ok((Part::Fraction(9), 1)),
        Some(c @ ('Y' | 'y' | 'C' | 'm' | 'd' | 'e' | 'H' | 'I' | 'M' | 'S' | 'p' | 'j' | 'a' | 'A' | 'b' | 'B' | 'h')) => {
            Ok((Part::Field(c), 1))
        }
        Some(c @ ('F' | 'T' | 'D' | 'R' | 'c' | 'u' | 'w' | 'z' | 'Z')) => Ok((Part::Field(c), 1)),
        Some(digit @ '1'..='9') if chars.next() == Some('f') => Ok((Part::Fraction(digit as u8 - b'0'), 2)),
        Some('E') => match (chars.next(), chars.next()) {
            (Some('z'), _) => Ok((Part::OffsetColon, 2)),
            (Some(digit @ '0'..='9'), Some('S')) => Ok((Part::Seconds(digit as u8 - b'0'), 3)),
            (Some(digit @ '1'..='9'), Some('f')) => Ok((Part::Fraction(digit as u8 - b'0'), 3)),
            (Some('*'), Some('S')) => Ok((Part::Seconds(9), 3)),
            (Some('*'), Some('f')) => Ok((Part::Fraction(9), 3)),
            _ => unknown("E"),
        },
        Some(other) => unknown(&other.to_string()),
    }
}

type Iso8601 = [u8; 24];

thread_local! {
    /// The last second that was written, of which a busy worker has thousands of lines.
    static LAST: Cell<(u64, Iso8601)> = const { Cell::new((0, *b"1970-01-01T00:00:00.000Z")) };
}

fn write_iso8601(since: Duration, out: &mut Vec<u8>) {
    let (second, mut text) = LAST.get();
    if second != since.as_secs() {
        text = iso8601(&Civil::at(since.as_secs()));
        LAST.set((since.as_secs(), text));
    }
    put_digits(&mut text[20..23], since.subsec_millis());
    out.extend_from_slice(&text);
}

/// Without its fraction.
fn iso8601(at: &Civil) -> Iso8601 {
    let mut text = *b"0000-00-00T00:00:00.000Z";
    put_digits(&mut text[..4], at.year as u32);
    put_digits(&mut text[5..7], at.month);
    put_digits(&mut text[8..10], at.day);
    put_digits(&mut text[11..13], at.hour);
    put_digits(&mut text[14..16], at.minute);
    put_digits(&mut text[17..19], at.second);
    text
}

fn put_digits(place: &mut [u8], mut value: u32) {
    for byte in place.iter_mut().rev() {
        *byte = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn write_field(field: char, at: &Civil, since: Duration, out: &mut Vec<u8>) {
    let month = MONTHS[(at.month - 1) as usize];
    let day = DAYS[at.weekday as usize];
    let mut two = |value: u32| push_padded(out, value.into(), 2, b'0');
    match field {
        'm' => two(at.month),
        'd' => two(at.day),
        'H' => two(at.hour),
        'I' => two((at.hour + 11) % 12 + 1),
        'M' => two(at.minute),
        'S' => two(at.second),
        'C' => two((at.year / 100) as u32),
        'y' => two((at.year % 100) as u32),
        'e' => push_padded(out, at.day.into(), 2, b' '),
        'j' => push_padded(out, u64::from(at.day_of_year) + 1, 3, b'0'),
        'Y' => push_padded(out, at.year as u64, 4, b'0'),
        'u' => push_padded(out, if at.weekday == 0 { 7 } else { at.weekday.into() }, 1, b'0'),
        'w' => push_padded(out, at.weekday.into(), 1, b'0'),
        'p' => out.extend_from_slice(if at.hour < 12 { b"AM" } else { b"PM" }),
        'a' => out.extend_from_slice(&day.as_bytes()[..3]),
        'A' => out.extend_from_slice(day.as_bytes()),
        'b' | 'h' => out.extend_from_slice(&month.as_bytes()[..3]),
        'B' => out.extend_from_slice(month.as_bytes()),
        'z' => out.extend_from_slice(b"+0000"),
        'Z' => out.extend_from_slice(b"UTC"),
        'F' => write_all("Y-m-d", at, since, out),
        'T' => write_all("H:M:S", at, since, out),
        'R' => write_all("H:M", at, since, out),
        'D' => write_all("m/d/y", at, since, out),
        'c' => write_all("a b e T Y", at, since, out),
        // `conversion` lets no other field through.
        _ => {}
    }
}

/// Letters are fields, all else is itself.
fn write_all(fields: &str, at: &Civil, since: Duration, out: &mut Vec<u8>) {
    for c in fields.chars() {
        if c.is_ascii_alphabetic() { write_field(c, at, since, out) } else { out.push(c as u8) }
    }
}

fn push_fraction(out: &mut Vec<u8>, nanos: u32, digits: u8) {
    let digits = u32::from(digits.clamp(1, 9));
    push_padded(out, u64::from(nanos / 10u32.pow(9 - digits)), digits as usize, b'0');
}

/// Appends a number, padded on the left.
pub(super) fn push_padded(out: &mut Vec<u8>, mut value: u64, width: usize, pad: u8) {
    if value < 10 && width <= 1 {
        return out.push(b'0' + value as u8);
    }
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    while digits.len() - at < width.min(digits.len()) {
        at -= 1;
        digits[at] = pad;
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: &str, secs: u64, nanos: u32) -> String {
        let mut out = Vec::new();
        TimeFormat::compile(format).unwrap().write(UNIX_EPOCH + Duration::new(secs, nanos), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_forms_envoy_prints() {
        assert_eq!(
            print("%Y %3f %6f %9f %s %s.%3f %E4S %H:%M:%E3S%Ez", 1_795_229_663, 844_312_000),
            "2026 844 844312 844312000 1795229663 1795229663.844 23.8443 02:54:23.844+00:00"
        );
        let mut out = Vec::new();
        TimeFormat::iso8601().write(UNIX_EPOCH + Duration::new(1_795_229_663, 844_312_000), &mut out);
        assert_eq!(out, b"2026-11-21T02:54:23.844Z");
    }

    #[test]
    fn seconds_that_follow_each_other_are_told_apart() {
        let second = 1_795_229_663;
        for (secs, millis, expected) in [(second, 999, "23.999"), (second, 0, "23.000"), (second + 1, 7, "24.007"), (second, 70, "23.070")]
        {
            let mut out = Vec::new();
            TimeFormat::iso8601().write(UNIX_EPOCH + Duration::new(secs, millis * 1_000_000), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("2026-11-21T02:54:{expected}Z"));
        }
        let mut out = Vec::new();
        TimeFormat::iso8601().write(UNIX_EPOCH, &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn calendars_agree_at_their_edges() {
        // Against `date -u -d @… +'%a %b %d %Y %j %H:%M:%S'`.
        for (secs, expected) in [
            (0, "Thu Jan 01 1970 001 00:00:00"),
            (951_782_399, "Mon Feb 28 2000 059 23:59:59"),
            (951_782_400, "Tue Feb 29 2000 060 00:00:00"),
            (1_709_251_199, "Thu Feb 29 2024 060 23:59:59"),
            (1_735_689_599, "Tue Dec 31 2024 366 23:59:59"),
            (4_107_542_400, "Mon Mar 01 2100 060 00:00:00"),
        ] {
            assert_eq!(print("%a %b %d %Y %j %T", secs, 0), expected);
        }
    }

    #[test]
    fn dates_agree_with_another_implementation() {
        for day in (0..40_000).step_by(97) {
            let secs = day * 86_400 + 3_661;
            let theirs = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(secs));
            assert_eq!(print("%a, %d %b %Y %H:%M:%S GMT", secs, 0), theirs);
        }
    }

    #[test]
    fn unknown_conversions_are_named() {
        assert_eq!(TimeFormat::compile("%Y %Q").unwrap_err(), "%Q is not a time conversion");
        assert!(TimeFormat::compile("%").is_err());
        assert!(TimeFormat::compile("%E").is_err());
    }
}
