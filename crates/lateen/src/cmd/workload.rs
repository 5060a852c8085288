//! What our own proxy and the agent beside an Envoy have in common: who the pod is, and its certificate.
use std::sync::Arc;

use anyhow::Context;
use lateen_core::spiffe::SpiffeId;
use lateen_identity::csr_client::{CsrClient, CsrClientConfig, RootsSource, Transport};
use lateen_identity::rotation::{Policy, Rotation};
use lateen_proxy::bootstrap::{ControlPlane, Environment};

/// The port on which control planes speak without TLS.
const PLAINTEXT: u16 = 15_010;
/// What Istio's agent asks for when SECRET_TTL does not say otherwise.
const CERTIFICATE_HOURS: u64 = 24;

/// Starts obtaining the workload's certificate and keeping it fresh.
pub(crate) fn rotation(environment: &Environment) -> anyhow::Result<Rotation> {
    let (host, port) = host_port(&environment.ca)?;
    let transport = if port == PLAINTEXT {
        Transport::Plaintext
    } else {
        Transport::Tls { server_name: host.to_owned(), roots: RootsSource::File(environment.roots.clone()) }
    };
    let expected = SpiffeId::new(&environment.trust_domain, &environment.namespace, &environment.service_account)?;
    let client = CsrClient::new(CsrClientConfig {
        address: environment.ca.clone(),
        transport,
        token_file: Some(environment.token.clone()),
        expected: Some(expected),
        ttl: certificate_ttl()?,
        cluster_id: environment.cluster_id.clone(),
    });
    Ok(Rotation::start(Arc::new(client), Policy::default()))
}

/// How the control plane of the environment is reached.
pub(crate) fn control_plane(environment: &Environment) -> anyhow::Result<ControlPlane> {
    let (host, port) = host_port(&environment.discovery)?;
    Ok(if port == PLAINTEXT {
        ControlPlane::Plaintext { host: host.to_owned(), port }
    } else {
        ControlPlane::Tls { host: host.to_owned(), port, roots: environment.roots.display().to_string(), server_name: host.to_owned() }
    })
}

/// The mark that tells our own connections from the application's, where capture goes by marks.
pub(crate) fn socket_mark() -> anyhow::Result<Option<u32>> {
    match std::env::var("LATEEN_SOCKET_MARK") {
        Ok(text) if !text.is_empty() => {
            Ok(Some(text.parse().with_context(|| format!("LATEEN_SOCKET_MARK holds `{text}`, which is no number"))?))
        }
        _ => Ok(None),
    }
}

/// Istio's SECRET_TTL, such as `24h0m0s` or `90s`.
fn certificate_ttl() -> anyhow::Result<std::time::Duration> {
    match std::env::var("SECRET_TTL") {
        Ok(text) if !text.is_empty() => {
            go_duration(&text).with_context(|| format!("SECRET_TTL holds `{text}`, which is no duration such as 24h"))
        }
        _ => Ok(std::time::Duration::from_secs(CERTIFICATE_HOURS * 3600)),
    }
}

/// Hours, minutes and seconds in Go's notation.
fn go_duration(text: &str) -> Option<std::time::Duration> {
    let (mut seconds, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.chars().next()?;
        let factor = match unit {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = after.get(unit.len_utf8()..)?;
    }
    (seconds > 0).then(|| std::time::Duration::from_secs(seconds))
}

fn host_port(address: &str) -> anyhow::Result<(&str, u16)> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parts.with_context(|| format!("`{address}` is not of the form host:port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(go_duration("1h30m").unwrap().as_secs(), 5400);
        assert_eq!(go_duration("90s").unwrap().as_secs(), 90);
        for bad in ["", "10", "1d", "h", "-1s", "99999999999999999999h"] {
            assert!(go_duration(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(host_port("istiod.istio-system.svc:15012").unwrap(), ("istiod.istio-system.svc", 15012));
        assert!(host_port("istiod").is_err() && host_port("a:b").is_err());
    }
}
