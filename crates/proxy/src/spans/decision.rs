//! Whether a request is traced (Envoy `ConnectionManagerUtility::mutateTracingRequestHeader`), and how its
//! `x-request-id` tells the proxies that follow (Envoy `UUIDRequestIDExtension`).
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use lateen_snapshot::matcher::Fraction;
use lateen_snapshot::trace::{RequestIdRules, Sampling};

use crate::http::headers::{FORCE_TRACE, REQUEST_ID};

pub(super) const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");

/// Where a UUID has its version: `4` unless a reason stands there.
const REASON_AT: usize = 14;
const ID_LENGTH: usize = 36;

/// Why a request is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NotTraceable,
    Sampling,
    ServiceForced,
    ClientForced,
}

impl Reason {
    fn digit(self) -> u8 {
        match self {
            Self::NotTraceable => b'4',
            Self::Sampling => b'9',
            Self::ServiceForced => b'a',
            Self::ClientForced => b'b',
        }
    }
}

/// The reason that an earlier proxy packed in.
fn packed(id: &[u8]) -> Reason {
    if id.len() != ID_LENGTH {
        return Reason::NotTraceable;
    }
    match id.get(REASON_AT) {
        Some(b'9') => Reason::Sampling,
        Some(b'a') => Reason::ServiceForced,
        Some(b'b') => Reason::ClientForced,
        _ => Reason::NotTraceable,
    }
}

/// The part of an id that serves as the die: all proxies throw the same.
pub(crate) fn die_of(id: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

fn hits(fraction: Fraction, die: u64) -> bool {
    die * u64::from(fraction.denominator) < u64::from(fraction.numerator) * 10_000
}

/// Decides, and packs the decision into the id. `roll` is for requests that a client wants traced.
pub(super) fn decide(map: &mut HeaderMap, rules: RequestIdRules, sampling: &Sampling, roll: u32) -> Reason {
    if !rules.samples {
        return Reason::Sampling;
    }
    let Some(id) = map.get(REQUEST_ID) else { return Reason::NotTraceable };
    let before = if rules.pack_reason { packed(id.as_bytes()) } else { Reason::NotTraceable };
    let Some(die) = die_of(id.as_bytes()).map(|n| n % 10_000) else { return Reason::NotTraceable };
    let mut reason = before;
    if reason == Reason::NotTraceable {
        if map.contains_key(CLIENT_TRACE_ID) && sampling.client.hits(roll) {
            reason = Reason::ClientForced;
        } else if map.contains_key(FORCE_TRACE) {
            reason = Reason::ServiceForced;
        } else if hits(sampling.random, die) {
            reason = Reason::Sampling;
        }
    }
    if reason != Reason::NotTraceable && !hits(sampling.overall, die) {
        reason = Reason::NotTraceable;
    }
    if reason != before && rules.pack_reason {
        pack(map, reason);
    }
    reason
}

/// Takes the decision out of an id: that of a stranger is not ours.
pub(crate) fn forget(map: &mut HeaderMap) {
    pack(map, Reason::NotTraceable);
}

fn pack(map: &mut HeaderMap, reason: Reason) {
    let Some(id) = map.get_mut(REQUEST_ID) else { return };
    if id.len() != ID_LENGTH || id.as_bytes().get(REASON_AT) == Some(&reason.digit()) {
        return;
    }
    let mut bytes = id.as_bytes().to_vec();
    if let Some(digit) = bytes.get_mut(REASON_AT) {
        *digit = reason.digit();
    }
    if let Ok(value) = HeaderValue::from_bytes(&bytes) {
        *id = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(random: u32, overall: u32) -> Sampling {
        let share = |percent| Fraction { numerator: percent, denominator: 100 };
        Sampling { client: Fraction::ALL, random: share(random), overall: share(overall) }
    }

    fn with_id(id: &'static str, more: &[HeaderName]) -> HeaderMap {
        let mut map: HeaderMap = more.iter().map(|n| (n.clone(), HeaderValue::from_static("1"))).collect();
        map.insert(REQUEST_ID, HeaderValue::from_static(id));
        map
    }

    fn run(id: &'static str, more: &[HeaderName], sampling: &Sampling) -> (Reason, String) {
        let mut map = with_id(id, more);
        let reason = decide(&mut map, RequestIdRules::default(), sampling, 0);
        (reason, map[REQUEST_ID].to_str().unwrap().to_owned())
    }

    // 0x1387 is 4999: the die of a half.
    const LOW: &str = "00001387-58bc-4eb4-8f3c-0e64a5c7f3a1";
    const HIGH: &str = "00001388-58bc-4eb4-8f3c-0e64a5c7f3a1";

    #[test]
    fn the_id_is_the_die_and_carries_the_reason() {
        let half = config(50, 100);
        assert_eq!(run(LOW, &[], &half), (Reason::Sampling, LOW.replace("-4eb4", "-9eb4")));
        assert_eq!(run(HIGH, &[], &half), (Reason::NotTraceable, HIGH.to_owned()));
        assert_eq!(run(HIGH, &[FORCE_TRACE], &half), (Reason::ServiceForced, HIGH.replace("-4eb4", "-aeb4")));
        assert_eq!(run(HIGH, &[CLIENT_TRACE_ID], &half), (Reason::ClientForced, HIGH.replace("-4eb4", "-beb4")));
    }

    #[test]
    fn what_was_decided_before_holds_unless_the_overall_share_forbids_it() {
        let sampled = "00001388-58bc-9eb4-8f3c-0e64a5c7f3a1";
        assert_eq!(run(sampled, &[], &config(0, 100)), (Reason::Sampling, sampled.to_owned()));
        assert_eq!(run(sampled, &[], &config(0, 50)), (Reason::NotTraceable, HIGH.to_owned()));
        let silent = RequestIdRules { pack_reason: false, ..RequestIdRules::default() };
        let mut map = with_id(HIGH, &[]);
        assert_eq!((decide(&mut map, silent, &config(100, 100), 0), &map[REQUEST_ID]), (Reason::Sampling, &HeaderValue::from_static(HIGH)));
        let sampling = (
            decide(&mut with_id(sampled, &[]), silent, &config(0, 100), 0),
            decide(&mut with_id(sampled, &[]), silent, &config(100, 100), 0),
        );
        assert_eq!(sampling, (Reason::NotTraceable, Reason::Sampling), "who packs no reasons reads none");
        assert_eq!(run("not an id", &[FORCE_TRACE], &config(100, 100)).0, Reason::NotTraceable);
    }
}
