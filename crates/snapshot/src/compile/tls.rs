//! TLS contexts: what a transport socket demands, kept so that the configuration can be made again
//! whenever one of its secrets changes.
use std::sync::{Arc, Weak};

use lateen_identity::PeerIdentity;
use lateen_identity::tls::{ClientAuth, ClientParams, Resumption, SanKind, SanMatcher, SanPattern, ServerParams, TlsVersion, Verification};
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3::{self as core, transport_socket};
use lateen_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use lateen_proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use lateen_proto::envoy::r#type::matcher::v3 as matcher;
use proto::common_tls_context::ValidationContextType;
use proto::downstream_tls_context::SessionTicketKeysType;
use proto::tls_parameters::TlsProtocol;
use rustls::sign::CertifiedKey;

use super::common::open;
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::secret::{Certificate, SecretKey, SecretKind, Secrets, Validation};
use super::warming::{FetchTimeout, Wait};
use super::{opaque, source};
use crate::tls::{ClientConfigs, ClientTls, ServerTls};

/// A certificate or validation context: given in the message, or to be discovered.
#[derive(Debug)]
pub(crate) enum Given<T> {
    Inline(Arc<T>),
    /// Also what is in files, which can change.
    Discovered(SecretKey),
}

impl<T> Given<T> {
    fn key(&self) -> Option<&SecretKey> {
        match self {
            Self::Inline(_) => None,
            Self::Discovered(key) => Some(key),
        }
    }
}

/// What both ends of TLS have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    certificates: Vec<Given<Certificate>>,
    /// Merged over what is discovered (Envoy's combined context).
    default_validation: Option<Given<Validation>>,
    discovered_validation: Option<SecretKey>,
    /// How long each is waited for that is discovered.
    timeouts: Vec<(SecretKey, FetchTimeout)>,
    alpn: Vec<Vec<u8>>,
    min_version: TlsVersion,
    max_version: TlsVersion,
    cipher_suites: Vec<String>,
    groups: Vec<String>,
    client_auth: ClientAuth,
    /// Servers: a name that no certificate has is no reason to show the first.
    scans_all: bool,
    /// Servers: whose order of cipher suites counts.
    prefers_client_order: bool,
    resumption: Resumption,
    /// Clients: some connections check the name that they ask for.
    check_name: bool,
}

/// A context whose secrets may change, and whose configuration is then made again.
#[derive(Clone, Debug)]
pub(crate) enum Waiting {
    Server(Weak<ServerTls>, Arc<Plan>),
    Client(Weak<ClientTls>, Arc<Plan>),
}

impl Waiting {
    fn plan(&self) -> &Plan {
        match self {
            Self::Server(_, plan) | Self::Client(_, plan) => plan,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        match self {
            Self::Server(context, _) => context.strong_count() > 0,
            Self::Client(context, _) => context.strong_count() > 0,
        }
    }

    /// Whether everything it needs has arrived.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Server(context, _) => context.upgrade().is_none_or(|c| c.config.get().is_some()),
            Self::Client(context, _) => context.upgrade().is_none_or(|c| c.config.get().is_some()),
        }
    }

    /// What it waits for until there is a first configuration. `answered` tells of what something was heard.
    pub(crate) fn waits(&self, answered: impl Fn(&SecretKey) -> bool, wait: &mut Wait) {
        if !self.is_ready() {
            self.plan().timeouts.iter().for_each(|(key, timeout)| wait.on(answered(key), *timeout));
        }
    }

    pub(crate) fn secrets(&self) -> impl Iterator<Item = &SecretKey> {
        self.plan().secrets()
    }

    pub(crate) fn needs(&self, key: &SecretKey) -> bool {
        self.secrets().any(|k| k == key)
    }

    /// What it takes the secret for, where it needs it.
    pub(crate) fn takes(&self, key: &SecretKey) -> Option<SecretKind> {
        let plan = self.plan();
        let as_certificate = plan.certificates.iter().filter_map(Given::key).any(|k| k == key);
        if as_certificate { Some(SecretKind::Certificate) } else { self.needs(key).then_some(SecretKind::Validation) }
    }

    /// Makes the configuration from the secrets of the moment; `false` while one is missing.
    pub(crate) fn refresh(&self, secrets: &Secrets) -> Result<bool> {
        match self {
            Self::Server(context, plan) => {
                let (Some(context), Some(config)) = (context.upgrade(), plan.server(secrets)?) else { return Ok(false) };
                context.config.set(config);
                context.uri.replace(plan.own_uri(secrets).map(Arc::new));
            }
            Self::Client(context, plan) => {
                let (Some(context), Some(config)) = (context.upgrade(), plan.client(secrets)?) else { return Ok(false) };
                context.config.set(config);
                context.uri.replace(plan.own_uri(secrets).map(Arc::new));
            }
        }
        Ok(true)
    }
}

