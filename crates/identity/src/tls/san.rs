//! Matchers over subject alternative names, as Envoy's `match_typed_subject_alt_names` means them.
use super::peer::PeerIdentity;
use regex::{Regex, RegexBuilder};
use std::fmt;

/// A compiled expression may take this much memory: enough for real ones, too little to hurt.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Which kind of name a matcher looks at (Envoy `SubjectAltNameMatcher.SanType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SanKind {
    Uri,
    Dns,
    Email,
    Ip,
}

impl fmt::Display for SanKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uri => "URI",
            Self::Dns => "DNS",
            Self::Email => "email",
            Self::Ip => "IP",
        })
    }
}

/// How a name is compared (Envoy `StringMatcher`).
#[derive(Clone, Debug)]
pub enum SanPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Must match the whole name; build with [`SanMatcher::regex`].
    Regex(Regex),
}

impl PartialEq for SanPattern {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b))
            | (Self::Prefix(a), Self::Prefix(b))
            | (Self::Suffix(a), Self::Suffix(b))
            | (Self::Contains(a), Self::Contains(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// One acceptable name. A list of them is a disjunction.
#[derive(Clone, Debug, PartialEq)]
pub struct SanMatcher {
    kind: SanKind,
    pattern: SanPattern,
    ignore_case: bool,
}

/// A matcher that can never mean anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("subject alternative name matcher `{text}`: {reason}")]
pub struct InvalidSanMatcher {
    text: String,
    reason: String,
}

impl SanMatcher {
    /// A comparison without an expression. `ignore_case` folds ASCII letters; it has no effect on [`SanPattern::Regex`].
    pub fn new(kind: SanKind, pattern: SanPattern, ignore_case: bool) -> Self {
        let fold = |text: String| if ignore_case { text.to_ascii_lowercase() } else { text };
        let pattern = match pattern {
            SanPattern::Exact(text) => SanPattern::Exact(fold(text)),
            SanPattern::Prefix(text) => SanPattern::Prefix(fold(text)),
            SanPattern::Suffix(text) => SanPattern::Suffix(fold(text)),
            SanPattern::Contains(text) => SanPattern::Contains(fold(text)),
            SanPattern::Regex(regex) => SanPattern::Regex(regex),
        };
        Self { kind, pattern, ignore_case }
    }

    pub fn exact(kind: SanKind, name: &str) -> Self {
        Self::new(kind, SanPattern::Exact(name.to_owned()), false)
    }

    pub fn prefix(kind: SanKind, start: &str) -> Self {
        Self::new(kind, SanPattern::Prefix(start.to_owned()), false)
    }

    /// Every identity of a trust domain: `spiffe://<trust domain>/…`.
    pub fn trust_domain(trust_domain: &str) -> Self {
        Self::prefix(SanKind::Uri, &format!("spiffe://{trust_domain}/"))
    }

    /// A regular expression over the whole name.
    ///
    /// # Errors
    /// When it does not compile or grows too large.
    pub fn regex(kind: SanKind, text: &str) -> Result<Self, InvalidSanMatcher> {
        let whole = format!(r"\A(?:{text})\z");
        let regex = RegexBuilder::new(&whole)
            .size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|e| InvalidSanMatcher { text: text.to_owned(), reason: e.to_string() })?;
        Ok(Self { kind, pattern: SanPattern::Regex(regex), ignore_case: false })
    }

    pub fn kind(&self) -> SanKind {
        self.kind
    }

    /// Whether one of the certificate's names of this kind matches.
    pub fn matches(&self, certificate: &PeerIdentity) -> bool {
        match self.kind {
            SanKind::Uri => certificate.uri_sans.iter().any(|n| self.matches_name(n)),
            SanKind::Dns => certificate.dns_sans.iter().any(|n| self.matches_dns(n)),
            SanKind::Email => certificate.email_sans.iter().any(|n| self.matches_name(n)),
            SanKind::Ip => certificate.ip_sans.iter().any(|n| self.matches_name(&n.to_string())),
        }
    }

    fn matches_name(&self, name: &str) -> bool {
        let folded;
        let name = if self.ignore_case {
            folded = name.to_ascii_lowercase();
            folded.as_str()
        } else {
            name
        };
        match &self.pattern {
            SanPattern::Exact(text) => name == text,
            SanPattern::Prefix(text) => name.starts_with(text.as_str()),
            SanPattern::Suffix(text) => name.ends_with(text.as_str()),
            SanPattern::Contains(text) => name.contains(text.as_str()),
            SanPattern::Regex(regex) => regex.is_match(name),
        }
    }

    /// An exact DNS matcher follows host name rules: case does not count and the certificate may hold a wildcard.
    fn matches_dns(&self, name: &str) -> bool {
        match &self.pattern {
            SanPattern::Exact(host) => dns_name_covers(name, host),
            _ => self.matches_name(name),
        }
    }

    /// The trust domain this matcher demands, if it is of that sort: for error texts.
    pub(crate) fn demanded_trust_domain(&self) -> Option<&str> {
        let (SanPattern::Prefix(text) | SanPattern::Exact(text)) = &self.pattern else { return None };
        text.strip_prefix("spiffe://").map(|rest| rest.split('/').next().unwrap_or(rest)).filter(|d| !d.is_empty())
    }
}

impl fmt::Display for SanMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pattern {
            SanPattern::Exact(text) => write!(f, "{} {text}", self.kind),
            SanPattern::Prefix(text) => write!(f, "{} {text}*", self.kind),
            SanPattern::Suffix(text) => write!(f, "{} *{text}", self.kind),
            SanPattern::Contains(text) => write!(f, "{} *{text}*", self.kind),
            SanPattern::Regex(regex) => write!(f, "{} /{regex}/", self.kind),
        }
    }
}

