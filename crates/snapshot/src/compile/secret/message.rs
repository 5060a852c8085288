//! Secrets as messages: what they hold, read from the files that they name.
use std::path::PathBuf;
use std::sync::Arc;

use lateen_identity::tls::SanKind;
use lateen_identity::tls::params::{certificate_pin, key_pin};
use lateen_identity::{PrivateKey, pem};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use proto::certificate_validation_context::TrustChainVerification;

use super::super::common::{data, read_stamped};
use super::super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::super::tls::{san, san_of};
use super::{Certificate, ReadFile, SecretValue, Validation};

/// The most that `max_verify_depth` may be, and what it is by default.
const MOST_ABOVE: u32 = 100;

/// What a secret holds, and the files that it was to come from.
pub(super) fn open(secret: proto::Secret) -> (Result<SecretValue>, Vec<ReadFile>) {
    let mut files = Vec::new();
    (value(secret, &mut files), files)
}

fn value(secret: proto::Secret, files: &mut Vec<ReadFile>) -> Result<SecretValue> {
    // Whoever brings it has compared the name.
    let proto::Secret { name: _, r#type } = secret;
    match r#type {
        Some(proto::secret::Type::TlsCertificate(c)) => {
            Ok(SecretValue::Certificate(Arc::new(certificate(c, files).within("tls_certificate")?)))
        }
        Some(proto::secret::Type::ValidationContext(v)) => {
            Ok(SecretValue::Validation(Arc::new(validation(v, files).within("validation_context")?)))
        }
        Some(proto::secret::Type::SessionTicketKeys(_)) => Err(Invalid::unsupported("session_ticket_keys")),
        Some(proto::secret::Type::GenericSecret(_)) => Err(Invalid::unsupported("generic_secret")),
        None => Err(Invalid::new("is empty; give tls_certificate or validation_context")),
    }
}

/// The bytes of a source, remembering a file, also one that cannot be read.
fn read(source: Option<core::DataSource>, files: &mut Vec<ReadFile>, field: &str) -> Result<Vec<u8>> {
    let source = source.ok_or_else(|| Invalid::new("is missing")).within(field)?;
    if let Some(core::data_source::Specifier::Filename(name)) = &source.specifier {
        let path = PathBuf::from(name);
        let (stamp, content) = read_stamped(&path);
        files.push((path, stamp));
        return content.within("filename").within(field);
    }
    data(source).within(field)
}

fn certificate(value: proto::TlsCertificate, files: &mut Vec<ReadFile>) -> Result<Certificate> {
    let proto::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        watched_directory,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = value;
    harmless!(watched_directory, signed_certificate_timestamp);
    refuse!(pkcs12, private_key_provider, password, ocsp_staple, tls_params);
    // All files, also behind one that fails: each may be the one that is mended.
    let (chain, key) = (read(certificate_chain, files, "certificate_chain"), read(private_key, files, "private_key"));
    let (chain, key) = (chain?, key?);
    let chain = pem::certificates(&chain, "certificate_chain").map_err(|e| Invalid::new(e.to_string()))?;
    let key = PrivateKey::from_pem(&key, "private_key").map_err(|e| Invalid::new(e.to_string()))?;
    Certificate::new(chain, &key)
}