impl Plan {
    fn secrets(&self) -> impl Iterator<Item = &SecretKey> {
        let validation = self.default_validation.as_ref().and_then(Given::key);
        self.certificates.iter().filter_map(Given::key).chain(validation).chain(&self.discovered_validation)
    }

    fn keys(&self, secrets: &Secrets) -> Option<Vec<Arc<CertifiedKey>>> {
        let one = |given: &Given<Certificate>| match given {
            Given::Inline(certificate) => Some(certificate.key.clone()),
            Given::Discovered(key) => secrets.certificate(key).map(|c| c.key.clone()),
        };
        self.certificates.iter().map(one).collect()
    }

    fn own_uri(&self, secrets: &Secrets) -> Option<String> {
        let key = self.keys(secrets)?.into_iter().next()?;
        PeerIdentity::from_der(key.cert.first()?).ok()?.uri_sans.into_iter().next()
    }

    /// `None` while a validation context is still to arrive.
    fn validation(&self, secrets: &Secrets) -> Option<Validation> {
        let discovered = match &self.discovered_validation {
            None => None,
            Some(key) => Some(secrets.validation(key)?),
        };
        let default = match &self.default_validation {
            None => None,
            Some(Given::Inline(validation)) => Some(validation.clone()),
            Some(Given::Discovered(key)) => Some(secrets.validation(key)?),
        };
        let parts = [default.as_deref(), discovered.as_deref()];
        Some(Validation::merged(parts.into_iter().flatten()))
    }

    fn server(&self, secrets: &Secrets) -> Result<Option<Arc<rustls::ServerConfig>>> {
        let (Some(keys), Some(validation)) = (self.keys(secrets), self.validation(secrets)) else { return Ok(None) };
        let mut params = ServerParams::new(keys);
        params.client_auth = match self.client_auth {
            ClientAuth::None => validation.asks(),
            other => other,
        };
        params.scans_all = self.scans_all;
        params.prefers_client_order = self.prefers_client_order;
        params.verification = validation.verification(false);
        params.alpn.clone_from(&self.alpn);
        params.min_version = self.min_version;
        params.max_version = self.max_version;
        params.cipher_suites.clone_from(&self.cipher_suites);
        params.groups.clone_from(&self.groups);
        params.resumption = self.resumption;
        params.build().map(Some).map_err(|e| Invalid::new(e.to_string()))
    }

    fn client(&self, secrets: &Secrets) -> Result<Option<Arc<ClientConfigs>>> {
        let (Some(keys), Some(validation)) = (self.keys(secrets), self.validation(secrets)) else { return Ok(None) };
        let key = keys.into_iter().next();
        let checked = self.check_name.then(|| self.client_config(key.clone(), validation.clone().verification(true))).transpose()?;
        let any_name = self.client_config(key, validation.verification(false))?;
        Ok(Some(Arc::new(ClientConfigs { any_name, checked })))
    }

    fn client_config(&self, key: Option<Arc<CertifiedKey>>, verification: Verification) -> Result<Arc<rustls::ClientConfig>> {
        let mut params = ClientParams::new(verification);
        if let Some(key) = key {
            params = params.with_key(key);
        }
        params.alpn.clone_from(&self.alpn);
        params.min_version = self.min_version;
        params.max_version = self.max_version;
        params.cipher_suites.clone_from(&self.cipher_suites);
        params.groups.clone_from(&self.groups);
        params.resumption = self.resumption;
        params.build().map_err(|e| Invalid::new(e.to_string()))
    }
}

