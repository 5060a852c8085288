//! Frames from the peer: each is checked, changes the connection's state and becomes events.
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, header};

use crate::StreamId;
use crate::connection::{Connection, FRAME, Partial, Role};
use crate::event::{ConnectionError, Event, RequestHead};
use crate::frame::{self, Head, Reason, flag, kind, setting};
use crate::hpack::{Block, CompressionError};
use crate::stream::Stream;

/// CONTINUATION frames of one block; each may hold 16 KiB.
const MAX_CONTINUATIONS: usize = 16;
/// 1xx responses of one stream: each may hold a whole block of headers, and somebody keeps them.
const MAX_INFORMATIONAL: u8 = 32;
/// A reset says nothing of a client whose stream has lasted so many milliseconds: more than one second in whole ones (Envoy
/// `ConnectionManagerImpl::isPrematureRstStream`).
const PREMATURE: u32 = 2_000;
const MAX_WINDOW: i64 = i32::MAX as i64;

type Outcome = Result<(), ConnectionError>;

impl Connection {
    /// Takes whole frames from `input` and appends what happened to `events`; leaves a partial frame.
    ///
    /// # Errors
    /// When the peer broke the connection: write the output, which ends with a GOAWAY, and close.
    /// Events gathered before the error are valid.
    pub fn receive(&mut self, input: &mut BytesMut, events: &mut Vec<Event>) -> Result<(), ConnectionError> {
        if self.dead {
            input.clear();
            return Ok(());
        }
        let outcome = self.receive_frames(input, events);
        if let Err(error) = &outcome {
            self.die(error);
        }
        outcome
    }

    fn receive_frames(&mut self, input: &mut BytesMut, events: &mut Vec<Event>) -> Outcome {
        self.receive_preface(input)?;
        while self.preface_left == 0 {
            let Some(head) = Head::read(input) else { break };
            if head.length > FRAME {
                return Err(ConnectionError { reason: Reason::FRAME_SIZE_ERROR, text: "frame larger than announced" });
            }
            if input.len() < frame::HEADER + head.length {
                break;
            }
            input.advance(frame::HEADER);
            if head.kind == kind::DATA {
                let payload = input.split_to(head.length).freeze();
                self.check_order(head)?;
                self.data(head, payload, events)?;
            } else {
                let outcome = self.check_order(head).and_then(|()| self.frame(head, &input[..head.length], events));
                input.advance(head.length);
                outcome?;
            }
        }
        Ok(())
    }

    fn receive_preface(&mut self, input: &mut BytesMut) -> Outcome {
        let done = frame::PREFACE.len() - self.preface_left.min(frame::PREFACE.len());
        let part = self.preface_left.min(input.len());
        if frame::PREFACE.get(done..done + part) != input.get(..part) {
            return Err(ConnectionError::protocol("no HTTP/2 preface"));
        }
        self.preface_left -= part;
        input.advance(part);
        Ok(())
    }

    /// SETTINGS come first, and nothing comes between the parts of a header block.
    fn check_order(&mut self, head: Head) -> Outcome {
        if !self.settings_seen && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(ConnectionError::protocol("the first frame is not SETTINGS"));
        }
        match &self.partial {
            Some(partial) if head.kind != kind::CONTINUATION || head.stream != partial.stream => {
                Err(ConnectionError::protocol("a header block was interrupted"))
            }
            None if head.kind == kind::CONTINUATION => Err(ConnectionError::protocol("CONTINUATION without HEADERS")),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        match head.kind {
            kind::HEADERS => self.headers(head, payload, events),
            kind::CONTINUATION => self.continuation(head, payload, events),
            kind::SETTINGS => self.settings(head, payload, events),
            kind::WINDOW_UPDATE => self.window_update(head, payload, events),
            kind::RST_STREAM => self.peer_reset(head, payload, events),
            kind::PING => self.ping_frame(head, payload, events),
            kind::GOAWAY => self.goaway_frame(head, payload, events),
            kind::PRIORITY if head.stream == 0 => Err(ConnectionError::protocol("PRIORITY on stream 0")),
            kind::PRIORITY => self.flood.priority(),
            kind::PUSH_PROMISE => Err(ConnectionError::protocol("pushes are switched off")),
            // Unknown kinds are ignored (RFC 9113, section 5.5), but not for free.
            _ => self.flood.payload(head.length == 0),
        }
    }

