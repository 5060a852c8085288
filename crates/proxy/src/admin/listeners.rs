//! `/listeners`.
use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::server::{Ask, Reply};
use crate::main_thread::Main;

pub(super) fn page(main: &Main, ask: &Ask<'_>) -> Reply {
    let snapshot = main.snapshot();
    if ask.wants_json() {
        let statuses: Vec<Value> = snapshot.listeners.iter().map(|l| status(&l.name, &l.addresses)).collect();
        return Reply::json(&json!({ "listener_statuses": statuses }));
    }
    let mut text = String::new();
    for listener in &snapshot.listeners {
        for address in &listener.addresses {
            let _ = writeln!(text, "{}::{address}", listener.name);
        }
    }
    Reply::text(text)
}

fn status(name: &str, addresses: &[SocketAddr]) -> Value {
    let mut status = json!({"name": name});
    if let (Some(fields), Some((first, others))) = (status.as_object_mut(), addresses.split_first()) {
        fields.insert("local_address".to_owned(), address(*first));
        if !others.is_empty() {
            fields.insert("additional_local_addresses".to_owned(), others.iter().map(|a| address(*a)).collect());
        }
    }
    status
}

pub(super) fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