/// Whether `pattern` of a certificate (`api.example.com`, `*.example.com`) covers `host`.
/// A wildcard stands for exactly one whole label (RFC 6125 6.4.3).
pub(crate) fn dns_name_covers(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(parent), Some((label, rest))) => !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_uri(uri: &str) -> PeerIdentity {
        PeerIdentity { uri_sans: vec![uri.to_owned()], ..PeerIdentity::empty() }
    }

    #[test]
    fn patterns_compare_as_envoy_does() {
        let id = with_uri("spiffe://td/ns/a/sa/b");
        let cases = [
            (SanPattern::Exact("spiffe://td/ns/a/sa/b".into()), true),
            (SanPattern::Exact("spiffe://td/ns/a/sa".into()), false),
            (SanPattern::Prefix("spiffe://td/".into()), true),
            (SanPattern::Prefix("spiffe://other/".into()), false),
            (SanPattern::Suffix("/sa/b".into()), true),
            (SanPattern::Contains("/ns/a/".into()), true),
            (SanPattern::Contains("/NS/".into()), false),
        ];
        for (pattern, expected) in cases {
            let matcher = SanMatcher::new(SanKind::Uri, pattern, false);
            assert_eq!(matcher.matches(&id), expected, "{matcher}");
        }
        assert!(SanMatcher::new(SanKind::Uri, SanPattern::Contains("/NS/".into()), true).matches(&id));
        assert!(!SanMatcher::exact(SanKind::Dns, "spiffe://td/ns/a/sa/b").matches(&id));
    }

    #[test]
    fn expressions_match_whole_names() {
        let id = with_uri("spiffe://td/ns/a/sa/b");
        assert!(SanMatcher::regex(SanKind::Uri, "spiffe://td/ns/.*|x").unwrap().matches(&id));
        assert!(!SanMatcher::regex(SanKind::Uri, "spiffe://td").unwrap().matches(&id));
        assert!(SanMatcher::regex(SanKind::Uri, "(").is_err());
    }

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(dns_name_covers("*.example.com", "API.example.com"));
        assert!(dns_name_covers("api.example.com", "api.EXAMPLE.com."));
        assert!(!dns_name_covers("*.example.com", "a.b.example.com"));
        assert!(!dns_name_covers("*.example.com", "example.com"));
        assert!(!dns_name_covers("*.com", "example.com"));
        assert!(!dns_name_covers("*.example.com", ".example.com"));
    }

    #[test]
    fn a_trust_domain_is_not_matched_by_its_prefix() {
        assert!(!SanMatcher::trust_domain("td").matches(&with_uri("spiffe://td.evil/ns/a/sa/b")));
        assert_eq!(SanMatcher::trust_domain("td").demanded_trust_domain(), Some("td"));
    }
}
