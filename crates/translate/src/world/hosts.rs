//! Host patterns: exact names and names with a `*` in front.

/// Whether `pattern` covers `host`, where either may be a pattern: `*.a.com` covers `x.a.com` and `*.x.a.com`.
pub fn covers(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix('*'), host.strip_prefix('*')) {
        (Some(suffix), Some(other)) => other.ends_with(suffix),
        (Some(suffix), None) => host.ends_with(suffix) && (suffix.is_empty() || host.len() > suffix.len()),
        (None, Some(_)) => false,
        (None, None) => pattern == host,
    }
}

/// Whether some name fits both patterns.
pub fn overlap(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

/// The narrower of two overlapping patterns.
pub fn intersection<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    if covers(a, b) {
        Some(b)
    } else if covers(b, a) {
        Some(a)
    } else {
        None
    }
}

/// Whether it stands for many hosts.
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_what_ends_alike() {
        assert!(covers("*", "a.com"));
        assert!(covers("*", "*"));
        assert!(covers("*.a.com", "x.a.com"));
        assert!(covers("*.a.com", "x.y.a.com"));
        assert!(covers("*.a.com", "*.x.a.com"));
        assert!(!covers("*.a.com", "a.com"));
        assert!(!covers("x.a.com", "*.a.com"));
        assert!(!covers("*.x.a.com", "*.a.com"));
        assert_eq!(intersection("*.a.com", "x.a.com"), Some("x.a.com"));
        assert_eq!(intersection("x.a.com", "*"), Some("x.a.com"));
        assert_eq!(intersection("a.com", "*.a.com"), None);
    }
}
