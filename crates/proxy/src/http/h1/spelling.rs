//! How names of headers are written (Envoy `header_key_format`): messages hold them in lower case, which some old peers do not
//! understand.
use bytes::Bytes;
use lateen_snapshot::http::NameCase;

/// Names as a message came with them; those in lower case only where it matters.
#[derive(Debug, Default)]
pub(crate) struct Spelling {
    names: Vec<Bytes>,
    /// Names that were added since get a capital in front of each word.
    words: bool,
}

impl Spelling {
    /// For the message whose names will be noted; `None` where nobody wants them.
    pub(super) fn kept(case: NameCase) -> Option<Box<Self>> {
        match case {
            NameCase::Kept { words } => Some(Box::new(Self { names: Vec::new(), words })),
            NameCase::Lower | NameCase::Words => None,
        }
    }

    pub(super) fn note(&mut self, name: Bytes) {
        let is_new = || !self.names.iter().any(|known| known.eq_ignore_ascii_case(&name));
        if (self.words || name.iter().any(u8::is_ascii_uppercase)) && is_new() {
            self.names.push(name);
        }
    }
}

/// Writes the names in `head`, which is complete, as the message came with them, or else as `case` says.
pub(super) fn write(head: &mut [u8], spelling: Option<&Spelling>, case: NameCase) {
    if spelling.is_none() && case != NameCase::Words {
        return;
    }
    for line in head.split_mut(|byte| *byte == b'\n').skip(1) {
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
        let mut head = *b"GET /a:b HTTP/1.1\r\nhost: a:1\r\nx-one: two: three\r\ncontent-length: 0\r\n\r\n";
        write(&mut head, spelling, case);
        String::from_utf8(head.to_vec()).unwrap()
    }

    #[test]
    fn names_get_capitals_where_they_had_them_or_where_words_begin() {
        let words = "GET /a:b HTTP/1.1\r\nHost: a:1\r\nX-One: two: three\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(written(None, NameCase::Words), words);
        assert!(written(None, NameCase::Lower).contains("\r\nhost: a:1\r\nx-one: "));
        let mut spelling = Spelling::kept(NameCase::Kept { words: false }).unwrap();
        for name in ["HOST", "x-one", "X-oNE", "X-ONE"] {
            spelling.note(Bytes::from_static(name.as_bytes()));
        }
        let kept = written(Some(&spelling), NameCase::Words);
        assert!(kept.contains("\r\nHOST: a:1\r\nX-oNE: two: three\r\ncontent-length: 0"), "{kept}");
        let mut spelling = Spelling::kept(NameCase::Kept { words: true }).unwrap();
        spelling.note(Bytes::from_static(b"x-one"));
        let kept = written(Some(&spelling), NameCase::Lower);
        assert!(kept.contains("\r\nHost: a:1\r\nx-one: two: three\r\nContent-Length: 0"), "{kept}");
    }
}