    fn data(&mut self, head: Head, payload: Bytes, events: &mut Vec<Event>) -> Outcome {
        let id = head.stream;
        if id == 0 || self.is_idle(id) {
            return Err(ConnectionError::protocol("DATA on an idle stream"));
        }
        self.receive_window -= payload.len() as i64;
        if self.receive_window < 0 {
            return Err(ConnectionError { reason: Reason::FLOW_CONTROL_ERROR, text: "more DATA than the connection's window" });
        }
        let total = payload.len() as u32;
        let data = unpadded(head, payload)?;
        let end = head.has(flag::END_STREAM);
        self.flood.payload(data.is_empty() && !end)?;
        let stream = match self.streams.get_mut(&id) {
            Some(stream) if stream.receiving => stream,
            // After we reset a stream its last frames may still be on their way.
            None => {
                self.release_connection(total);
                return Ok(());
            }
            Some(_) => {
                self.release_connection(total);
                return self.stream_error(id, Reason::STREAM_CLOSED, events);
            }
        };
        stream.receive_window -= i64::from(total);
        let (over, early) = (stream.receive_window < 0, !stream.head_received);
        let wrong_length = stream.length_left.is_some_and(|left| {
            stream.length_left = left.checked_sub(data.len() as u64);
            stream.length_left.is_none() || (end && stream.length_left != Some(0))
        });
        if over || early || wrong_length {
            // Nobody gets to see them.
            self.release_connection(total);
            return self.stream_error(id, if over { Reason::FLOW_CONTROL_ERROR } else { Reason::PROTOCOL_ERROR }, events);
        }
        stream.outstanding += total;
        let padding = total as usize - data.len();
        if padding > 0 {
            self.release(id, padding);
        }
        events.push(Event::Data { id, data, end });
        if end {
            self.finish_receiving(id);
        }
        Ok(())
    }

