//! Trace contexts on the wire: B3 in one header or several, and W3C `traceparent`.
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Who a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) trace: u128,
    pub(super) span: u64,
    pub(super) parent: Option<u64>,
}

/// What a caller sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) ids: Option<Ids>,
    pub(super) sampled: Option<bool>,
}

/// The headers do not make sense: such a request is not traced, as nobody could tell where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

fn hex<const MOST: usize>(text: &str) -> Option<u128> {
    let well_formed = !text.is_empty() && text.len() <= MOST && text.bytes().all(|b| b.is_ascii_hexdigit());
    well_formed.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

fn id(text: &str) -> Option<u64> {
    hex::<16>(text).and_then(|n| u64::try_from(n).ok()).filter(|n| *n != 0)
}

fn text<'a>(map: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    map.get(name).map(|v| v.to_str().unwrap_or("?"))
}

/// Reads B3, the single header before the others (openzipkin/b3-propagation).
pub(super) fn read_b3(map: &HeaderMap) -> Result<Incoming, Malformed> {
    if let Some(single) = text(map, &B3) {
        return read_single(single);
    }
    let flags = text(map, &B3_FLAGS).is_some_and(|f| f == "1").then_some(true);
    let sampled = match text(map, &B3_SAMPLED) {
        Some("1" | "true") => Some(true),
        // Whatever else it says is no wish to be sampled.
        Some(_) => Some(false),
        None => None,
    };
    let sampled = flags.or(sampled);
    let ids = match (text(map, &B3_TRACE), text(map, &B3_SPAN)) {
        (Some(trace), Some(span)) => {
            let parent = text(map, &B3_PARENT).map(|p| id(p).ok_or(Malformed)).transpose()?;
            let trace = hex::<32>(trace).filter(|n| *n != 0).ok_or(Malformed)?;
            Some(Ids { trace, span: id(span).ok_or(Malformed)?, parent })
        }
        _ => None,
    };
    Ok(Incoming { ids, sampled })
}

/// `trace-span`, `trace-span-sampled`, `trace-span-sampled-parent`, or the sampling alone.
fn read_single(single: &str) -> Result<Incoming, Malformed> {
    let sampling = |text: &str| match text {
        "1" | "d" => Ok(true),
        "0" => Ok(false),
        _ => Err(Malformed),
    };
    let mut parts = single.split('-');
    let first = parts.next().unwrap_or_default();
    let Some(span) = parts.next() else {
        return Ok(Incoming { ids: None, sampled: Some(sampling(first)?) });
    };
    let sampled = parts.next().map(sampling).transpose()?;
    let parent = parts.next().map(|p| id(p).ok_or(Malformed)).transpose()?;
    if parts.next().is_some() {
        return Err(Malformed);
    }
    // Unlike in a header of its own, an id has its full length here.
    let whole = matches!(first.len(), 16 | 32) && span.len() == 16;
    let trace = hex::<32>(first).filter(|n| *n != 0 && whole).ok_or(Malformed)?;
    Ok(Incoming { ids: Some(Ids { trace, span: id(span).ok_or(Malformed)?, parent }), sampled })
}

pub(super) fn write_b3(map: &mut HeaderMap, ids: &Ids, sampled: bool) {
    let trace = trace_text(ids.trace);
    // A caller that used the single header is answered in kind.
    if map.contains_key(B3) {
        let parent = ids.parent.map(|p| format!("-{p:016x}")).unwrap_or_default();
        return put(map, B3, &format!("{trace}-{:016x}-{}{parent}", ids.span, u8::from(sampled)));
    }
    put(map, B3_TRACE, &trace);
    put(map, B3_SPAN, &format!("{:016x}", ids.span));
    match ids.parent {
        Some(parent) => put(map, B3_PARENT, &format!("{parent:016x}")),
        None => drop(map.remove(B3_PARENT)),
    }
    put(map, B3_SAMPLED, if sampled { "1" } else { "0" });
}

/// B3's trace id: 16 digits, or 32 where the upper half is used.
pub(super) fn trace_text(trace: u128) -> String {
    if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") }
}

/// Reads `traceparent` (W3C Trace Context, level 1; later versions may have more fields).
pub(super) fn read_w3c(map: &HeaderMap) -> Result<Incoming, Malformed> {
    let Some(text) = text(map, &TRACEPARENT) else { return Ok(Incoming::default()) };
    let mut parts = text.split('-');
    let mut field = |length: usize| parts.next().filter(|p| p.len() == length).and_then(hex::<32>);
    let (version, trace, span, flags) = (field(2), field(32), field(16), field(2));
    let more = parts.next().is_some();
    match (version, trace, span, flags) {
        (Some(version), Some(trace), Some(span), Some(flags)) if version != 0xff && !(version == 0 && more) && trace != 0 && span != 0 => {
            let span = u64::try_from(span).map_err(|_| Malformed)?;
            Ok(Incoming { ids: Some(Ids { trace, span, parent: None }), sampled: Some(flags & 1 == 1) })
        }
        _ => Err(Malformed),
    }
}

pub(super) fn write_w3c(map: &mut HeaderMap, ids: &Ids, sampled: bool) {
    put(map, TRACEPARENT, &format!("00-{:032x}-{:016x}-{:02x}", ids.trace, ids.span, u8::from(sampled)));
}

fn put(map: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        map.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn b3_is_read_in_both_forms() {
        let ids = Ids { trace: 0x0af7_6519, span: 7, parent: Some(5) };
        let many = map(&[("x-b3-traceid", "000000000af76519"), ("x-b3-spanid", "7"), ("x-b3-parentspanid", "5"), ("x-b3-sampled", "d")]);
        assert_eq!(read_b3(&many), Ok(Incoming { ids: Some(ids), sampled: Some(false) }));
        let single = map(&[("b3", "000000000af76519-0000000000000007-1-0000000000000005")]);
        assert_eq!(read_b3(&single), Ok(Incoming { ids: Some(ids), sampled: Some(true) }));
        assert_eq!(read_b3(&map(&[("b3", "0")])), Ok(Incoming { ids: None, sampled: Some(false) }));
        assert_eq!(read_b3(&map(&[("x-b3-flags", "1")])), Ok(Incoming { ids: None, sampled: Some(true) }));
        for bad in ["zz-7-1", "1-7-1", "0000000000000001-0000000000000000-1", "0000000000000001-0000000000000007-x", "", "-"] {
            assert_eq!(read_b3(&map(&[("b3", bad)])), Err(Malformed), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let ids = Ids { trace: u128::MAX - 1, span: 9, parent: Some(3) };
        let mut both = map(&[("b3", "1")]);
        write_b3(&mut both, &ids, true);
        assert_eq!(read_b3(&both), Ok(Incoming { ids: Some(ids), sampled: Some(true) }));
        assert!(!both.contains_key("x-b3-traceid"));
        both.remove("b3");
        write_b3(&mut both, &ids, true);
        assert_eq!(read_b3(&both), Ok(Incoming { ids: Some(ids), sampled: Some(true) }));
        write_w3c(&mut both, &ids, false);
        assert_eq!(read_w3c(&both), Ok(Incoming { ids: Some(Ids { parent: None, ..ids }), sampled: Some(false) }));
    }

    #[test]
    fn a_traceparent_that_breaks_the_rules_is_not_taken() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(read_w3c(&map(&[("traceparent", good)])).is_ok_and(|i| i.sampled == Some(true)));
        for bad in [
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
        ] {
            assert_eq!(read_w3c(&map(&[("traceparent", bad)])), Err(Malformed), "{bad}");
        }
    }
}
