//! Scalars, lists and maps by the rules of proto3 JSON and of Kubernetes.
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine as _;

use super::context::Context;
use super::field::Shape;
use crate::yaml::{Node, Value};

/// A value that can be read from a node.
pub trait Decode: Sized {
    /// What it looks like, for messages and for the coverage page.
    fn shape() -> Shape;

    /// Reads it. `None` when it is absent (`null`) or wrong; what is wrong has then been reported to the context.
    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self>;

    /// Whether proto3 treats this value as "not given" in a field without presence.
    fn is_unset(&self) -> bool {
        false
    }
}

impl Decode for String {
    fn shape() -> Shape {
        Shape::Scalar("a string")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        match &node.value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => {
                cx.error_with(
                    node.at,
                    format!("wants a string, not the number `{}`", number.text),
                    format!("write \"{}\" in quotes", number.text),
                );
                None
            }
            Value::Bool(_, text) => {
                cx.error_with(node.at, format!("wants a string, not the boolean `{text}`"), format!("write \"{text}\" in quotes"));
                None
            }
            _ => {
                cx.wrong_type(node, "a string");
                None
            }
        }
    }

    fn is_unset(&self) -> bool {
        self.is_empty()
    }
}

impl Decode for bool {
    fn shape() -> Shape {
        Shape::Scalar("true or false")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        match &node.value {
            Value::Null => None,
            Value::Bool(flag, _) => Some(*flag),
            Value::String(text) if text == "true" || text == "false" => {
                cx.error_with(node.at, format!("wants true or false, not the string {text:?}"), "take the quotes away");
                None
            }
            _ => {
                cx.wrong_type(node, "true or false");
                None
            }
        }
    }
}

/// A whole number within bounds; proto3 JSON also writes it as a string.
fn whole(node: &Node, cx: &mut Context<'_>, min: i128, max: i128, wanted: &str) -> Option<i128> {
    let int = match &node.value {
        Value::Null => return None,
        Value::Number(number) => number.int,
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let found = int.filter(|int| (min..=max).contains(int));
    if found.is_none() {
        cx.wrong_type(node, wanted);
    }
    found
}

macro_rules! whole_number {
    ($ty:ty, $wanted:literal $(, unset when $unset:expr)?) => {
        impl Decode for $ty {
            fn shape() -> Shape {
                Shape::Scalar($wanted)
            }

            fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
                whole(node, cx, i128::from(<$ty>::MIN), i128::from(<$ty>::MAX), $wanted).and_then(|int| int.try_into().ok())
            }

            $(fn is_unset(&self) -> bool {
                $unset(*self)
            })?
        }
    };
}

whole_number!(u16, "a whole number from 1 to 65535", unset when |port: u16| port == 0);
whole_number!(u32, "a whole number from 0 to 4294967295");
whole_number!(u64, "a whole number from 0 up");
whole_number!(i32, "a whole number");
whole_number!(i64, "a whole number");

/// A plain proto3 number: 0 is the same as not given.
impl Decode for NonZeroU32 {
    fn shape() -> Shape {
        Shape::Scalar("a whole number from 0 up (0 is the same as not given)")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let int = whole(node, cx, 0, i128::from(u32::MAX), "a whole number from 0 up")?;
        NonZeroU32::new(u32::try_from(int).ok()?)
    }
}

impl Decode for f64 {
    fn shape() -> Shape {
        Shape::Scalar("a number")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let float = match &node.value {
            Value::Null => return None,
            Value::Number(number) => Some(number.float),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let found = float.filter(|float| float.is_finite());
        if found.is_none() {
            cx.wrong_type(node, "a number");
        }
        found
    }
}

const DURATION: &str = "a duration such as 500ms, 5s or 1h30m";

impl Decode for Duration {
    fn shape() -> Shape {
        Shape::Scalar(DURATION)
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let parsed = match &node.value {
            Value::Null => return None,
            Value::String(text) => parse_duration(text),
            Value::Number(number) if number.float == 0.0 => Some(Duration::ZERO),
            Value::Number(number) => {
                let text = format!("wants {DURATION}, not the number `{}`", number.text);
                cx.error_with(node.at, text, format!("write {}s if seconds are meant", number.text));
                return None;
            }
            _ => None,
        };
        if parsed.is_none() {
            let written = node.as_str().unwrap_or_default();
            let meant = written.replace(' ', "").to_lowercase();
            if parse_duration(&meant).is_some() {
                cx.error_with(node.at, format!("wants {DURATION}, not {written:?}"), format!("write {meant}"));
            } else {
                cx.wrong_type(node, DURATION);
            }
        }
        parsed
    }
}

/// A duration as Go and so Istio's YAML writes it: a row of numbers with units (`1h30m`, `1.5s`, `500ms`), not
/// negative. A bare `0` is zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(scaled(number, unit)?)?;
        rest = tail;
    }
    let nanos = u64::try_from(nanos).ok().filter(|nanos| i64::try_from(*nanos).is_ok())?;
    Some(Duration::from_nanos(nanos))
}