/// The transport socket of a filter chain; `None` is plaintext.
pub(crate) fn server(value: Option<core::TransportSocket>, context: &mut Context<'_>) -> Result<Option<Arc<ServerTls>>> {
    let Some((name, config)) = socket_config(value)? else { return Ok(None) };
    if any::is::<RawBuffer>(&config) {
        return Ok(None);
    }
    if !any::is::<proto::DownstreamTlsContext>(&config) {
        return Err(Invalid::new(format!("{name} ({}) is not supported; tls and raw_buffer are", any::name_of(&config.type_url))));
    }
    let proto::DownstreamTlsContext {
        common_tls_context,
        require_client_certificate,
        require_sni,
        disable_stateful_session_resumption,
        session_timeout,
        ocsp_staple_policy,
        full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
        session_ticket_keys_type,
    } = open(&config)?;
    harmless!(session_timeout);
    refuse!(require_sni, ocsp_staple_policy);
    let stateless = match session_ticket_keys_type {
        None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => true,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => false,
        Some(_) => return Err(Invalid::unsupported("session_ticket_keys")),
    };
    let mut plan = common(common_tls_context.unwrap_or_default(), End::Server, context.secrets).within("common_tls_context")?;
    plan.prefers_client_order = prefer_client_ciphers;
    plan.scans_all = full_scan_certs_on_sni_mismatch.unwrap_or(false);
    if require_client_certificate.unwrap_or(false) {
        plan.client_auth = ClientAuth::Required;
    }
    if disable_stateful_session_resumption && !stateless {
        plan.resumption = Resumption::Off;
    }
    if plan.certificates.is_empty() {
        return Err(Invalid::field(
            "common_tls_context",
            "has no certificate; give tls_certificates or tls_certificate_sds_secret_configs",
        ));
    }
    let tls = Arc::new(ServerTls { config: crate::tls::Slot::empty(), uri: crate::tls::Slot::empty() });
    let waiting = Waiting::Server(Arc::downgrade(&tls), Arc::new(plan));
    waiting.refresh(context.secrets)?;
    context.uses.tls.push(waiting);
    Ok(Some(tls))
}

/// The TLS context of a cluster's transport socket.
pub(crate) fn client(
    value: proto::UpstreamTlsContext,
    auto_sni: bool,
    auto_san: bool,
    context: &mut Context<'_>,
) -> Result<Arc<ClientTls>> {
    let proto::UpstreamTlsContext {
        common_tls_context,
        sni,
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation,
        max_session_keys,
        enforce_rsa_key_usage,
    } = value;
    // Renegotiation does not exist in the versions spoken.
    harmless!(allow_renegotiation, enforce_rsa_key_usage);
    let mut plan = common(common_tls_context.unwrap_or_default(), End::Client, context.secrets).within("common_tls_context")?;
    // Which to show is asked nowhere.
    if plan.certificates.len() > 1 {
        return Err(Invalid::field("common_tls_context", "has several certificates; towards an upstream there is one at most"));
    }
    plan.check_name = auto_san || auto_sni_san_validation;
    if max_session_keys == Some(0) {
        plan.resumption = Resumption::Off;
    }
    if sni.len() > 255 {
        return Err(Invalid::field("sni", "is longer than 255 bytes"));
    }
    let tls = Arc::new(ClientTls {
        config: crate::tls::Slot::empty(),
        uri: crate::tls::Slot::empty(),
        sni: (!sni.is_empty()).then(|| sni.into()),
        auto_host_sni,
        checks_sni: auto_sni_san_validation,
        auto_sni,
        auto_san,
        alpn: plan.alpn.clone(),
    });
    let waiting = Waiting::Client(Arc::downgrade(&tls), Arc::new(plan));
    waiting.refresh(context.secrets)?;
    context.uses.tls.push(waiting);
    Ok(tls)
}

/// Name and configuration of a transport socket; `None` when there is none.
pub(crate) fn socket_config(value: Option<core::TransportSocket>) -> Result<Option<(String, lateen_proto::Any)>> {
    let Some(core::TransportSocket { name, config_type }) = value else { return Ok(None) };
    match config_type {
        Some(transport_socket::ConfigType::TypedConfig(config)) => Ok(Some((name, opaque::typed(config)?))),
        None if name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    }
}

