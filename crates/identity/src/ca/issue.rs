//! Putting leaf certificates together, in the form that Istio's workloads expect.
use super::material::SigningMaterial;
use super::{BACKDATE, MAX_TTL, SignError, SignedChain};
use lateen_core::spiffe::SpiffeId;
use rand::Rng;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The latest moment that a certificate can name: 9999-12-31 (RFC 5280 4.1.2.5).
const LAST_SECOND: u64 = 253_402_300_799;

/// A workload's certificate: empty subject, the SPIFFE id as only name.
pub(super) fn workload(
    material: &SigningMaterial,
    key: &impl PublicKeyData,
    id: &SpiffeId,
    ttl: Duration,
    now: SystemTime,
) -> Result<SignedChain, SignError> {
    let uri = id.to_string();
    let name = Ia5String::try_from(uri.as_str()).map_err(|_| SignError::Name(uri.clone()))?;
    sign(material, key, vec![SanType::URI(name)], ttl, now)
}

/// A server certificate with DNS names; texts that are addresses become IP names.
pub(super) fn server(
    material: &SigningMaterial,
    key: &impl PublicKeyData,
    names: &[String],
    ttl: Duration,
    now: SystemTime,
) -> Result<SignedChain, SignError> {
    let san = |name: &String| match name.parse() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => Ia5String::try_from(name.as_str()).map(SanType::DnsName).map_err(|_| SignError::Name(name.clone())),
    };
    let sans = names.iter().map(san).collect::<Result<Vec<_>, _>>()?;
    if sans.is_empty() {
        return Err(SignError::Name(String::new()));
    }
    sign(material, key, sans, ttl, now)
}

fn sign(
    material: &SigningMaterial,
    key: &impl PublicKeyData,
    sans: Vec<SanType>,
    ttl: Duration,
    now: SystemTime,
) -> Result<SignedChain, SignError> {
    if now >= material.not_after {
        return Err(SignError::IssuerExpired);
    }
    // A leaf must not outlive its issuer: verifiers would refuse it early, long before its renewal is due.
    let not_after = (now + ttl.min(MAX_TTL)).min(material.not_after);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    set_validity(&mut params, now.checked_sub(BACKDATE).unwrap_or(now), not_after);
    let leaf = params.signed_by(key, &material.issuer).map_err(|e| SignError::Signing(e.to_string()))?;
    let mut chain = vec![leaf.der().clone()];
    chain.extend(material.intermediates.iter().cloned());
    Ok(SignedChain { chain, roots: material.roots.clone(), not_after })
}

/// 127 random bits: unguessable, positive, within the 20 octets of RFC 5280. Left to rcgen, a
/// renewal for the same key would repeat the number.
pub(super) fn serial() -> SerialNumber {
    let mut octets: [u8; 16] = rand::rng().random();
    octets[0] = octets[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&octets)
}

/// Sets the validity, kept within what a certificate can express.
pub(super) fn set_validity(params: &mut CertificateParams, not_before: SystemTime, not_after: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Duration::from_secs(seconds.min(LAST_SECOND))
    };
    params.not_before = epoch + since(not_before);
    params.not_after = epoch + since(not_after);
}
