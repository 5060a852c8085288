//! Path normalisation before anything looks at the path: policies and upstreams must see the same one.
use std::borrow::Cow;

use crate::http::{EscapedSlashes, PathNormalization};

/// What becomes of a request's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalized<'a> {
    /// Go on with this path and query; borrowed when nothing changed.
    Path(Cow<'a, str>),
    /// Answer 307 with this location.
    Redirect(String),
    /// Answer 400.
    Reject(&'static str),
}

/// Applies a connection manager's settings to a path with query. The fragment is always dropped: it
/// is never sent by a proper client, and servers disagree about it (Envoy CVE-2021-32779).
pub fn normalize<'a>(path_and_query: &'a str, settings: &PathNormalization, merge_slashes: bool) -> Normalized<'a> {
    if is_plain(path_and_query.as_bytes()) {
        return Normalized::Path(Cow::Borrowed(path_and_query));
    }
    by_parts(path_and_query, settings, merge_slashes)
}

fn by_parts<'a>(path_and_query: &'a str, settings: &PathNormalization, merge_slashes: bool) -> Normalized<'a> {
    let whole = path_and_query.split('#').next().unwrap_or_default();
    let (path, query) = whole.split_at(whole.find('?').unwrap_or(whole.len()));
    let mut current = Cow::Borrowed(path);
    let mut redirect = false;
    if settings.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(path) {
        match settings.escaped_slashes {
            EscapedSlashes::Reject => return Normalized::Reject("path_normalization_failed"),
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::Keep => {}
        }
        current = Cow::Owned(unescape_slashes(path));
    }
    // The form `*` of OPTIONS and the authority form of CONNECT are no paths.
    if settings.normalize && current.starts_with('/') && needs_work(&current) {
        match canonical(&current) {
            Some(path) => current = Cow::Owned(path),
            None => return Normalized::Reject("path_normalization_failed"),
        }
    }
    if merge_slashes && current.contains("//") {
        current = Cow::Owned(merge(&current));
    }
    if redirect {
        return Normalized::Redirect(current.into_owned() + query);
    }
    match current {
        Cow::Borrowed(_) => Normalized::Path(Cow::Borrowed(whole)),
        Cow::Owned(path) if path == *current_path(whole) => Normalized::Path(Cow::Borrowed(whole)),
        Cow::Owned(path) => Normalized::Path(Cow::Owned(path + query)),
    }
}

/// Whether no setting changes it, which one look at each byte tells of most: there are only ordinary characters, no escapes,
/// and neither a slash nor a dot after a slash.
fn is_plain(path_and_query: &[u8]) -> bool {
    const SLASH: u8 = 1;
    const SLASH_OR_DOT: u8 = 2;
    const SPECIAL: u8 = 4;
    const KINDS: [u8; 256] = {
        let (mut kinds, mut byte) = ([0; 256], 0);
        while byte < 256 {
            kinds[byte] = match byte as u8 {
                b'/' => SLASH | SLASH_OR_DOT,
                b'.' => SLASH_OR_DOT,
                b'%' | b'\\' | b'#' | b'?' => SPECIAL,
                other if must_escape(other) => SPECIAL,
                _ => 0,
            };
            byte += 1;
        }
        kinds
    };
    let mut stops = SPECIAL;
    let mut rest = path_and_query;
    while let [byte, after @ ..] = rest {
        let kind = KINDS[usize::from(*byte)];
        if kind & stops != 0 {
            // A query is left as it is, up to a fragment.
            return *byte == b'?' && !after.contains(&b'#');
        }
        stops = SPECIAL | (kind & SLASH) << 1;
        rest = after;
    }
    true
}

fn current_path(whole: &str) -> &str {
    whole.split('?').next().unwrap_or_default()
}

fn is_escaped_slash(escape: &[u8]) -> Option<char> {
    match escape {
        [b'%', b'2', b'F' | b'f'] => Some('/'),
        [b'%', b'5', b'C' | b'c'] => Some('\\'),
        _ => None,
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|w| is_escaped_slash(w).is_some())
}

fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        match escape.as_bytes().get(..3).and_then(is_escaped_slash) {
            Some(slash) => {
                out.push(slash);
                rest = escape.get(3..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = escape.get(1..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// A path of ordinary characters without dot segments needs no work: most paths.
fn needs_work(path: &str) -> bool {
    path.bytes().any(|b| b == b'%' || b == b'\\' || must_escape(b)) || path.contains("/.")
}

/// Characters that a path must not hold as they are; everything above ASCII comes escaped.
const fn must_escape(byte: u8) -> bool {
    matches!(byte, 0..=0x20 | 0x7f.. | b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b'|')
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 with what Envoy adds: backslashes become slashes, unreserved characters are decoded (once),
/// others stay escaped, dot segments go. `None` for `%00`, which would end the path in many servers.
fn canonical(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut at = 0;
    // Where the last `%` is that begins no escape.
    let mut lone = None;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => out.push(b'/'),
            b'%' => {
                let digits = bytes.get(at..at + 2).and_then(|d| Some((hex(*d.first()?)?, hex(*d.get(1)?)?)));
                match digits.map(|(high, low)| high << 4 | low) {
                    Some(0) => return None,
                    Some(decoded) if is_unreserved(decoded) => {
                        out.push(decoded);
                        at += 2;
                    }
                    Some(_) => out.push(b'%'),
                    None => {
                        lone = Some(out.len());
                        out.push(b'%');
                    }
                }
            }
            _ if must_escape(byte) => {
                out.push(b'%');
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
            _ => out.push(byte),
        }
        if let Some(percent) = lone
            && begins_escape(out.get(percent..).unwrap_or_default())
        {
            // What was decoded behind it makes it one, which nobody sent: it stands for itself from now on.
            out.splice(percent..=percent, *b"%25");
            lone = None;
        }
    }
    String::from_utf8(out).ok().map(|decoded| remove_dot_segments(&decoded))
}

fn begins_escape(text: &[u8]) -> bool {
    matches!(text, [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// RFC 3986 5.2.4 for an absolute path; a `..` above the root is dropped.
fn remove_dot_segments(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.pop();
                }
                // What remains is a directory.
                if is_last {
                    out.push("");
                }
            }
            other => out.push(other),
        }
    }
    let mut result = String::with_capacity(path.len());
    for segment in &out {
        result.push('/');
        result.push_str(segment);
    }
    if result.is_empty() { "/".to_owned() } else { result }
}

#[cfg(test)]
mod tests;