    fn headers(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        if head.stream == 0 {
            return Err(ConnectionError::protocol("HEADERS on stream 0"));
        }
        let block = header_fragment(head, payload)?;
        self.flood.payload(block.is_empty() && !head.has(flag::END_STREAM))?;
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.block(head.stream, end_stream, block, events);
        }
        self.partial = Some(Partial { stream: head.stream, end_stream, block: BytesMut::from(block), frames: 0 });
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let Some(mut partial) = self.partial.take() else { return Ok(()) };
        partial.frames += 1;
        partial.block.extend_from_slice(payload);
        // Encoded bytes can hardly be more than decoded ones: a block beyond that would be refused anyway.
        // Who may send larger heads needs more of them, and need not fill each.
        let most = (self.config.max_header_bytes / FRAME * 2).max(MAX_CONTINUATIONS);
        if partial.frames as usize > most || partial.block.len() > self.config.max_header_bytes + FRAME {
            return Err(ConnectionError::calm("header block too long"));
        }
        if head.has(flag::END_HEADERS) {
            return self.block(partial.stream, partial.end_stream, &partial.block, events);
        }
        self.partial = Some(partial);
        Ok(())
    }

    /// A complete header block: a request, a response or trailers.
    fn block(&mut self, id: StreamId, end: bool, block: &[u8], events: &mut Vec<Event>) -> Outcome {
        let (encoded, mut block) = (block, Block::default());
        let broken = |e: CompressionError| ConnectionError { reason: Reason::COMPRESSION_ERROR, text: e.0 };
        self.decoder.decode(encoded, &mut block).map_err(broken)?;
        if let Some(stream) = self.streams.get(&id) {
            return match (stream.receiving, stream.head_received, self.role) {
                (false, ..) => self.stream_error(id, Reason::STREAM_CLOSED, events),
                (true, true, _) => self.trailers(id, end, &mut block, events),
                (true, false, Role::Client) => self.response(id, end, &mut block, events),
                (true, false, Role::Server) => self.stream_error(id, Reason::PROTOCOL_ERROR, events),
            };
        }
        match self.role {
            Role::Client if self.is_idle(id) => Err(ConnectionError::protocol("HEADERS on an idle stream")),
            Role::Server if id.is_multiple_of(2) => Err(ConnectionError::protocol("a client opened an even stream")),
            Role::Server if id > self.last_peer_id => self.request(id, end, &mut block, events),
            // A stream that we reset a moment ago.
            _ => Ok(()),
        }
    }

    fn request(&mut self, id: StreamId, end: bool, block: &mut Block, events: &mut Vec<Event>) -> Outcome {
        self.last_peer_id = id;
        self.flood.streams += 1;
        if self.going_away.is_some() || self.streams.len() >= self.config.max_concurrent_streams as usize {
            frame::put_reset(self.out.buffer(), id, Reason::REFUSED_STREAM);
            return self.flood.control_frame();
        }
        let mut stream = Stream::new(self.peer.initial_window, self.config.stream_window);
        stream.born = self.moment;
        stream.head_received = true;
        stream.receiving = !end;
        if block.too_large {
            self.streams.insert(id, stream);
            events.push(Event::HeadersTooLarge { id, end });
            return Ok(());
        }
        let mut head = RequestHead::spare();
        // A pseudo-header that was not announced makes the request malformed (RFC 8441, section 3).
        let well_formed = request_head(block, &mut head)
            && (head.protocol.is_none() || self.config.extended_connect)
            && !(end && head.length.is_some_and(|length| length > 0));
        if !well_formed {
            frame::put_reset(self.out.buffer(), id, Reason::PROTOCOL_ERROR);
            self.flood.premature_reset()?;
            return self.flood.control_frame();
        }
        stream.length_left = head.length;
        self.streams.insert(id, stream);
        events.push(Event::Request { id, head, end });
        Ok(())
    }

    fn response(&mut self, id: StreamId, end: bool, block: &mut Block, events: &mut Vec<Event>) -> Outcome {
        if block.too_large {
            // The response may be in order: it is we who do not want it.
            return self.stream_error(id, Reason::INTERNAL_ERROR, events);
        }
        let status = match block.status {
            Some(status) if block.malformed.is_none() && block.method.is_none() => status,
            _ => return self.stream_error(id, Reason::PROTOCOL_ERROR, events),
        };
        if status.is_informational() {
            if end || status == http::StatusCode::SWITCHING_PROTOCOLS {
                return self.stream_error(id, Reason::PROTOCOL_ERROR, events);
            }
            let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.informational < MAX_INFORMATIONAL) else {
                return self.stream_error(id, Reason::ENHANCE_YOUR_CALM, events);
            };
            stream.informational += 1;
            events.push(Event::Informational { id, status, headers: std::mem::take(&mut block.headers) });
            return Ok(());
        }
        let length = block.length;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head_received = true;
            let bodiless = stream.bodiless || matches!(status.as_u16(), 204 | 304);
            stream.length_left = length.filter(|_| !bodiless);
            if end && stream.length_left.is_some_and(|l| l > 0) {
                return self.stream_error(id, Reason::PROTOCOL_ERROR, events);
            }
        }
        events.push(Event::Response { id, status, length, headers: std::mem::take(&mut block.headers), end, size: block.size });
        if end {
            self.finish_receiving(id);
        }
        Ok(())
    }

    fn trailers(&mut self, id: StreamId, end: bool, block: &mut Block, events: &mut Vec<Event>) -> Outcome {
        let short = self.streams.get(&id).is_some_and(|s| s.length_left.is_some_and(|l| l > 0));
        let pseudo = block.status.is_some() || block.method.is_some() || block.path.is_some();
        if !end || short || pseudo || block.too_large || block.malformed.is_some() {
            return self.stream_error(id, Reason::PROTOCOL_ERROR, events);
        }
        let mut headers = std::mem::take(&mut block.headers);
        if let Some(length) = block.length {
            // Here it is a field as others are.
            headers.append(header::CONTENT_LENGTH, length.into());
        }
        events.push(Event::Trailers { id, headers });
        self.finish_receiving(id);
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let size = |ok: bool| {
            let text = "SETTINGS of a wrong size";
            if ok { Ok(()) } else { Err(ConnectionError { reason: Reason::FRAME_SIZE_ERROR, text }) }
        };
        if head.stream != 0 {
            return Err(ConnectionError::protocol("SETTINGS on a stream"));
        }
        if head.has(flag::ACK) {
            return size(payload.is_empty());
        }
        size(payload.len().is_multiple_of(6))?;
        self.settings_seen = true;
        let before = self.peer.initial_window;
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            self.setting(id, value)?;
        }
        frame::put_head(self.out.buffer(), 0, kind::SETTINGS, flag::ACK, 0);
        events.push(Event::Settings);
        if self.peer.initial_window != before {
            let mut waiting: Vec<StreamId> = self.streams.iter().filter(|(_, s)| s.wanted > 0).map(|(id, _)| *id).collect();
            waiting.sort_unstable();
            waiting.into_iter().for_each(|id| self.window_opened(id));
            self.share_window(events);
        }
        self.flood.control_frame()
    }

    fn setting(&mut self, id: u16, value: u32) -> Outcome {
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.peer_limit(value as usize),
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_concurrent_streams = value,
            setting::ENABLE_PUSH if value > 1 => return Err(ConnectionError::protocol("ENABLE_PUSH is 0 or 1")),
            setting::ENABLE_CONNECT_PROTOCOL => self.peer.extended_connect = value == 1,
            setting::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                return Err(ConnectionError::protocol("MAX_FRAME_SIZE out of range"));
            }
            setting::INITIAL_WINDOW_SIZE => {
                if i64::from(value) > MAX_WINDOW {
                    return Err(ConnectionError { reason: Reason::FLOW_CONTROL_ERROR, text: "INITIAL_WINDOW_SIZE too large" });
                }
                let change = i64::from(value) - i64::from(self.peer.initial_window);
                self.peer.initial_window = value;
                for stream in self.streams.values_mut() {
                    stream.send_window += change;
                    if stream.send_window > MAX_WINDOW {
                        return Err(ConnectionError { reason: Reason::FLOW_CONTROL_ERROR, text: "a stream's window overflows" });
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let increment = i64::from(exact(payload, 4, "WINDOW_UPDATE")? & 0x7fff_ffff);
        self.flood.window_update()?;
        if head.stream == 0 {
            self.send_window += increment;
            if increment == 0 || self.send_window > MAX_WINDOW {
                return Err(ConnectionError { reason: Reason::FLOW_CONTROL_ERROR, text: "the connection's window overflows" });
            }
            self.share_window(events);
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err(ConnectionError::protocol("WINDOW_UPDATE on an idle stream"));
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else { return Ok(()) };
        stream.send_window += increment;
        if increment == 0 || stream.send_window > MAX_WINDOW {
            let reason = if increment == 0 { Reason::PROTOCOL_ERROR } else { Reason::FLOW_CONTROL_ERROR };
            return self.stream_error(head.stream, reason, events);
        }
        self.window_opened(head.stream);
        self.share_window(events);
        Ok(())
    }

    fn peer_reset(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let reason = Reason(exact(payload, 4, "RST_STREAM")?);
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(ConnectionError::protocol("RST_STREAM on an idle stream"));
        }
        let premature = self.is_premature(head.stream);
        if self.forget(head.stream) {
            events.push(Event::Reset { id: head.stream, reason });
        }
        if premature { self.flood.premature_reset() } else { Ok(()) }
    }

    fn ping_frame(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return Err(ConnectionError { reason: Reason::FRAME_SIZE_ERROR, text: "PING of a wrong size" });
        };
        if head.stream != 0 {
            return Err(ConnectionError::protocol("PING on a stream"));
        }
        if head.has(flag::ACK) {
            events.push(Event::Pong);
            return Ok(());
        }
        frame::put_ping(self.out.buffer(), true, payload);
        self.flood.control_frame()
    }

    fn goaway_frame(&mut self, head: Head, payload: &[u8], events: &mut Vec<Event>) -> Outcome {
        let (Some(last), Some(reason)) = (frame::number(payload, 0), frame::number(payload, 4)) else {
            return Err(ConnectionError { reason: Reason::FRAME_SIZE_ERROR, text: "GOAWAY of a wrong size" });
        };
        if head.stream != 0 {
            return Err(ConnectionError::protocol("GOAWAY on a stream"));
        }
        let last = last & 0x7fff_ffff;
        self.peer_going_away = true;
        events.push(Event::GoAway { last, reason: Reason(reason) });
        if self.role == Role::Client {
            let refused: Vec<StreamId> = self.streams.keys().copied().filter(|id| *id > last).collect();
            for id in refused {
                self.forget(id);
                events.push(Event::Reset { id, reason: Reason::REFUSED_STREAM });
            }
        }
        Ok(())
    }

    /// The peer broke a rule on one stream: it ends, the connection goes on.
    fn stream_error(&mut self, id: StreamId, reason: Reason, events: &mut Vec<Event>) -> Outcome {
        let premature = self.is_premature(id);
        if self.forget(id) {
            events.push(Event::Reset { id, reason });
        }
        frame::put_reset(self.out.buffer(), id, reason);
        if premature {
            self.flood.premature_reset()?;
        }
        self.flood.control_frame()
    }

    /// Whether a client's stream has neither been answered nor had the time to be.
    fn is_premature(&self, id: StreamId) -> bool {
        let young = |born| self.moment.wrapping_sub(born) < PREMATURE;
        self.role == Role::Server && self.streams.get(&id).is_some_and(|s| !s.answered && young(s.born))
    }

    fn finish_receiving(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.receiving = false;
        if !stream.sending {
            self.forget(id);
        }
    }

    fn is_idle(&self, id: StreamId) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_id,
            Role::Client => id.is_multiple_of(2) || id >= self.next_id,
        }
    }
}

