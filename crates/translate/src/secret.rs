//! Certificates of gateways: Kubernetes Secrets as Envoy secrets.
use std::sync::Arc;

use lateen_model::Resource;
use lateen_model::kinds::Secret;

use crate::provenance::Provenance;
use crate::view::ProxyView;
use crate::wire::{core_v3, tls_v3};
use crate::world::World;

/// A secret and where it comes from.
pub(crate) struct Built {
    pub(crate) secret: tls_v3::Secret,
    pub(crate) provenance: Vec<Provenance>,
}

/// The suffix that asks for the roots that clients are checked against.
const ROOTS: &str = "-cacert";

/// The secret of an SDS name: `kubernetes://[namespace/]name[-cacert]` or `kubernetes-gateway://namespace/name[-cacert]`.
///
/// Only secrets of the proxy's own namespace are given out: the name is the proxy's word, and a key is not for everyone.
pub(crate) fn build(world: &World, view: &ProxyView, name: &str) -> Option<Built> {
    let path = name.strip_prefix("kubernetes://").or_else(|| name.strip_prefix("kubernetes-gateway://"))?;
    let (namespace, secret) = path.split_once('/').unwrap_or((&view.namespace, path));
    if namespace != view.namespace {
        return None;
    }
    let (resource, kind) = match secret.strip_suffix(ROOTS) {
        // A secret may itself be called so, else the roots stand beside the certificate.
        Some(base) => {
            let resource = world.secret(namespace, secret).or_else(|| world.secret(namespace, base))?;
            (resource, roots(resource)?)
        }
        None => {
            let resource = world.secret(namespace, secret)?;
            (resource, certificate(resource)?)
        }
    };
    Some(Built { secret: tls_v3::Secret { name: name.to_owned(), r#type: Some(kind) }, provenance: vec![Provenance::of(resource)] })
}

fn inline(bytes: &[u8]) -> core_v3::DataSource {
    let specifier = core_v3::data_source::Specifier::InlineBytes(bytes.to_vec().into());
    core_v3::DataSource { specifier: Some(specifier), ..Default::default() }
}

fn first_of<'a>(secret: &'a Arc<Resource<Secret>>, keys: &[&str]) -> Option<&'a [u8]> {
    keys.iter().find_map(|key| secret.spec.get(key)).filter(|bytes| !bytes.is_empty())
}

fn certificate(secret: &Arc<Resource<Secret>>) -> Option<tls_v3::secret::Type> {
    Some(tls_v3::secret::Type::TlsCertificate(tls_v3::TlsCertificate {
        certificate_chain: Some(inline(first_of(secret, &["tls.crt", "cert"])?)),
        private_key: Some(inline(first_of(secret, &["tls.key", "key"])?)),
        ocsp_staple: secret.spec.get("tls.ocsp-staple").map(inline),
        ..Default::default()
    }))
}

fn roots(secret: &Arc<Resource<Secret>>) -> Option<tls_v3::secret::Type> {
    Some(tls_v3::secret::Type::ValidationContext(tls_v3::CertificateValidationContext {
        trusted_ca: Some(inline(first_of(secret, &["ca.crt", "cacert"])?)),
        crl: first_of(secret, &["ca.crl", "crl"]).map(inline),
        ..Default::default()
    }))
}