/// `1.5` of a unit, without the error of floating point.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // Beyond 18 digits nothing of a nanosecond is left.
    let fraction = fraction.get(..18).unwrap_or(fraction);
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok().filter(|n| *n < 1 << 64)? };
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    whole.checked_mul(unit)?.checked_add(part.checked_mul(unit)? / scale)
}

impl<T: Decode> Decode for Option<T> {
    fn shape() -> Shape {
        T::shape()
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        T::decode(node, cx).map(|value| (!value.is_unset()).then_some(value))
    }
}

/// Items of one list. Checks compare items with each other, so without a bound a file of a few MiB could cost minutes.
const MAX_LIST_ITEMS: usize = 10_000;

impl<T: Decode> Decode for Vec<T> {
    fn shape() -> Shape {
        Shape::List(T::shape)
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let items = match &node.value {
            Value::Null => return None,
            Value::List(items) => items,
            Value::Map(entries) => {
                let remedy = if entries.is_empty() { "leave it out" } else { "put `- ` before the first key" };
                cx.error_with(node.at, format!("wants {}, not a mapping", Self::shape().describe()), remedy);
                return None;
            }
            _ => {
                cx.wrong_type(node, &Self::shape().describe());
                return None;
            }
        };
        if items.len() > MAX_LIST_ITEMS {
            cx.error(node.at, format!("the list has {} items; at most {MAX_LIST_ITEMS} are read", items.len()));
            return None;
        }
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            cx.within_item(index, |cx| match item.value {
                Value::Null => cx.error_with(item.at, "this list item is empty", "fill it in, or take the `-` away"),
                _ => list.extend(T::decode(item, cx)),
            });
        }
        Some(list)
    }
}

/// What the keys of a JSON object can stand for.
pub trait MapKey: Ord + Sized {
    /// What it must look like, when that can be wrong.
    const WANTED: &'static str;

    fn from_key(key: &str) -> Option<Self>;
}

impl MapKey for String {
    const WANTED: &'static str = "a text";

    fn from_key(key: &str) -> Option<Self> {
        Some(key.to_owned())
    }
}

impl MapKey for u16 {
    const WANTED: &'static str = "a port number from 1 to 65535";

    fn from_key(key: &str) -> Option<Self> {
        key.parse().ok().filter(|port| *port > 0)
    }
}

impl<K: MapKey, V: Decode> Decode for BTreeMap<K, V> {
    fn shape() -> Shape {
        Shape::Map(V::shape)
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let entries = match &node.value {
            Value::Null => return None,
            Value::Map(entries) => entries,
            _ => {
                cx.wrong_type(node, &Self::shape().describe());
                return None;
            }
        };
        let mut map = BTreeMap::new();
        for entry in entries {
            cx.within(&entry.key, |cx| {
                let Some(key) = K::from_key(&entry.key) else {
                    return cx.error(entry.key_at, format!("the key wants to be {}", K::WANTED));
                };
                if let Some(value) = V::decode(&entry.value, cx) {
                    map.insert(key, value);
                }
            });
        }
        Some(map)
    }
}

/// Bytes that JSON carries in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base64Bytes(pub Vec<u8>);

impl Decode for Base64Bytes {
    fn shape() -> Shape {
        Shape::Scalar("base64 text")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        let text = match &node.value {
            Value::Null => return None,
            Value::String(text) => text.as_str(),
            Value::Number(number) => &number.text,
            Value::Bool(_, text) => text,
            _ => {
                cx.wrong_type(node, "base64 text");
                return None;
            }
        };
        let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        match base64::engine::general_purpose::STANDARD.decode(compact) {
            Ok(bytes) => Some(Self(bytes)),
            Err(_) => {
                // The text may be a secret: it is not repeated.
                cx.error(node.at, "this is not base64");
                None
            }
        }
    }
}

/// A Kubernetes value that is a number or a name, such as `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IntOrString {
    Int(i64),
    String(String),
}

impl Decode for IntOrString {
    fn shape() -> Shape {
        Shape::Scalar("a number or a name")
    }

    fn decode(node: &Node, cx: &mut Context<'_>) -> Option<Self> {
        match &node.value {
            Value::Null => None,
            Value::String(text) => Some(Self::String(text.clone())),
            _ => i64::decode(node, cx).map(Self::Int),
        }
    }
}

/// Whatever stands there, kept as JSON.
impl Decode for serde_json::Value {
    fn shape() -> Shape {
        Shape::Any
    }

    fn decode(node: &Node, _: &mut Context<'_>) -> Option<Self> {
        Some(node.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("1s", 1_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("0", 0),
            ("0s", 0),
            ("3m", 180_000),
            ("1m0.25s", 60_250),
        ];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "1d", "s", "1", "-1s", "1s2", "1..5s", ".s", "1 s", "one", "99999999999999h", "1S", "+"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
