//! How names of headers are written (Envoy `header_key_format`): messages hold them in lower case, which some old peers do not
//! understand.
use bytes::{Bytes, BytesMut};
use lateen_snapshot::http::NameCase;

/// Names as a message came with them; those in lower case only where it matters.
#[derive(Debug, Default)]
pub(crate) struct Spelling {
    names: Vec<Bytes>,
    /// Names that were added since get a capital in front of each word.
    words: bool,
    /// What the status line said of the status, where that is kept.
    reason: Bytes,
    keeps_reason: bool,
}

impl Spelling {
    /// For the message whose names will be noted; `None` where nobody wants them.
    pub(super) fn kept(case: NameCase) -> Option<Box<Self>> {
        match case {
            NameCase::Kept { words, reason } => {
                Some(Box::new(Self { names: Vec::new(), words, reason: Bytes::new(), keeps_reason: reason }))
            }
            NameCase::Lower | NameCase::Words => None,
        }
    }

    pub(super) fn note(&mut self, name: Bytes) {
        let is_new = || !self.names.iter().any(|known| known.eq_ignore_ascii_case(&name));
        if (self.words || name.iter().any(u8::is_ascii_uppercase)) && is_new() {
            self.names.push(name);
        }
    }

    /// Notes the reason phrase of a response's head.
    #[cold]
    pub(super) fn note_reason(&mut self, head: &Bytes) {
        if !self.keeps_reason {
            return;
        }
        let line = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty()).unwrap_or_default();
        let mut words = line.splitn(3, |byte| *byte == b' ');
        self.reason = words.nth(2).map(|reason| head.slice_ref(reason)).unwrap_or_default();
    }
}

/// Writes the names in the head that begins at `start` and is complete as the message came with them, or else as `case` says.
pub(super) fn write(out: &mut BytesMut, start: usize, spelling: Option<&Spelling>, case: NameCase) {
    if spelling.is_none() && case != NameCase::Words {
        return;
    }
    if let Some(spelling) = spelling.filter(|s| !s.reason.is_empty()) {
        write_reason(out, start, &spelling.reason);
    }
    for line in out.get_mut(start..).unwrap_or_default().split_mut(|byte| *byte == b'\n').skip(1) {
        let Some(end) = line.iter().position(|byte| *byte == b':') else { continue };
        let Some(name) = line.get_mut(..end) else { continue };
        match spelling {
            Some(spelling) => match spelling.names.iter().find(|known| known.eq_ignore_ascii_case(name)) {
                Some(known) => name.copy_from_slice(known),
                None if spelling.words => capitals(name),
                None => {}
            },
            None => capitals(name),
        }
    }
}

/// Puts the reason phrase that the response came with in the place of the standard one.
fn write_reason(out: &mut BytesMut, start: usize, reason: &[u8]) {
    let line = out.get(start..).unwrap_or_default();
    let end = line.iter().position(|byte| *byte == b'\r');
    let from = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(1).map(|(at, _)| at + 1);
    let (Some(from), Some(end)) = (from, end) else { return };
    let rest = out.split_off(start + end);
    out.truncate(start + from);
    out.extend_from_slice(reason);
    out.unsplit(rest);
}

/// The first letter, and each after something that is no letter or digit.
fn capitals(name: &mut [u8]) {
    let mut starts = true;
    for byte in name {
        if starts {
            byte.make_ascii_uppercase();
        }
        starts = !byte.is_ascii_alphanumeric();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(spelling: Option<&Spelling>, case: NameCase) -> String {
        let mut head = BytesMut::from(&b"GET /a:b HTTP/1.1\r\nhost: a:1\r\nx-one: two: three\r\ncontent-length: 0\r\n\r\n"[..]);
        write(&mut head, 0, spelling, case);
        String::from_utf8(head.to_vec()).unwrap()
    }

    #[test]
    fn names_get_capitals_where_they_had_them_or_where_words_begin() {
        let words = "GET /a:b HTTP/1.1\r\nHost: a:1\r\nX-One: two: three\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(written(None, NameCase::Words), words);
        assert!(written(None, NameCase::Lower).contains("\r\nhost: a:1\r\nx-one: "));
        let mut spelling = Spelling::kept(NameCase::Kept { words: false, reason: false }).unwrap();
        for name in ["HOST", "x-one", "X-oNE", "X-ONE"] {
            spelling.note(Bytes::from_static(name.as_bytes()));
        }
        let kept = written(Some(&spelling), NameCase::Words);
        assert!(kept.contains("\r\nHOST: a:1\r\nX-oNE: two: three\r\ncontent-length: 0"), "{kept}");
        let mut spelling = Spelling::kept(NameCase::Kept { words: true, reason: true }).unwrap();
        spelling.note(Bytes::from_static(b"x-one"));
        let kept = written(Some(&spelling), NameCase::Lower);
        assert!(kept.contains("\r\nHost: a:1\r\nx-one: two: three\r\nContent-Length: 0"), "{kept}");
    }

    #[test]
    fn a_response_keeps_its_reason_where_that_is_asked_for() {
        for (line, reason, expected) in [
            ("HTTP/1.1 200 All is well", true, "HTTP/1.1 200 All is well"),
            ("\r\nHTTP/1.1 200 Fine", true, "HTTP/1.1 200 Fine"),
            ("HTTP/1.1 200 ", true, "HTTP/1.1 200 OK"),
            ("HTTP/1.1 200", true, "HTTP/1.1 200 OK"),
            ("HTTP/1.1 200 All is well", false, "HTTP/1.1 200 OK"),
        ] {
            let mut spelling = Spelling::kept(NameCase::Kept { words: false, reason }).unwrap();
            spelling.note_reason(&Bytes::from(format!("{line}\r\nx: y z\r\n\r\n")));
            let mut out = BytesMut::from(&b"a body\r\nHTTP/1.1 200 OK\r\nx-one: 1\r\n\r\n"[..]);
            write(&mut out, 8, Some(&spelling), NameCase::Lower);
            assert_eq!(out, format!("a body\r\n{expected}\r\nx-one: 1\r\n\r\n"), "{line:?}");
        }
    }
}
