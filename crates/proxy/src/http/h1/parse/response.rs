//! The head of a response.
use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::StatusCode;

use super::fields::Fields;
use super::scan::HeadScan;
use super::spans::{self, FEW_HEADERS, Span};
use super::{HeadLimits, InvalidHead, MOST_HEADERS};
use crate::http::h1::Decoder;
use crate::http::message::{Length, Response};
use crate::io::Text;

/// What a response's head says about its connection.
pub(crate) struct ResponseFraming {
    pub(crate) keep_alive: bool,
    pub(crate) decoder: Decoder,
}

/// What a response answers, where that decides about what follows its head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AnswerTo {
    Head,
    Connect,
    #[default]
    Other,
}

/// Reads a response's head; what it answers and the status decide whether a body may follow.
pub(crate) fn response(
    input: &mut BytesMut,
    scan: &mut HeadScan,
    to: AnswerTo,
    limits: HeadLimits,
) -> Result<Option<(Response, ResponseFraming)>, InvalidHead> {
    if !scan.may_be_complete(input) {
        return limits.more_may_come(input);
    }
    let mut slots = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut more;
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let mut outcome = config.parse_response_with_uninit_headers(&mut parsed, input, &mut slots);
    if outcome == Err(httparse::Error::TooManyHeaders) && limits.count > MOST_HEADERS {
        more = limits.more();
        parsed = httparse::Response::new(&mut []);
        outcome = config.parse_response_with_uninit_headers(&mut parsed, input, &mut more);
    }
    let size = match outcome {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => {
            scan.begun();
            return limits.more_may_come(input);
        }
        Err(httparse::Error::TooManyHeaders) => return Err(InvalidHead::TooMany),
        Err(_) => return Err(InvalidHead::Syntax),
    };
    if size > limits.bytes || parsed.headers.len() > limits.count {
        return Err(InvalidHead::TooLarge);
    }
    let base = input.as_ptr() as usize;
    let http11 = parsed.version == Some(1);
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| InvalidHead::Syntax)?;
    let count = parsed.headers.len();
    let (mut few, mut many) = ([Span::default(); FEW_HEADERS], Vec::new());
    let spans = spans::spans(base, parsed.headers, &mut few, &mut many);
    let head = input.split_to(size).freeze();
    scan.reset();
    let mut fields = Fields::new(count, limits.names);
    if let Some(spelling) = &mut fields.spelling {
        spelling.note_reason(&head);
    }
    for span in spans {
        let (name, value) = spans::ranges(*span);
        if head[name.clone()].eq_ignore_ascii_case(b"host") {
            continue;
        }
        fields.add(&head, name, value)?;
    }
    fields.drop_nominated();
    if to == AnswerTo::Connect && status.is_success() {
        // What it says about a body means nothing here (RFC 9110 9.3.6).
        let response =
            Response { status, headers: fields.headers, length: Length::Unknown, upgrade: Some(Text::EMPTY), spelling: fields.spelling };
        return Ok(Some((response, ResponseFraming { keep_alive: false, decoder: Decoder::UntilClose })));
    }
    let bodiless =
        to == AnswerTo::Head || status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    let (decoder, length) = match (fields.transfer_encoding, fields.content_length) {
        (Some(_), Some(_)) => return Err(InvalidHead::TransferEncoding),
        (_, length) if bodiless => (Decoder::Done, length.map_or(Length::None, Length::Known)),
        (Some(_), None) => (Decoder::chunked(), Length::Unknown),
        (None, Some(0)) => (Decoder::Done, Length::Known(0)),
        (None, Some(n)) => (Decoder::Length(n), Length::Known(n)),
        (None, None) => (Decoder::UntilClose, Length::Unknown),
    };
    let until_close = matches!(decoder, Decoder::UntilClose);
    let keep_alive = !fields.close && (http11 || fields.keep_alive) && !until_close && !switching;
    let upgrade = if switching { Some(fields.upgrade.take().unwrap_or(Text::EMPTY)) } else { None };
    let response = Response { status, headers: fields.headers, length, upgrade, spelling: fields.spelling };
    Ok(Some((response, ResponseFraming { keep_alive, decoder })))
}