/// Whose TLS it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Server,
    Client,
}

fn common(value: proto::CommonTlsContext, end: End, secrets: &mut Secrets) -> Result<Plan> {
    let proto::CommonTlsContext {
        tls_params,
        tls_certificates,
        tls_certificate_sds_secret_configs,
        tls_certificate_provider_instance,
        custom_tls_certificate_selector,
        tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance,
        alpn_protocols,
        custom_handshaker,
        key_log,
        validation_context_type,
    } = value;
    refuse!(tls_certificate_provider_instance, custom_tls_certificate_selector, tls_certificate_certificate_provider);
    refuse!(tls_certificate_certificate_provider_instance, custom_handshaker, key_log);
    let mut certificates = Vec::new();
    for (index, certificate) in tls_certificates.into_iter().enumerate() {
        let certificate = secrets.inline_certificate(certificate).within_item("tls_certificates", index)?;
        certificates.push(certificate);
    }
    let mut timeouts = Vec::new();
    for (index, config) in tls_certificate_sds_secret_configs.into_iter().enumerate() {
        let (key, timeout) = secret_key(config).within_item("tls_certificate_sds_secret_configs", index)?;
        timeouts.push((key.clone(), timeout));
        certificates.push(Given::Discovered(key));
    }
    let (default_validation, discovered) = validation(validation_context_type, secrets)?;
    timeouts.extend(discovered.clone());
    let discovered_validation = discovered.map(|(key, _)| key);
    let params = tls_params.unwrap_or_default();
    let (min_version, max_version) = versions(&params, end).within("tls_params")?;
    let proto::TlsParameters {
        tls_minimum_protocol_version: _,
        tls_maximum_protocol_version: _,
        cipher_suites,
        ecdh_curves,
        signature_algorithms,
        compliance_policies,
    } = params;
    if !signature_algorithms.is_empty() || !compliance_policies.is_empty() {
        refuse!(signature_algorithms, compliance_policies);
    }
    Ok(Plan {
        certificates,
        default_validation,
        discovered_validation,
        timeouts,
        alpn: alpn(&alpn_protocols)?,
        min_version,
        max_version,
        cipher_suites: cipher_suites.iter().flat_map(|s| alternatives(s)).collect(),
        groups: ecdh_curves,
        client_auth: ClientAuth::None,
        scans_all: false,
        prefers_client_order: false,
        resumption: Resumption::Auto,
        check_name: false,
    })
}

/// Envoy lets an entry hold equal alternatives: `[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]`.
fn alternatives(entry: &str) -> Vec<String> {
    entry.trim_matches(['[', ']']).split('|').map(str::to_owned).collect()
}

fn alpn(protocols: &[String]) -> Result<Vec<Vec<u8>>> {
    // Envoy also takes one entry with a comma-separated list.
    let list: Vec<Vec<u8>> = protocols.iter().flat_map(|p| p.split(',')).map(|p| p.trim().as_bytes().to_vec()).collect();
    match list.iter().position(|p| p.is_empty() || p.len() > 255) {
        None => Ok(list),
        Some(index) => Err(Invalid::field(&format!("alpn_protocols[{index}]"), "must have 1 to 255 bytes")),
    }
}

type Validations = (Option<Given<Validation>>, Option<(SecretKey, FetchTimeout)>);

fn validation(value: Option<ValidationContextType>, secrets: &mut Secrets) -> Result<Validations> {
    Ok(match value {
        None => (None, None),
        Some(ValidationContextType::ValidationContext(v)) => (Some(secrets.inline_validation(v).within("validation_context")?), None),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(c)) => {
            (None, Some(secret_key(c).within("validation_context_sds_secret_config")?))
        }
        Some(ValidationContextType::CombinedValidationContext(c)) => combined(c, secrets).within("combined_validation_context")?,
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            return Err(Invalid::unsupported("validation_context_certificate_provider"));
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            return Err(Invalid::unsupported("validation_context_certificate_provider_instance"));
        }
    })
}

