//! Chains that were found good a short while ago: the same few peers connect again and again, and the signature of
//! their issuer is half of what the server computes for a handshake.
use super::peer::PeerIdentity;
use super::verifier::Usage;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::{Mutex, TryLockError};
use std::time::UNIX_EPOCH;

/// Chains remembered; the oldest makes room.
const MOST: usize = 128;

/// Remembered chains of one set of roots. What is not there is only verified again.
#[derive(Debug, Default)]
pub(super) struct KnownChains(Mutex<VecDeque<Known>>);

#[derive(Debug)]
struct Known {
    chain: ChainId,
    /// Every certificate of the chain is valid from and until then, in seconds since 1970.
    from: u64,
    until: u64,
}

/// SHA-256 over everything that was shown, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainId([u8; 32]);

impl ChainId {
    pub(super) fn of(leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], usage: Usage) -> Self {
        let mut hash = Sha256::new();
        hash.update([matches!(usage, Usage::Server).into()]);
        for certificate in std::iter::once(leaf).chain(rest) {
            // The length keeps two certificates from passing for three.
            hash.update((certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        Self(hash.finalize().into())
    }
}

impl KnownChains {
    /// Whether the chain was found good and is still valid at `now`, in seconds since 1970.
    pub(super) fn contains(&self, chain: ChainId, now: u64) -> bool {
        // Another worker that looks at the same time costs this one a verification, not a wait.
        let known = match self.0.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        known.iter().any(|k| k.chain == chain && k.from <= now && now <= k.until)
    }

    /// Remembers a chain that was verified.
    pub(super) fn insert(&self, chain: ChainId, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) {
        let (mut from, mut until) = (0, u64::MAX);
        for certificate in std::iter::once(leaf).chain(rest) {
            let Ok(identity) = PeerIdentity::from_der(certificate) else { return };
            let seconds = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            from = from.max(seconds(identity.not_before));
            until = until.min(seconds(identity.not_after));
        }
        let Ok(mut known) = self.0.try_lock() else { return };
        known.retain(|k| k.chain != chain);
        known.truncate(MOST - 1);
        known.push_front(Known { chain, from, until });
    }
}
