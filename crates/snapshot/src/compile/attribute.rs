//! Attributes by name. Envoy takes expressions of CEL there; taken here are names, and headers by name.
use super::invalid::{Invalid, Result};
use super::matcher::header_name;
use crate::attribute::{Attribute, NamedAttribute};

const REFERER: &str = "request.headers['referer']";
const ID: &str = "request.headers['x-request-id']";
const USER_AGENT: &str = "request.headers['user-agent']";

/// Names that Envoy knows and that are not told here.
const UNSUPPORTED: [&str; 29] = [
    "request.headers",
    "request.headers_bytes",
    "request.total_size",
    "response.headers",
    "response.headers_bytes",
    "response.total_size",
    "response.trailers",
    "response.backend_latency",
    "connection.subject_local_certificate",
    "connection.dns_san_local_certificate",
    "connection.peer_certificate",
    "upstream.transport_failure_reason",
    "upstream.cx_pool_ready_duration",
    "upstream.num_endpoints",
    "upstream.locality",
    "upstream.tls_version",
    "upstream.subject_local_certificate",
    "upstream.subject_peer_certificate",
    "upstream.uri_san_local_certificate",
    "upstream.uri_san_peer_certificate",
    "upstream.dns_san_local_certificate",
    "upstream.dns_san_peer_certificate",
    "upstream.sha256_peer_certificate_digest",
    "xds.node",
    "xds.cluster_metadata",
    "xds.route_metadata",
    "xds.virtual_host_metadata",
    "xds.upstream_host_metadata",
    "xds.listener_metadata",
];
/// Values with more below them.
const TREES: [&str; 3] = ["metadata", "filter_state", "upstream_filter_state"];

/// Those of a list. A name that means nothing is never told anything of, as in Envoy, where it is an expression that fails.
pub(crate) fn named(names: Vec<String>, field: &str) -> Result<Vec<NamedAttribute>> {
    let one = |(index, name): (usize, String)| match attribute(&name) {
        Ok(found) => found.map(|attribute| Ok(NamedAttribute { name: name.into(), attribute })),
        Err(wrong) => Some(Err(wrong.inside(&format!("{field}[{index}]")))),
    };
    names.into_iter().enumerate().filter_map(one).collect()
}

fn attribute(name: &str) -> Result<Option<Attribute>> {
    let name = match name {
        "request.referer" => REFERER,
        "request.id" => ID,
        "request.useragent" => USER_AGENT,
        name => name,
    };
    if let Some(header) = header(name, "request") {
        return header_name(header).map(Attribute::RequestHeader).map(Some);
    }
    if let Some(header) = header(name, "response") {
        return header_name(header).map(Attribute::ResponseHeader).map(Some);
    }
    let root = name.split('.').next().unwrap_or_default();
    let words = name.split('.').all(|word| {
        word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    });
    let known = plain(name);
    if known.is_none() && (!words || UNSUPPORTED.contains(&name) || TREES.contains(&root) || is_value(name)) {
        return Err(Invalid::new(format!(
            "`{name}` is not supported; use the names of attributes, and headers as request.headers['NAME']"
        )));
    }
    Ok(known)
}

/// What is an expression by itself: a constant, or all of something.
fn is_value(name: &str) -> bool {
    const ALL: [&str; 7] = ["request", "response", "connection", "source", "destination", "upstream", "xds"];
    matches!(name, "true" | "false" | "null") || ALL.contains(&name)
}

/// The name in `WHOSE.headers['NAME']`.
fn header<'a>(name: &'a str, whose: &str) -> Option<&'a str> {
    let quoted = name.strip_prefix(whose)?.strip_prefix(".headers[")?.strip_suffix(']')?;
    ['\'', '"'].into_iter().find_map(|mark| quoted.strip_prefix(mark)?.strip_suffix(mark))
}