fn combined(value: proto::common_tls_context::CombinedCertificateValidationContext, secrets: &mut Secrets) -> Result<Validations> {
    let proto::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context,
        validation_context_sds_secret_config,
        validation_context_certificate_provider,
        validation_context_certificate_provider_instance,
    } = value;
    refuse!(validation_context_certificate_provider, validation_context_certificate_provider_instance);
    let default = default_validation_context.map(|v| secrets.inline_validation(v)).transpose().within("default_validation_context")?;
    let discovered = validation_context_sds_secret_config.map(secret_key).transpose().within("validation_context_sds_secret_config")?;
    Ok((default, discovered))
}

fn secret_key(value: proto::SdsSecretConfig) -> Result<(SecretKey, FetchTimeout)> {
    let proto::SdsSecretConfig { name, sds_config } = value;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty"));
    }
    let (source, timeout) = source::secret_source(sds_config).within("sds_config")?;
    Ok((SecretKey { source, name: name.into() }, timeout))
}

/// The default is 1.2 to 1.3 for listeners and 1.2 for clusters, as Envoy's; older versions are not spoken at all. A cluster that
/// wants 1.3 at least speaks it.
pub(crate) fn versions(params: &proto::TlsParameters, end: End) -> Result<(TlsVersion, TlsVersion)> {
    let min = match TlsProtocol::try_from(params.tls_minimum_protocol_version) {
        // A lower minimum would only let in peers that nothing here can talk to.
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv10 | TlsProtocol::TlSv11 | TlsProtocol::TlSv12) => TlsVersion::V1_2,
        Ok(TlsProtocol::TlSv13) => TlsVersion::V1_3,
        Err(_) => return Err(Invalid::field("tls_minimum_protocol_version", "is not known")),
    };
    let max = match TlsProtocol::try_from(params.tls_maximum_protocol_version) {
        Ok(TlsProtocol::TlsAuto) if end == End::Client => min,
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => TlsVersion::V1_3,
        Ok(TlsProtocol::TlSv12) => TlsVersion::V1_2,
        Ok(TlsProtocol::TlSv10 | TlsProtocol::TlSv11) => {
            return Err(Invalid::field("tls_maximum_protocol_version", "TLS below 1.2 is not spoken; use TLSv1_2 or TLSv1_3"));
        }
        Err(_) => return Err(Invalid::field("tls_maximum_protocol_version", "is not known")),
    };
    if min > max {
        return Err(Invalid::field("tls_maximum_protocol_version", "is below the minimum"));
    }
    Ok((min, max))
}

/// `match_typed_subject_alt_names`.
pub(crate) fn san(value: proto::SubjectAltNameMatcher) -> Result<SanMatcher> {
    use proto::subject_alt_name_matcher::SanType;
    let proto::SubjectAltNameMatcher { san_type, matcher, oid } = value;
    refuse!(oid);
    let kind = match SanType::try_from(san_type) {
        Ok(SanType::Email) => SanKind::Email,
        Ok(SanType::Dns) => SanKind::Dns,
        Ok(SanType::Uri) => SanKind::Uri,
        Ok(SanType::IpAddress) => SanKind::Ip,
        _ => return Err(Invalid::field("san_type", "is not supported; use URI, DNS, EMAIL or IP_ADDRESS")),
    };
    san_of(kind, matcher.ok_or_else(|| Invalid::field("matcher", "is missing"))?).within("matcher")
}

pub(crate) fn san_of(kind: SanKind, value: matcher::StringMatcher) -> Result<SanMatcher> {
    use matcher::string_matcher::MatchPattern;
    let matcher::StringMatcher { ignore_case, match_pattern } = value;
    let pattern = match match_pattern {
        Some(MatchPattern::Exact(t)) => SanPattern::Exact(t),
        Some(MatchPattern::Prefix(t)) => SanPattern::Prefix(t),
        Some(MatchPattern::Suffix(t)) => SanPattern::Suffix(t),
        Some(MatchPattern::Contains(t)) => SanPattern::Contains(t),
        Some(MatchPattern::SafeRegex(r)) => {
            return SanMatcher::regex(kind, &r.regex).map_err(|e| Invalid::field("safe_regex", e.to_string()));
        }
        Some(MatchPattern::Custom(_)) => return Err(Invalid::unsupported("custom")),
        None => return Err(Invalid::new("has no pattern")),
    };
    Ok(SanMatcher::new(kind, pattern, ignore_case))
}