fn exact(payload: &[u8], size: usize, _frame: &str) -> Result<u32, ConnectionError> {
    frame::number(payload, 0)
        .filter(|_| payload.len() == size)
        .ok_or(ConnectionError { reason: Reason::FRAME_SIZE_ERROR, text: "frame of a wrong size" })
}

fn unpadded(head: Head, mut payload: Bytes) -> Result<Bytes, ConnectionError> {
    if head.has(flag::PADDED) {
        let padding = usize::from(*payload.first().ok_or(ConnectionError::protocol("padding is missing"))?);
        payload.advance(1);
        let length = payload.len().checked_sub(padding).ok_or(ConnectionError::protocol("padding longer than the frame"))?;
        payload.truncate(length);
    }
    Ok(payload)
}

/// The header block inside a HEADERS frame: padding and priority cut off.
fn header_fragment(head: Head, mut payload: &[u8]) -> Result<&[u8], ConnectionError> {
    let mut padding = 0;
    if head.has(flag::PADDED) {
        let (first, rest) = payload.split_first().ok_or(ConnectionError::protocol("padding is missing"))?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if head.has(flag::PRIORITY) {
        payload = payload.get(5..).ok_or(ConnectionError::protocol("priority is missing"))?;
    }
    let length = payload.len().checked_sub(padding).ok_or(ConnectionError::protocol("padding longer than the frame"))?;
    payload.get(..length).ok_or(ConnectionError::protocol("padding longer than the frame"))
}

/// Checks a request's block (RFC 9113, section 8.3.1; RFC 8441) and fills its head; false when it is malformed.
fn request_head(block: &mut Block, head: &mut RequestHead) -> bool {
    let Some(method) = block.method.take().filter(|_| block.malformed.is_none() && block.status.is_none()) else { return false };
    let plain_connect = method == Method::CONNECT && block.protocol.is_none();
    if block.protocol.is_some() && method != Method::CONNECT {
        return false;
    }
    if plain_connect != (block.scheme.is_none() && block.path.is_none()) || (!plain_connect && block.path.is_none()) {
        return false;
    }
    let path = block.path.take().unwrap_or_default();
    let rooted = path.first() == Some(&b'/') || (method == Method::OPTIONS && path == "*");
    if !plain_connect && (!rooted || block.scheme.as_ref().is_none_or(Bytes::is_empty)) {
        return false;
    }
    let mut authority = block.authority.take().unwrap_or_default();
    if block.host && !host_agrees(&mut authority, &mut block.headers) {
        return false;
    }
    head.method = method;
    head.scheme = block.scheme.take().unwrap_or_default();
    head.authority = authority;
    head.path = path;
    head.protocol = block.protocol.take();
    head.headers = std::mem::take(&mut block.headers);
    head.length = block.length;
    (head.te_trailers, head.expect, head.marks, head.size) = (block.te, block.expect, block.marks, block.size);
    true
}

/// Two different names for the target are a way around rules that look at one of them.
fn host_agrees(authority: &mut Bytes, headers: &mut HeaderMap) -> bool {
    for host in headers.get_all(header::HOST) {
        if authority.is_empty() {
            *authority = Bytes::copy_from_slice(host.as_bytes());
        } else if !authority.eq_ignore_ascii_case(host.as_bytes()) {
            return false;
        }
    }
    if !authority.is_empty() {
        headers.remove(header::HOST);
    }
    true
}
