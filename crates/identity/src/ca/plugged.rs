//! A plugged-in authority: the folder layout of Istio's `cacerts`.
use super::CaError;
use super::material::{InvalidMaterial, Origins, SigningMaterial};
use crate::pem;
use rcgen::KeyPair;
use std::path::Path;
use std::time::SystemTime;

/// Reads `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and, where the root does not sign itself, `cert-chain.pem`.
pub(super) fn load(folder: &Path, now: SystemTime) -> Result<SigningMaterial, CaError> {
    let file = |name: &str| folder.join(name);
    let name = |name: &str| folder.join(name).display().to_string();
    let (certificate, key, roots) = (name("ca-cert.pem"), name("ca-key.pem"), name("root-cert.pem"));
    let read = |name: &str| pem::read_file(&file(name)).map_err(InvalidMaterial::from);

    let signer = pem::certificates(&read("ca-cert.pem")?, &certificate).map_err(InvalidMaterial::from)?;
    let root_certificates = pem::certificates(&read("root-cert.pem")?, &roots).map_err(InvalidMaterial::from)?;
    let mut chain = signer.clone();
    if file("cert-chain.pem").exists() {
        let text = read("cert-chain.pem")?;
        chain.extend(pem::certificates(&text, &name("cert-chain.pem")).map_err(InvalidMaterial::from)?);
    }
    let pair = key_pair(&read("ca-key.pem")?, &key)?;
    let Some(signer) = signer.into_iter().next() else {
        return Err(InvalidMaterial::new(&certificate, "holds no certificate").into());
    };
    let origins = Origins { certificate: &certificate, key: &key, roots: &roots };
    Ok(SigningMaterial::new(signer, pair, &chain, root_certificates, &origins, now)?)
}

/// A private key of any PEM kind, RSA or EC.
pub(super) fn key_pair(text: &[u8], origin: &str) -> Result<KeyPair, InvalidMaterial> {
    let der = pem::private_key(text, origin)?;
    let key = KeyPair::try_from(&der).map_err(|_| {
        InvalidMaterial::new(origin, "the private key is damaged or of an unsupported kind; use RSA, or EC on P-256, P-384 or P-521")
    })?;
    Ok(key)
}
