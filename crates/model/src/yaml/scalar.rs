//! What a plain scalar means, by the YAML 1.1 rules that Kubernetes tools read files with.
use super::tree::{Number, Value};

/// Resolves an unquoted scalar. `yes`, `on` and `y` are booleans and `0777` is octal, as in kubectl.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true, text.into()),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false, text.into()),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

/// A number in one of the spellings of YAML 1.1, or `None` for a text.
pub(super) fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !(first.is_ascii_digit() || matches!(first, b'+' | b'-' | b'.')) {
        return None;
    }
    let special = match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        _ => None,
    };
    if let Some(float) = special {
        return Some(Number { text: text.into(), int: None, float });
    }
    if let Some(int) = integer(&text.replace('_', "")) {
        return Some(Number { text: text.into(), int: Some(int), float: int as f64 });
    }
    let plausible = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    let float: f64 = plausible.then(|| text.parse().ok()).flatten().filter(|float: &f64| float.is_finite())?;
    // 2^53: beyond it a float no longer names one whole number.
    let whole = float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    Some(Number { text: text.into(), int: whole.then_some(float as i128), float })
}

fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // from_str_radix would take a second sign.
    if !digits.as_bytes().first()?.is_ascii_alphanumeric() {
        return None;
    }
    // Kubernetes numbers are 64 bits wide; anything longer is a text or a float.
    let value = u64::from_str_radix(digits, radix).ok()?;
    let value = i128::from(value);
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_kubernetes_reads_as_booleans_are_booleans() {
        for text in ["yes", "on", "y", "True"] {
            assert_eq!(resolve(text), Value::Bool(true, text.into()));
        }
        assert_eq!(resolve("nope"), Value::String("nope".into()));
    }

    #[test]
    fn numbers_keep_their_spelling() {
        let cases: [(&str, Option<i128>, f64); 7] = [
            ("80", Some(80), 80.0),
            ("-5", Some(-5), -5.0),
            ("0777", Some(511), 511.0),
            ("0x1F", Some(31), 31.0),
            ("1_000", Some(1000), 1000.0),
            ("1.10", None, 1.1),
            ("1e3", Some(1000), 1000.0),
        ];
        for (text, int, float) in cases {
            let Value::Number(number) = resolve(text) else { panic!("{text} is not a number") };
            assert_eq!((number.int, number.float, &*number.text), (int, float, text));
        }
        for text in ["1.2.3", "10.0.0.1", "1s", "--1", "+-1", "-", ".", "0x", "5m", "1-2"] {
            assert_eq!(resolve(text), Value::String(text.into()), "{text}");
        }
    }
}
