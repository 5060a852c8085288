//! Transport sockets of a cluster: the default, those for endpoints with certain metadata, the PROXY protocol around them.
use std::sync::Arc;

use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::transport_sockets as sockets;

use prost::Name;

use super::common::open;
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless};
use super::upstream_http::Http;
use super::{istio, tls};
use crate::cluster::Transport;

pub(crate) type Transports = (Vec<Transport>, Vec<prost_types::Struct>);

pub(crate) fn transports(
    matches: Vec<cluster::TransportSocketMatch>,
    default: Option<core::TransportSocket>,
    http: &Http,
    context: &mut Context<'_>,
) -> Result<Transports> {
    let mut transports = Vec::with_capacity(matches.len() + 1);
    let mut wanted = Vec::with_capacity(matches.len());
    for (index, value) in matches.into_iter().enumerate() {
        let cluster::TransportSocketMatch { name, r#match, transport_socket } = value;
        let socket = transport(name.into(), transport_socket, http, context)
            .within("transport_socket")
            .within_item("transport_socket_matches", index)?;
        transports.push(socket);
        wanted.push(r#match.unwrap_or_default());
    }
    transports.push(transport("".into(), default, http, context).within("transport_socket")?);
    Ok((transports, wanted))
}

fn transport(name: Arc<str>, value: Option<core::TransportSocket>, http: &Http, context: &mut Context<'_>) -> Result<Transport> {
    let plain = |name| Ok(Transport { name, tls: None, proxy_protocol: None });
    let Some((socket_name, config)) = tls::socket_config(value)? else { return plain(name) };
    if any::is::<sockets::raw_buffer::v3::RawBuffer>(&config) {
        plain(name)
    } else if any::is::<sockets::tls::v3::UpstreamTlsContext>(&config) {
        let tls = tls::client(open(&config)?, http.auto_sni, http.auto_san, context)?;
        Ok(Transport { name, tls: Some(tls), proxy_protocol: None })
    } else if any::is::<sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport>(&config) {
        proxy_protocol(name, open(&config)?, http, context)
    } else {
        Err(Invalid::new(format!(
            "{socket_name} ({}) is not supported; tls, raw_buffer and upstream_proxy_protocol are",
            any::name_of(&config.type_url)
        )))
    }
}

fn is_proxy_protocol(socket: Option<&core::TransportSocket>) -> bool {
    use core::transport_socket::ConfigType::TypedConfig;
    let config = socket.and_then(|socket| socket.config_type.as_ref());
    config.is_some_and(|TypedConfig(config)| {
        istio::type_name(config) == sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport::full_name()
    })
}

fn proxy_protocol(
    name: Arc<str>,
    value: sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport,
    http: &Http,
    context: &mut Context<'_>,
) -> Result<Transport> {
    let sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport {
        config,
        transport_socket,
        allow_unspecified_address,
        tlv_as_pool_key,
    } = value;
    harmless!(allow_unspecified_address, tlv_as_pool_key);
    let config = super::proxy_protocol::upstream(config.unwrap_or_default()).within("config")?;
    // Said before it is looked into: there could be any number within each other.
    let another = || Invalid::field("transport_socket", "must not be another PROXY protocol socket");
    if is_proxy_protocol(transport_socket.as_ref()) {
        return Err(another());
    }
    let inner = transport(name, transport_socket, http, context).within("transport_socket")?;
    if inner.proxy_protocol.is_some() {
        return Err(another());
    }
    Ok(Transport { proxy_protocol: Some(Arc::new(config)), ..inner })
}
