//! Cipher suites and key-exchange groups by the names that Envoy and Istio configuration use.
use super::provider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, SupportedCipherSuite};
use std::sync::Arc;

/// A list of names that leaves nothing usable, or a name that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSuites {
    #[error("cipher suite `{0}` is not known; TLS 1.2 suites are {known}", known = KNOWN)]
    UnknownSuite(String),
    #[error("none of the cipher suites {0} is supported: they lack forward secrecy or authenticated encryption; use {known}", known = KNOWN)]
    NoSuite(String),
    #[error("key exchange group `{0}` is not known; use X25519MLKEM768, X25519, P-256 or P-384")]
    UnknownGroup(String),
}

const KNOWN: &str = "ECDHE-ECDSA-AES128-GCM-SHA256, ECDHE-RSA-AES128-GCM-SHA256, ECDHE-ECDSA-AES256-GCM-SHA384, \
ECDHE-RSA-AES256-GCM-SHA384, ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-CHACHA20-POLY1305";

/// The provider narrowed to the named suites and groups; an empty list keeps the defaults.
///
/// As in Envoy the list limits TLS 1.2 only: the suites of TLS 1.3 are all sound and stay on.
///
/// # Errors
/// When a name is unknown or nothing remains.
pub fn restrict(suites: &[String], groups: &[String]) -> Result<Arc<CryptoProvider>, InvalidSuites> {
    if suites.is_empty() && groups.is_empty() {
        return Ok(provider().clone());
    }
    let mut narrowed = CryptoProvider::clone(provider());
    if !suites.is_empty() {
        narrowed.cipher_suites = tls13(&narrowed).chain(tls12(suites)?).collect();
    }
    if !groups.is_empty() {
        narrowed.kx_groups = groups.iter().map(|name| group(name)).collect::<Result<_, _>>()?;
    }
    Ok(Arc::new(narrowed))
}

fn tls13(provider: &CryptoProvider) -> impl Iterator<Item = SupportedCipherSuite> {
    let suites: Vec<_> = provider.cipher_suites.iter().copied().filter(|s| s.tls13().is_some()).collect();
    suites.into_iter()
}

/// The TLS 1.2 suites that `names` mention. BoringSSL's groups of equal preference, `[A|B]`, are taken apart.
fn tls12(names: &[String]) -> Result<Vec<SupportedCipherSuite>, InvalidSuites> {
    let mut chosen: Vec<SupportedCipherSuite> = Vec::new();
    let mut only_tls13 = true;
    for name in names.iter().flat_map(|n| n.split(['[', ']', '|', ':', ','])).map(str::trim).filter(|n| !n.is_empty()) {
        match suite(name) {
            Found::Suite(suite) if suite.tls13().is_some() => continue,
            Found::Suite(suite) if !chosen.contains(&suite) => chosen.push(suite),
            Found::Suite(_) => {}
            Found::Weak => tracing::debug!(suite = name, "cipher suite is not supported and left out"),
            Found::Unknown => return Err(InvalidSuites::UnknownSuite(name.to_owned())),
        }
        only_tls13 = false;
    }
    if chosen.is_empty() && !only_tls13 { Err(InvalidSuites::NoSuite(names.join(", "))) } else { Ok(chosen) }
}

enum Found {
    Suite(SupportedCipherSuite),
    /// Known to OpenSSL, but static RSA key exchange or CBC: Istio's default list still names some.
    Weak,
    Unknown,
}

fn suite(name: &str) -> Found {
    Found::Suite(match name {
        "ECDHE-ECDSA-AES128-GCM-SHA256" | "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => {
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        }
        "ECDHE-RSA-AES128-GCM-SHA256" | "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES256-GCM-SHA384" | "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => {
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        }
        "ECDHE-RSA-AES256-GCM-SHA384" | "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-CHACHA20-POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" => {
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "ECDHE-RSA-CHACHA20-POLY1305" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" => {
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_AES_128_GCM_SHA256" => cipher_suite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => cipher_suite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        "AES128-GCM-SHA256"
        | "AES256-GCM-SHA384"
        | "AES128-SHA"
        | "AES256-SHA"
        | "AES128-SHA256"
        | "AES256-SHA256"
        | "ECDHE-ECDSA-AES128-SHA"
        | "ECDHE-RSA-AES128-SHA"
        | "ECDHE-ECDSA-AES256-SHA"
        | "ECDHE-RSA-AES256-SHA"
        | "ECDHE-ECDSA-AES128-SHA256"
        | "ECDHE-RSA-AES128-SHA256"
        | "ECDHE-ECDSA-AES256-SHA384"
        | "ECDHE-RSA-AES256-SHA384"
        | "DES-CBC3-SHA" => return Found::Weak,
        _ => return Found::Unknown,
    })
}

fn group(name: &str) -> Result<&'static dyn SupportedKxGroup, InvalidSuites> {
    Ok(match name {
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "X25519" => kx_group::X25519,
        "P-256" | "secp256r1" | "prime256v1" => kx_group::SECP256R1,
        "P-384" | "secp384r1" => kx_group::SECP384R1,
        other => return Err(InvalidSuites::UnknownGroup(other.to_owned())),
    })
}

pub(super) fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// The OpenSSL name of a negotiated suite, as Envoy's `ssl_cipher` access log field shows it.
pub fn openssl_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn the_default_list_of_istio_is_taken_without_its_static_rsa_suites() {
        let istio = names(&["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "AES256-GCM-SHA384", "AES128-GCM-SHA256"]);
        let provider = restrict(&istio, &[]).unwrap();
        let tls12 = provider.cipher_suites.iter().filter(|s| s.tls13().is_none()).count();
        assert_eq!((tls12, provider.cipher_suites.len()), (2, 5));
    }

    #[test]
    fn unusable_lists_are_refused() {
        assert!(matches!(restrict(&names(&["AES128-SHA"]), &[]), Err(InvalidSuites::NoSuite(_))));
        assert!(matches!(restrict(&names(&["FOO"]), &[]), Err(InvalidSuites::UnknownSuite(_))));
        assert!(matches!(restrict(&[], &names(&["P-512"])), Err(InvalidSuites::UnknownGroup(_))));
    }

    #[test]
    fn equal_preference_groups_are_taken_apart() {
        let provider = restrict(&names(&["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]"]), &names(&["P-256"])).unwrap();
        assert_eq!((provider.cipher_suites.len(), provider.kx_groups.len()), (5, 1));
    }

    #[test]
    fn suites_come_in_envoys_order() {
        let suites: Vec<_> = provider().cipher_suites.iter().map(|s| openssl_name(s.suite())).collect();
        assert_eq!(suites[..2], ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]);
        assert_eq!(suites[3..5], ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"]);
        assert_eq!(suites.len(), 9);
    }

    #[test]
    fn the_hybrid_exchange_is_preferred_by_default() {
        let first = provider().kx_groups.first().map(|g| g.name());
        assert_eq!(first, Some(rustls::NamedGroup::X25519MLKEM768));
    }
}
