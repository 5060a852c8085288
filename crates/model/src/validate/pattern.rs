//! Regular expressions as Istio takes them: RE2 syntax, at most 1024 bytes.
use regex::{Regex, RegexBuilder};

/// The longest pattern Istio accepts, in bytes.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// What a compiled pattern may occupy, in bytes; a short pattern with large repetitions can be big.
const MAX_COMPILED_BYTES: usize = 4 << 20;

/// Compiles a pattern that must match a whole text, as Envoy matches.
///
/// # Errors
/// In words for the person who wrote the pattern.
pub fn compile_full_match(pattern: &str) -> Result<Regex, String> {
    check_pattern(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

/// Says what is wrong with a pattern.
///
/// # Errors
/// In words for the person who wrote the pattern.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() {
        return Err("the regular expression is empty; write `.*` to match everything".to_owned());
    }
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(format!("the regular expression has {} bytes; at most {MAX_PATTERN_BYTES} are accepted", pattern.len()));
    }
    build(pattern).map(drop)
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).size_limit(MAX_COMPILED_BYTES).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("the regular expression {pattern:?} is too large once compiled"),
        other => {
            // The last line says what is wrong; the ones before draw the pattern.
            let text = other.to_string();
            let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("{pattern:?} is no regular expression (RE2 syntax): {reason}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_must_match() {
        let cookie = compile_full_match("(.*?;)?(user=jason)(;.*)?").unwrap();
        assert!(cookie.is_match("a=b;user=jason;c=d") && !cookie.is_match("user=jasonx"));
        let alternatives = compile_full_match("a|b").unwrap();
        assert!(alternatives.is_match("b") && !alternatives.is_match("ab"));
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for pattern in ["(", "a(?=b)", r"(a)\1", "", "(?:a{1000}){1000}{1000}", &"a".repeat(1025)] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        assert!(check_pattern("a(?=b)").unwrap_err().contains("look-around"));
    }
}