fn validation(value: proto::CertificateValidationContext, files: &mut Vec<ReadFile>) -> Result<Validation> {
    let proto::CertificateValidationContext {
        trusted_ca,
        ca_certificate_provider_instance,
        system_root_certs,
        watched_directory,
        verify_certificate_spki,
        verify_certificate_hash,
        match_typed_subject_alt_names,
        match_subject_alt_names,
        require_signed_certificate_timestamp,
        crl,
        allow_expired_certificate,
        trust_chain_verification,
        custom_validator_config,
        only_verify_leaf_cert_crl,
        max_verify_depth,
        suppress_client_ca_list,
    } = value;
    harmless!(watched_directory, suppress_client_ca_list);
    refuse!(ca_certificate_provider_instance, require_signed_certificate_timestamp, allow_expired_certificate);
    refuse!(system_root_certs);
    if let Some(config) = &custom_validator_config {
        // Istio's SPIFFE validator maps trust domains to roots; with one of them the plain check is not the same.
        return Err(Invalid::field("custom_validator_config", format!("{} is not supported", config.name)));
    }
    if max_verify_depth.is_some_and(|most| most > MOST_ABOVE) {
        return Err(Invalid::field("max_verify_depth", format!("is more than {MOST_ABOVE}")));
    }
    let roots = trusted_ca.map(|ca| read(Some(ca), files, "trusted_ca"));
    let lists = crl.map(|c| read(Some(c), files, "crl"));
    let (roots, lists) = (roots.transpose()?, lists.transpose()?);
    // Lists among the roots count as those of `crl` do (Envoy `DefaultCertValidator`).
    let invalid = |e: pem::InvalidPem| Invalid::new(e.to_string());
    let among = roots.as_deref().map(|text| pem::revocation_lists_among(text, "trusted_ca")).transpose().map_err(invalid)?;
    let roots = roots.map(|text| pem::certificates(&text, "trusted_ca")).transpose().map_err(invalid)?;
    let lists = lists.map(|text| pem::revocation_lists(&text, "crl")).transpose().map_err(invalid)?;
    let mut sans = Vec::new();
    for (index, matcher) in match_typed_subject_alt_names.into_iter().enumerate() {
        sans.push(san(matcher).within_item("match_typed_subject_alt_names", index)?);
    }
    for (index, matcher) in match_subject_alt_names.into_iter().enumerate() {
        // The older form looks at every kind of name.
        for kind in [SanKind::Uri, SanKind::Dns, SanKind::Email, SanKind::Ip] {
            sans.push(san_of(kind, matcher.clone()).within_item("match_subject_alt_names", index)?);
        }
    }
    let pins =
        |texts: Vec<String>, read: fn(&str) -> std::result::Result<[u8; 32], lateen_identity::tls::InvalidTlsParams>, field: &str| {
            texts
                .iter()
                .enumerate()
                .map(|(i, t)| read(t).map_err(|e| Invalid::new(e.to_string())).within_item(field, i))
                .collect::<Result<Vec<_>>>()
        };
    let accept_untrusted = trust_chain_verification == TrustChainVerification::AcceptUntrusted as i32;
    Ok(Validation {
        roots,
        lists_among_roots: among.unwrap_or_default(),
        sans,
        key_pins: pins(verify_certificate_spki, key_pin, "verify_certificate_spki")?,
        certificate_pins: pins(verify_certificate_hash, certificate_pin, "verify_certificate_hash")?,
        revocation_lists: lists.unwrap_or_default(),
        leaf_only: only_verify_leaf_cert_crl,
        // With none at all nobody could be trusted but the roots: it means one, as in Envoy.
        most_above: max_verify_depth.map(|most| most.max(1) as usize),
        accept_untrusted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(trusted_ca: Option<String>, crl: Option<String>) -> Arc<Validation> {
        let inline = |text| core::DataSource { specifier: Some(core::data_source::Specifier::InlineString(text)), watched_directory: None };
        let content = proto::CertificateValidationContext {
            trusted_ca: trusted_ca.map(inline),
            crl: crl.map(inline),
            ..proto::CertificateValidationContext::default()
        };
        let secret = proto::Secret { r#type: Some(proto::secret::Type::ValidationContext(content)), ..proto::Secret::default() };
        match open(secret).0.unwrap() {
            SecretValue::Validation(validation) => validation,
            SecretValue::Certificate(_) => panic!("a certificate"),
        }
    }

    #[test]
    fn revocation_lists_among_the_roots_count_and_go_with_them() {
        let root = || {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
        };
        let list = |content: u8| pem::encode("X509 CRL", &[content]);
        let lists = |parts: &[&Validation]| {
            let verification = Validation::merged(parts.iter().copied()).verification(false);
            verification.revocation_lists.iter().map(|list| list[0]).collect::<Vec<_>>()
        };
        let with_list = context(Some(root() + &list(1) + &root()), Some(list(2)));
        assert_eq!((with_list.trusted().len(), lists(&[&with_list])), (2, vec![2, 1]));
        // Roots that come in their place bring their own lists, or none.
        assert_eq!(lists(&[&with_list, &context(Some(root()), None)]), [2]);
        assert_eq!(lists(&[&with_list, &context(None, Some(list(3)))]), [2, 3, 1]);
    }
}
