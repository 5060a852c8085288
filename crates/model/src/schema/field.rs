//! The schema that declarations leave behind: fields, their types and whether Lateen honours them.

/// What Lateen does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It takes effect.
    Honoured,
    /// It takes effect but for what the note says.
    Partly(&'static str),
    /// It is read and checked, has no effect, and the user is told the note.
    Warned(&'static str),
    /// The resource is left out, and the user is told the note.
    Refused(&'static str),
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The snake_case name.
    pub name: &'static str,
    pub status: Status,
    pub shape: fn() -> Shape,
}

/// A message: a mapping with a fixed set of fields.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The name in the kind's own API documentation.
    pub name: &'static str,
    /// Whether further fields are known to exist and are of no use to Lateen (Kubernetes kinds).
    pub tolerant: bool,
    pub fields: &'static [Field],
    /// Groups of fields of which at most one may be given.
    pub oneofs: &'static [&'static [&'static str]],
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A word for messages, e.g. `a duration such as 500ms, 5s or 1h`.
    Scalar(&'static str),
    Enum(&'static [&'static str]),
    List(fn() -> Shape),
    Map(fn() -> Shape),
    Message(&'static Message),
    /// Anything: read and kept, not checked.
    Any,
}

impl From<&'static Message> for Shape {
    fn from(message: &'static Message) -> Self {
        Self::Message(message)
    }
}

impl Shape {
    /// What stands there, for `wants …` in a message.
    pub fn describe(self) -> String {
        match self {
            Self::Scalar(word) => word.to_owned(),
            Self::Enum(names) => format!("one of {}", names.join(", ")),
            Self::List(item) => format!("a list, each item {}", item().describe()),
            Self::Map(value) => format!("a mapping whose values are each {}", value().describe()),
            Self::Message(message) => format!("a mapping ({})", message.name),
            Self::Any => "anything".to_owned(),
        }
    }

    /// The message inside, through lists and maps.
    pub fn message(self) -> Option<&'static Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::List(item) | Self::Map(item) => item().message(),
            Self::Scalar(_) | Self::Enum(_) | Self::Any => None,
        }
    }
}

impl Field {
    /// The lowerCamelCase name that users write.
    pub fn json_name(&self) -> String {
        camel(self.name)
    }
}

/// `consecutive_5xx_errors` to `consecutive5xxErrors`, as protobuf makes JSON names.
pub fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether `written` is the camelCase or snake_case spelling of the field `name`.
pub fn is_spelling_of(written: &str, name: &str) -> bool {
    if written == name {
        return true;
    }
    let mut written = written.bytes();
    let mut upper = false;
    for byte in name.bytes() {
        if byte == b'_' {
            upper = true;
            continue;
        }
        let wanted = if std::mem::take(&mut upper) { byte.to_ascii_uppercase() } else { byte };
        if written.next() != Some(wanted) {
            return false;
        }
    }
    written.next().is_none()
}

/// The name of a Rust field without the `r#` that keywords need.
pub const fn plain_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', rest @ ..] => match std::str::from_utf8(rest) {
            Ok(plain) => plain,
            Err(_) => name,
        },
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_protobuf() {
        for (snake, json) in [
            ("uri", "uri"),
            ("without_headers", "withoutHeaders"),
            ("consecutive_5xx_errors", "consecutive5xxErrors"),
            ("mesh_mTLS", "meshMTLS"),
            ("http1_max_pending_requests", "http1MaxPendingRequests"),
        ] {
            assert_eq!(camel(snake), json);
            assert!(is_spelling_of(json, snake) && is_spelling_of(snake, snake), "{json}");
            assert!(!is_spelling_of(&format!("{json}s"), snake));
        }
        assert_eq!(plain_name("r#match"), "match");
    }
}
