//! Words our own replies as the configuration says (Envoy `LocalReply`).
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use lateen_snapshot::local_reply::{BodyFormat, LocalReplies};
use lateen_snapshot::log_filter::LogType;

use super::Exchange;
use super::access::{Format, RequestRecord};
use super::log_filter::passes;
use super::message::Response;
use crate::router::changes;

/// The configuration with its formats compiled.
pub(crate) struct Words {
    config: Arc<LocalReplies>,
    /// Of each mapper.
    own: Vec<Option<Format>>,
    common: Option<Format>,
}

impl Words {
    pub(crate) fn new(config: &Arc<LocalReplies>) -> Rc<Self> {
        // What cannot be compiled was refused with the configuration.
        let compiled = |format: &Option<BodyFormat>| format.as_ref().and_then(|f| Format::compile(&f.format).ok());
        Rc::new(Self {
            config: Arc::clone(config),
            own: config.mappers.iter().map(|m| compiled(&m.format)).collect(),
            common: compiled(&config.format),
        })
    }

    /// Changes status, headers and body. For gRPC the status and the body go into headers later.
    pub(super) fn apply(&self, exchange: &mut Exchange<'_>, response: &mut Response, body: &mut Bytes) {
        let (status, before) = (response.status, response.headers.get(header::CONTENT_TYPE).cloned());
        exchange.info.status = status.as_u16();
        let found = self.config.mappers.iter().zip(&self.own).find(|(mapper, _)| {
            let record = RequestRecord::new(exchange, Some(&response.headers));
            passes(&mapper.filter, &record, Some(&record), LogType::NotSet)
        });
        let original = body.clone();
        if let Some((mapper, _)) = found {
            if let Some(own) = &mapper.body {
                *body = own.clone();
            }
            changes::of_response(exchange, &mapper.headers, &mut response.headers);
            response.status = mapper.status.unwrap_or(status);
            exchange.info.status = response.status.as_u16();
        }
        exchange.info.reply_body = Some(Cow::Owned(String::from_utf8_lossy(body).into_owned()));
        let own = found.and_then(|(mapper, format)| mapper.format.as_ref().zip(format.as_ref()));
        let chosen = own.or_else(|| self.config.format.as_ref().zip(self.common.as_ref()));
        if let Some((_, format)) = chosen {
            let mut text = Vec::new();
            format.write(&RequestRecord::new(exchange, Some(&response.headers)), &mut text);
            *body = text.into();
        }
        // Logs never tell it.
        exchange.info.reply_body = None;
        if body.is_empty() {
            response.headers.remove(header::CONTENT_TYPE);
            return;
        }
        let is_own = response.headers.get(header::CONTENT_TYPE) != before.as_ref();
        if !is_own && (before.is_none() || *body != original) {
            let kind = chosen.map_or(HeaderValue::from_static("text/plain"), |(format, _)| format.content_type.clone());
            response.headers.insert(header::CONTENT_TYPE, kind);
        }
    }
}
