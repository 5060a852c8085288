//! The self-signed authority: a root certificate and key kept in a state folder.
use super::CaError;
use super::material::{InvalidMaterial, Origins, SigningMaterial};
use super::{BACKDATE, plugged};
use crate::pem;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Ten years (Istio `CITADEL_SELF_SIGNED_CA_CERT_TTL`).
const ROOT_TTL: Duration = Duration::from_secs(3650 * 24 * 3600);
const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "ca-key.pem";

/// Reads the authority in `folder`, or makes one when neither file is there.
pub(super) fn open(folder: &Path, trust_domain: &str, now: SystemTime) -> Result<SigningMaterial, CaError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| io(folder, e))?;
    // Two processes that start at once must end up with one root. The lock goes with the handle.
    let handle = fs::File::open(folder).map_err(|e| io(folder, e))?;
    handle.lock().map_err(|e| io(folder, e))?;
    let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
    // Both are looked for: a lone key or certificate is the trace of a mishap, not of a first start.
    if !certificate.exists() && !key.exists() {
        let (material, texts) = generate(trust_domain, now)?;
        // The key first: a crash in between leaves a state that is reported, never a certificate without its key.
        write_private(&key, &texts.key)?;
        write_private(&certificate, &texts.certificate)?;
        tracing::info!(folder = %folder.display(), "made a new self-signed root certificate");
        return Ok(material);
    }
    load(&certificate, &key, now)
}

fn load(certificate: &Path, key: &Path, now: SystemTime) -> Result<SigningMaterial, CaError> {
    let names = (certificate.display().to_string(), key.display().to_string());
    let advice = |error: InvalidMaterial| match error {
        InvalidMaterial::Pem(e) => InvalidMaterial::new(&e.origin, format!("{}; {}", e.reason, ADVICE)),
        InvalidMaterial::Unusable { file, reason } => InvalidMaterial::new(&file, format!("{reason}; {ADVICE}")),
    };
    let read = |path: &Path| pem::read_file(path).map_err(|e| advice(e.into()));
    let pair = plugged::key_pair(&read(key)?, &names.1).map_err(advice)?;
    let roots = pem::certificates(&read(certificate)?, &names.0).map_err(|e| advice(e.into()))?;
    let origins = Origins { certificate: &names.0, key: &names.1, roots: &names.0 };
    let Some(root) = roots.first().cloned() else {
        return Err(InvalidMaterial::new(&names.0, "holds no certificate").into());
    };
    Ok(SigningMaterial::new(root, pair, &[], roots, &origins, now).map_err(advice)?)
}

const ADVICE: &str = "restore the file, or remove both root-cert.pem and ca-key.pem to start over with a new root \
(every workload must then be issued a new certificate)";

pub(super) struct Texts {
    certificate: String,
    key: String,
}

/// A new root and its files' content.
pub(super) fn generate(trust_domain: &str, now: SystemTime) -> Result<(SigningMaterial, Texts), CaError> {
    let failed = |e: rcgen::Error| CaError::Generate(e.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(super::issue::serial());
    super::issue::set_validity(&mut params, now.checked_sub(BACKDATE).unwrap_or(now), now + ROOT_TTL);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let texts = Texts { certificate: pem::encode("CERTIFICATE", certificate.der()), key: key.serialize_pem() };
    let root: CertificateDer<'static> = certificate.der().clone();
    let origins = Origins { certificate: CERTIFICATE, key: KEY, roots: CERTIFICATE };
    let material = SigningMaterial::new(root.clone(), key, &[], vec![root], &origins, now)?;
    Ok((material, texts))
}

/// Writes a file that is either complete or absent, readable by its owner only.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), CaError> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        io(path, e)
    })
}

fn io(path: &Path, cause: std::io::Error) -> CaError {
    CaError::Io { path: path.to_owned(), cause }
}