fn plain(name: &str) -> Option<Attribute> {
    Some(match name {
        "request.path" => Attribute::RequestPath,
        "request.url_path" => Attribute::RequestUrlPath,
        "request.query" => Attribute::RequestQuery,
        "request.host" => Attribute::RequestHost,
        "request.scheme" => Attribute::RequestScheme,
        "request.method" => Attribute::RequestMethod,
        "request.time" => Attribute::RequestTime,
        "request.size" => Attribute::RequestSize,
        "request.protocol" => Attribute::RequestProtocol,
        "response.code" => Attribute::ResponseCode,
        "response.code_details" => Attribute::ResponseCodeDetails,
        "response.flags" => Attribute::ResponseFlags,
        "response.grpc_status" => Attribute::ResponseGrpcStatus,
        "response.size" => Attribute::ResponseSize,
        "connection.id" => Attribute::ConnectionId,
        "connection.mtls" => Attribute::ConnectionMtls,
        "connection.requested_server_name" => Attribute::ConnectionRequestedServerName,
        "connection.tls_version" => Attribute::ConnectionTlsVersion,
        "connection.uri_san_local_certificate" => Attribute::ConnectionUriSanLocalCertificate,
        "connection.subject_peer_certificate" => Attribute::ConnectionSubjectPeerCertificate,
        "connection.uri_san_peer_certificate" => Attribute::ConnectionUriSanPeerCertificate,
        "connection.dns_san_peer_certificate" => Attribute::ConnectionDnsSanPeerCertificate,
        "connection.sha256_peer_certificate_digest" => Attribute::ConnectionSha256PeerCertificateDigest,
        "source.address" => Attribute::SourceAddress,
        "source.port" => Attribute::SourcePort,
        "destination.address" => Attribute::DestinationAddress,
        "destination.port" => Attribute::DestinationPort,
        "upstream.address" => Attribute::UpstreamAddress,
        "upstream.port" => Attribute::UpstreamPort,
        "upstream.local_address" => Attribute::UpstreamLocalAddress,
        "upstream.request_attempt_count" => Attribute::UpstreamRequestAttemptCount,
        "xds.cluster_name" => Attribute::ClusterName,
        "xds.route_name" => Attribute::RouteName,
        "xds.virtual_host_name" => Attribute::VirtualHostName,
        "xds.filter_chain_name" => Attribute::FilterChainName,
        "xds.listener_direction" => Attribute::ListenerDirection,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use http::header::REFERER;

    use super::*;

    fn of(name: &str) -> Result<Vec<NamedAttribute>> {
        named(vec![name.to_owned()], "request_attributes")
    }

    #[test]
    fn names_are_settled_and_those_that_mean_nothing_are_left_out() {
        let one = |name: &str| of(name).unwrap().pop().map(|n| n.attribute);
        assert_eq!(one("request.path"), Some(Attribute::RequestPath));
        assert_eq!(one("request.referer"), Some(Attribute::RequestHeader(REFERER)));
        assert_eq!(one("request.headers[\"X-A\"]"), Some(Attribute::RequestHeader(HeaderName::from_static("x-a"))));
        assert_eq!(one("response.headers['x-a']"), Some(Attribute::ResponseHeader(HeaderName::from_static("x-a"))));
        for nothing in ["request.pathh", "no.such", "nonsense", "source.name", "request.duration"] {
            assert_eq!(one(nothing), None, "{nothing}");
        }
        assert_eq!(&*of("request.referer").unwrap()[0].name, "request.referer");
    }

    #[test]
    fn what_would_be_told_and_is_not_is_refused_by_its_place() {
        for wrong in UNSUPPORTED.into_iter().chain([
            "request.path + 'a'",
            "metadata.filter_metadata",
            "request",
            "true",
            "1",
            "",
            "request.headers['a b']",
        ]) {
            let told = of(wrong).unwrap_err().to_string();
            assert!(told.contains("request_attributes[0]"), "{told}");
        }
    }
}
