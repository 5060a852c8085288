//! The one thing in which JSON is no YAML: characters written as two `\u` escapes.
use std::borrow::Cow;

/// Replaces surrogate pairs (`\ud83d\ude00`) by the character they stand for. Text that is not JSON stays as it is.
pub(super) fn join_surrogates(text: &str) -> Cow<'_, str> {
    let is_json = text.trim_start().starts_with(['{', '[']);
    if !is_json || !(text.contains("\\ud") || text.contains("\\uD")) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(character) = surrogate_pair(rest) {
            out.push(character);
            rest = &rest[12..];
        } else {
            // The escaped character goes along, so that `\\ud83d` is a backslash and a text.
            let escaped = rest.chars().nth(1).map_or(0, char::len_utf8);
            out.push_str(&rest[..1 + escaped]);
            rest = &rest[1 + escaped..];
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character of two escapes at the start of a text.
fn surrogate_pair(text: &str) -> Option<char> {
    let unit = |from: usize| {
        let digits = text.get(from..from + 6)?.strip_prefix("\\u")?;
        digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u16::from_str_radix(digits, 16).ok())?
    };
    char::decode_utf16([unit(0)?, unit(6)?]).next()?.ok().filter(|character| u32::from(*character) > 0xFFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pairs_in_json_are_joined() {
        assert_eq!(join_surrogates(r#"{"a": "\ud83d\ude00\n"}"#), "{\"a\": \"\u{1F600}\\n\"}");
        for same in [r#"{"a": "\\ud83d\\ude00"}"#, r#"{"a": "\u00e9\ud83d"}"#, r"a: \ud83d\ude00", "{\\", "{\\ud", "{\\ud83d\\ué"] {
            assert_eq!(join_surrogates(same), same);
        }
    }
}
