//! Names of headers as they come off the wire: those that most messages have are taken from a table, in whichever case they are
//! written, and cost no check of each character and no memory.
use http::HeaderName;

/// What a header means to the connection that it came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing.
    None,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    Te,
    /// It is of this hop, and says nothing that matters.
    Hop,
}

pub(super) struct Known {
    pub(super) text: &'static str,
    pub(super) name: HeaderName,
    pub(super) meaning: Meaning,
}

macro_rules! known {
    ($($meaning:ident: $($text:literal)*;)*) => {
        const TEXTS: &[&str] = &[$($($text,)*)*];
        static KNOWN: [Known; TEXTS.len()] =
            [$($(Known { text: $text, name: HeaderName::from_static($text), meaning: Meaning::$meaning },)*)*];
    };
}

// All that have a meaning are here, or nobody would heed it.
known! {
    Host: "host";
    ContentLength: "content-length";
    TransferEncoding: "transfer-encoding";
    Connection: "connection";
    Upgrade: "upgrade";
    Expect: "expect";
    Te: "te";
    Hop: "keep-alive" "proxy-connection";
    None:
        "accept" "accept-charset" "accept-encoding" "accept-language" "accept-ranges" "access-control-allow-credentials"
        "access-control-allow-headers" "access-control-allow-methods" "access-control-allow-origin"
        "access-control-expose-headers" "access-control-max-age" "access-control-request-headers"
        "access-control-request-method" "age" "allow" "alt-svc" "authorization" "cache-control" "content-disposition"
        "content-encoding" "content-language" "content-location" "content-range" "content-security-policy" "content-type"
        "cookie" "cross-origin-opener-policy" "cross-origin-resource-policy" "date" "dnt" "etag" "expires" "forwarded" "from"
        "if-match" "if-modified-since" "if-none-match" "if-range" "if-unmodified-since" "last-modified" "link" "location"
        "max-forwards" "origin" "permissions-policy" "pragma" "priority" "proxy-authenticate" "proxy-authorization" "range"
        "referer" "referrer-policy" "retry-after" "sec-ch-ua" "sec-ch-ua-mobile" "sec-ch-ua-platform" "sec-fetch-dest"
        "sec-fetch-mode" "sec-fetch-site" "sec-fetch-user" "sec-websocket-accept" "sec-websocket-extensions"
        "sec-websocket-key" "sec-websocket-protocol" "sec-websocket-version" "server" "server-timing" "set-cookie"
        "strict-transport-security" "trailer" "upgrade-insecure-requests" "user-agent" "vary" "via" "warning"
        "www-authenticate" "x-content-type-options" "x-frame-options" "x-powered-by" "x-requested-with" "x-xss-protection"
        "x-request-id" "traceparent" "tracestate" "baggage" "x-real-ip" "x-forwarded-proto" "x-forwarded-for"
        "x-forwarded-client-cert" "x-forwarded-host" "x-forwarded-port" "x-envoy-attempt-count"
        "x-envoy-upstream-service-time" "x-envoy-peer-metadata" "x-envoy-peer-metadata-id" "x-envoy-decorator-operation"
        "x-envoy-external-address" "x-envoy-internal" "x-envoy-expected-rq-timeout-ms" "x-envoy-original-path"
        "b3" "x-b3-traceid" "x-b3-spanid" "x-b3-parentspanid" "x-b3-sampled";
}

/// Where each of [`KNOWN`] stands, plus one; 0 is nobody's place. Open addressing: who finds a place taken has the next.
static PLACES: [u8; SLOTS] = places();
const SLOTS: usize = 512;

const fn places() -> [u8; SLOTS] {
    let mut places = [0; SLOTS];
    let mut index = 0;
    while index < TEXTS.len() {
        let mut at = place(TEXTS[index].as_bytes());
        while places[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        index += 1;
        places[at] = index as u8;
    }
    places
}

/// Length, ends and middle tell nearly all of them apart. The bit that is set makes letters small.
const fn place(name: &[u8]) -> usize {
    let [first, .., last] = name else { return 0 };
    let middle = name[name.len() / 2] | 0x20;
    let mixed = name.len() as u32 | ((*first | 0x20) as u32) << 8 | ((*last | 0x20) as u32) << 16 | (middle as u32) << 24;
    (mixed.wrapping_mul(0x9e37_79b1) >> 23) as usize % SLOTS
}

/// The name, if it is one of these.
pub(super) fn known(name: &[u8]) -> Option<&'static Known> {
    let mut at = place(name);
    loop {
        let index = usize::from(*PLACES.get(at)?);
        let known = KNOWN.get(index.checked_sub(1)?)?;
        if known.text.len() == name.len() && (known.text.as_bytes() == name || known.text.as_bytes().eq_ignore_ascii_case(name)) {
            return Some(known);
        }
        at = (at + 1) % SLOTS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_in_any_case_and_no_other_is() {
        for one in &KNOWN {
            for text in [one.text.to_owned(), one.text.to_uppercase()] {
                let found = known(text.as_bytes()).unwrap();
                assert_eq!((found.name.as_str(), found.meaning), (one.text, one.meaning), "{text}");
            }
            for other in [format!("{}-", one.text), one.text.replace('e', "\u{5}"), one.text[1..].to_owned(), one.text.replace('-', "\r")] {
                let found = known(other.as_bytes()).map(|k| k.text);
                assert_eq!(found, KNOWN.iter().map(|k| k.text).find(|text| *text == other), "{other}");
            }
        }
        assert!(known(b"").is_none() && known(b"x").is_none());
    }

    #[test]
    fn few_names_are_looked_for_in_more_than_two_places() {
        let far = KNOWN.iter().enumerate().filter(|(index, one)| {
            let at = PLACES.iter().position(|place| usize::from(*place) == index + 1).unwrap();
            (at + SLOTS - place(one.text.as_bytes())) % SLOTS > 1
        });
        assert!(far.count() < 8);
    }
}
